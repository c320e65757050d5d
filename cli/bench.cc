#include "cli/bench.h"

#include <cstdio>

#include "cli/flags.h"

namespace switchyard {
namespace {

struct Benchmark {
  const char* name;
  const char* summary;
  int (*run)(absl::Span<const std::string>);
};

constexpr Benchmark kBenchmarks[] = {
    {"kernels", "every CUDA kernel: is it right, and how near its ceiling",
     BenchKernels},
    {"decode", "steps of batches that generate, against their memory traffic",
     BenchDecode},
    {"prefill", "a prompt's computation, against a large matrix product",
     BenchPrefill},
    {"collective", "the all-reduce between ranks, by size and algorithm",
     BenchCollective},
    {"serving",
     "tokens per second through gRPC, and what a step costs outside the "
     "executor",
     BenchServing},
};

void PrintHelp(std::FILE* out) {
  std::fprintf(out, "Usage: switchyard bench BENCHMARK [flags]\n\n");
  for (const Benchmark& benchmark : kBenchmarks)
    std::fprintf(out, "  %-11s %s\n", benchmark.name, benchmark.summary);
  std::fprintf(out, "\n`switchyard bench BENCHMARK --help` tells its flags.\n");
}

}  // namespace

int BenchCommand(absl::Span<const std::string> args) {
  if (!args.empty() && (args[0] == "--help" || args[0] == "-h")) {
    PrintHelp(stdout);
    return kExitOk;
  }
  for (const Benchmark& benchmark : kBenchmarks) {
    if (!args.empty() && args[0] == benchmark.name)
      return benchmark.run(args.subspan(1));
  }
  std::fprintf(stderr, "switchyard bench: %s\n",
               args.empty()
                   ? "which one?"
                   : ("there is no benchmark '" + args[0] + "'").c_str());
  PrintHelp(stderr);
  return kExitUsage;
}

}  // namespace switchyard
