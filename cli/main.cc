// The `switchyard` binary: picks the sub-command.
#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "cli/command_table.h"
#include "cli/flags.h"
#include "cli/output.h"
#include "coordinator/version.h"

namespace {

// What gRPC and protobuf print by themselves is for those who develop them, and
// would stand between the lines of our log; our errors say what matters.
void SilenceLibraries() {
  if (std::getenv("GRPC_VERBOSITY") != nullptr) return;
  gpr_set_log_function(+[](gpr_log_func_args*) {});
  google::protobuf::SetLogHandler(nullptr);
}

void PrintHelp(std::FILE* out) {
  std::fprintf(out,
               "Switchyard serves supernet language models: one checkpoint, "
               "many speeds, chosen per request.\n\n"
               "Usage: switchyard COMMAND [flags]\n\n");
  for (const switchyard::Command& command : switchyard::Commands()) {
    std::fprintf(out, "  %-12s %s\n", command.name, command.summary);
  }
  std::fprintf(
      out,
      "\n`switchyard COMMAND --help` tells a command's flags, `switchyard "
      "--version` the version. A first try:\n\n"
      "  switchyard serve --model DIR\n"
      "  switchyard generate --prompt \"Once upon a time\"\n");
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // a reader that went away is an error of the
                                  // write, not a signal
  SilenceLibraries();
  const std::vector<std::string> args(argv + 1, argv + argc);
  if (args.empty() || args[0] == "--help" || args[0] == "-h" ||
      args[0] == "help") {
    PrintHelp(args.empty() ? stderr : stdout);
    return switchyard::FinishOutput(
        "--help", args.empty() ? switchyard::kExitUsage : switchyard::kExitOk);
  }
  if (args[0] == "--version" || args[0] == "version") {
    std::printf("switchyard %s\n", switchyard::kVersion);
    return switchyard::FinishOutput("--version", switchyard::kExitOk);
  }
  for (const switchyard::Command& command : switchyard::Commands()) {
    if (args[0] != command.name) continue;
    return switchyard::FinishOutput(
        args[0], command.run(absl::MakeConstSpan(args).subspan(1)));
  }
  std::fprintf(
      stderr,
      "switchyard: there is no command '%s'; `switchyard --help` lists them\n",
      args[0].c_str());
  return switchyard::kExitUsage;
}
