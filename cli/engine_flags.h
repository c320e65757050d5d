// The flags that `serve` and `coordinator` have in common.
#ifndef SWITCHYARD_CLI_ENGINE_FLAGS_H_
#define SWITCHYARD_CLI_ENGINE_FLAGS_H_

#include "cli/flags.h"
#include "coordinator/coordinator_main.h"

namespace switchyard {

// `options` is borrowed by `flags`.
void AddEngineFlags(CoordinatorOptions* options, FlagSet* flags);

// How `coordinator` shows itself to its workers. `files` is borrowed.
void AddGroupFlags(ClientFiles* files, FlagSet* flags);

}  // namespace switchyard

#endif  // SWITCHYARD_CLI_ENGINE_FLAGS_H_
