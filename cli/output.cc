#include "cli/output.h"

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "cli/flags.h"

namespace switchyard {

int FailOutput(const std::string& command, int error) {
  if (error != EPIPE) {
    std::fprintf(stderr, "switchyard %s: cannot write to stdout: %s\n",
                 command.c_str(),
                 error == 0 ? "some of it is lost" : std::strerror(error));
  }
  return kExitFailure;
}

int FinishOutput(const std::string& command, int exit_code) {
  const bool had_failed = std::ferror(stdout) != 0;
  const bool flushed = std::fflush(stdout) == 0;
  if (exit_code != kExitOk || (flushed && !had_failed)) return exit_code;
  return FailOutput(command, flushed ? 0 : errno);
}

}  // namespace switchyard
