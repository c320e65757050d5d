// The commands that run a server.
#ifndef SWITCHYARD_CLI_SERVE_H_
#define SWITCHYARD_CLI_SERVE_H_

#include <string>

#include "absl/types/span.h"

namespace switchyard {

// `switchyard serve`: starts the workers on this machine, then coordinates
// them. `args` without the command's name; returns the exit code.
int ServeCommand(absl::Span<const std::string> args);

// `switchyard coordinator`: coordinates workers that run elsewhere.
int CoordinatorCommand(absl::Span<const std::string> args);

}  // namespace switchyard

#endif  // SWITCHYARD_CLI_SERVE_H_
