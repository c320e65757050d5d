#include "cli/command_table.h"

#include "cli/bench.h"
#include "cli/commands.h"
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
      {"bench", "measures", BenchCommand},
  };
  return kCommands;
}

}  // namespace switchyard
