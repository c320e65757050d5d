#include "cli/command_table.h"

#include "cli/bench.h"
#include "cli/commands.h"
#include "cli/inspect.h"
#include "cli/prune.h"
#include "cli/serve.h"
#include "cli/worker.h"

namespace switchyard {

absl::Span<const Command> Commands() {
  static constexpr Command kCommands[] = {
      {"serve", "serves a model with workers on this machine", ServeCommand},
      {"coordinator", "serves a model with workers that run elsewhere",
       CoordinatorCommand},
      {"worker", "runs one rank of a tensor-parallel group", WorkerCommand},
      {"generate", "streams one request to the terminal", GenerateCommand},
      {"placement", "shows and switches the placements of a server",
       PlacementCommand},
      {"align", "compares a model with a golden file", AlignCommand},
      {"inspect", "shows a checkpoint's layers, mixers and sizes",
       InspectCommand},
      {"prune", "extracts a fixed-placement checkpoint from a supernet",
       PruneCommand},
      {"bench", "measures kernels, steps, collectives and whole servers",
       BenchCommand},
  };
  return kCommands;
}

}  // namespace switchyard
