// switchyard prune: a checkpoint of one placement, taken out of a supernet.
#ifndef SWITCHYARD_CLI_PRUNE_H_
#define SWITCHYARD_CLI_PRUNE_H_

#include <ostream>
#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"

namespace switchyard {

struct PruneOptions {
  std::string model_dir;
  std::string out_dir;    // made if need be; must be empty
  std::string placement;  // a preset, or mixer names separated by commas
  std::string presets;    // a presets file; empty: none
};

// Writes an HF checkpoint whose layers have the placement's mixers and nothing
// else: config.json (decoder type fixed when all layers are alike, else
// pattern), model.safetensors with the weights bit for bit as they were, and
// copies of the tokenizer's and all other small files. What was written is read
// back and checked. Errors name the file or field; AlreadyExists: `out_dir` has
// something in it.
absl::Status Prune(const PruneOptions& options, std::ostream& out);

// The sub-command: `args` are those after its name; returns the exit code.
int PruneCommand(absl::Span<const std::string> args);

}  // namespace switchyard

#endif  // SWITCHYARD_CLI_PRUNE_H_
