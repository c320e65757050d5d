// The benchmarks of `switchyard bench`.
#ifndef SWITCHYARD_CLI_BENCH_H_
#define SWITCHYARD_CLI_BENCH_H_

#include <string>

#include "absl/types/span.h"

namespace switchyard {

// Picks the benchmark.
int BenchCommand(absl::Span<const std::string> args);

int BenchKernels(absl::Span<const std::string> args);
int BenchDecode(absl::Span<const std::string> args);
int BenchPrefill(absl::Span<const std::string> args);
int BenchCollective(absl::Span<const std::string> args);
int BenchServing(absl::Span<const std::string> args);

}  // namespace switchyard

#endif  // SWITCHYARD_CLI_BENCH_H_
