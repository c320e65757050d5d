// The `switchyard` binary: picks the sub-command.
#include <csignal>
#include <cstdio>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "cli/command_table.h"
#include "cli/flags.h"

namespace {

void PrintHelp(std::FILE* out) {
  std::fprintf(out,
               "Switchyard serves supernet language models: one checkpoint, "
               "many speeds, chosen per request.\n\n"
               "usage: switchyard COMMAND [flags]\n\n");
  for (const switchyard::Command& command : switchyard::Commands()) {
    std::fprintf(out, "  %-12s %s\n", command.name, command.summary);
  }
  std::fprintf(
      out,
      "\n`switchyard COMMAND --help` tells a command's flags. A first try:\n\n"
      "  switchyard serve --model DIR\n"
      "  switchyard generate --prompt \"Once upon a time\"\n");
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // a reader that went away is an error of the
                                  // write, not a signal
  const std::vector<std::string> args(argv + 1, argv + argc);
  if (args.empty() || args[0] == "--help" || args[0] == "-h" ||
      args[0] == "help") {
    PrintHelp(args.empty() ? stderr : stdout);
    return args.empty() ? switchyard::kExitUsage : switchyard::kExitOk;
  }
  for (const switchyard::Command& command : switchyard::Commands()) {
    if (args[0] == command.name)
      return command.run(absl::MakeConstSpan(args).subspan(1));
  }
  std::fprintf(
      stderr,
      "switchyard: there is no command '%s'; `switchyard --help` lists them\n",
      args[0].c_str());
  return switchyard::kExitUsage;
}
