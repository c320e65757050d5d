// A child process of this very binary: how `serve` starts its workers, and
// `align` and `bench` a server of their own.
#ifndef SWITCHYARD_CLI_SUBPROCESS_H_
#define SWITCHYARD_CLI_SUBPROCESS_H_

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace switchyard {

// Owns the child: the destructor kills and reaps it. One thread uses it.
class Subprocess {
 public:
  // Runs this binary with `args`; its stdout is read with ReadLine, its stderr
  // is ours. The child dies with this process, whatever ends it.
  static absl::StatusOr<std::unique_ptr<Subprocess>> Start(
      const std::vector<std::string>& args);
  ~Subprocess();
  Subprocess(const Subprocess&) = delete;
  Subprocess& operator=(const Subprocess&) = delete;

  // The next line of its stdout, without the newline. DeadlineExceeded;
  // Unavailable when it closed its stdout (it ended).
  absl::StatusOr<std::string> ReadLine(absl::Time deadline);
  // Reads lines until one contains `label`, and returns what follows it.
  absl::StatusOr<std::string> ReadAfter(const std::string& label,
                                        absl::Time deadline);

  pid_t pid() const { return pid_; }
  void Signal(int signal_number);
  // The exit status, or 128 + the signal that ended it; DeadlineExceeded while
  // it runs on.
  absl::StatusOr<int> Wait(absl::Time deadline);

 private:
  Subprocess(pid_t pid, int stdout_fd) : pid_(pid), stdout_fd_(stdout_fd) {}

  const pid_t pid_;
  const int stdout_fd_;
  bool reaped_ = false;
  int exit_code_ = 0;
  std::string buffer_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_CLI_SUBPROCESS_H_
