// Every sub-command with what it is for.
#ifndef SWITCHYARD_CLI_COMMAND_TABLE_H_
#define SWITCHYARD_CLI_COMMAND_TABLE_H_

#include <string>

#include "absl/types/span.h"

namespace switchyard {

struct Command {
  const char* name;
  const char* summary;
  int (*run)(absl::Span<const std::string> args);
};

absl::Span<const Command> Commands();

}  // namespace switchyard

#endif  // SWITCHYARD_CLI_COMMAND_TABLE_H_
