// The sub-commands of the `switchyard` binary. Each parses its own arguments
// (those after its name), talks on stdout, complains in one line on stderr, and
// returns the process's exit code (flags.h).
#ifndef SWITCHYARD_CLI_COMMANDS_H_
#define SWITCHYARD_CLI_COMMANDS_H_

#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace switchyard {

// Streams one request to the terminal.
int GenerateCommand(absl::Span<const std::string> args);
// get, set, list, define, delete, mixers.
int PlacementCommand(absl::Span<const std::string> args);
// Compares a model with a golden file.
int AlignCommand(absl::Span<const std::string> args);

// Prints `switchyard COMMAND: message` on stderr and returns kExitFailure.
int Fail(const char* command, const absl::Status& status);

}  // namespace switchyard

#endif  // SWITCHYARD_CLI_COMMANDS_H_
