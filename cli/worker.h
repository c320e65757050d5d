// The command that runs one rank.
#ifndef SWITCHYARD_CLI_WORKER_H_
#define SWITCHYARD_CLI_WORKER_H_

#include <string>

#include "absl/types/span.h"

namespace switchyard {

// `switchyard worker`. `args` without the command's name; returns the exit
// code.
int WorkerCommand(absl::Span<const std::string> args);

}  // namespace switchyard

#endif  // SWITCHYARD_CLI_WORKER_H_
