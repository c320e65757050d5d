#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "cli/commands.h"
#include "cli/flags.h"

namespace switchyard {

int Fail(const char* command, const absl::Status& status) {
  // One line, whatever the message holds.
  std::string message = absl::StrReplaceAll(status.message(), {{"\n", "; "}});
  if (message.empty() && status.code() == absl::StatusCode::kUnimplemented) {
    message =
        "the server has no such method on this port: requests go to its "
        "--port (8000), placements to its --admin-port (8001)";
  }
  std::fprintf(stderr, "switchyard %s: %s (%s)\n", command, message.c_str(),
               absl::StatusCodeToString(status.code()).c_str());
  return kExitFailure;
}

}  // namespace switchyard
