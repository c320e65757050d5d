// The command line of `switchyard worker`.
#ifndef SWITCHYARD_CLI_WORKER_FLAGS_H_
#define SWITCHYARD_CLI_WORKER_FLAGS_H_

#include <optional>
#include <string>

#include "absl/types/span.h"
#include "worker/worker_main.h"

namespace switchyard {

// Reads `args`, without the program's and the command's name, into `options`.
// Empty when the worker is to run, else the process's exit code, after the help
// (stdout) or one line that names the flag (stderr).
std::optional<int> ParseWorkerFlags(absl::Span<const std::string> args,
                                    WorkerOptions* options);

}  // namespace switchyard

#endif  // SWITCHYARD_CLI_WORKER_FLAGS_H_
