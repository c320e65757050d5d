// switchyard inspect: what a model is made of and what it costs, without
// loading it.
#ifndef SWITCHYARD_CLI_INSPECT_H_
#define SWITCHYARD_CLI_INSPECT_H_

#include <cstdint>
#include <ostream>
#include <string>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "model/cache_spec.h"

namespace switchyard {

struct InspectOptions {
  std::string model_dir;       // or
  std::string random_init;     // a named shape
  std::string presets;         // a presets file; empty: none
  std::string placement;       // one more placement to show; empty: none
  std::string device = "cpu";  // whose element sizes count: cpu or cuda
  int32_t world_size = 1;
  int32_t block_size = kDefaultBlockSize;
  int32_t context_tokens = 0;  // 0: the model's context length
};

// Prints layers, mixers, parameters, bytes per rank, and cache bytes by
// placement. The weights' headers are read and checked; a directory that has a
// config.json and no weights is described from that alone, and said so.
absl::Status Inspect(const InspectOptions& options, std::ostream& out);

// The sub-command: `args` are those after its name; returns the exit code.
int InspectCommand(absl::Span<const std::string> args);

}  // namespace switchyard

#endif  // SWITCHYARD_CLI_INSPECT_H_
