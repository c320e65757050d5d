#include "cli/subprocess.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/status.h"

namespace switchyard {

absl::StatusOr<std::unique_ptr<Subprocess>> Subprocess::Start(
    const std::vector<std::string>& args) {
  int pipe_fds[2];
  if (pipe2(pipe_fds, O_CLOEXEC) != 0) {
    return absl::InternalError(absl::StrCat("pipe: ", std::strerror(errno)));
  }
  const std::string program = "/proc/self/exe";
  std::vector<char*> argv;
  std::string name = "switchyard";
  argv.push_back(name.data());
  for (const std::string& arg : args)
    argv.push_back(const_cast<char*>(arg.c_str()));
  argv.push_back(nullptr);

  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) {
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    return absl::InternalError(absl::StrCat("fork: ", std::strerror(errno)));
  }
  if (pid == 0) {
    // Between fork and exec of a threaded process: async-signal-safe calls
    // only.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);
    setpgid(0, 0);  // a terminal's Ctrl-C is the parent's to handle
    dup2(pipe_fds[1], STDOUT_FILENO);
    execv(program.c_str(), argv.data());
    _exit(127);
  }
  close(pipe_fds[1]);
  return std::unique_ptr<Subprocess>(new Subprocess(pid, pipe_fds[0]));
}

Subprocess::~Subprocess() {
  if (!reaped_) {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }
  close(stdout_fd_);
}

absl::StatusOr<std::string> Subprocess::ReadLine(absl::Time deadline) {
  while (true) {
    const size_t newline = buffer_.find('\n');
    if (newline != std::string::npos) {
      std::string line = buffer_.substr(0, newline);
      buffer_.erase(0, newline + 1);
      return line;
    }
    const int64_t left = absl::ToInt64Milliseconds(deadline - absl::Now());
    if (left <= 0)
      return absl::DeadlineExceededError("it said nothing in time");
    pollfd event = {stdout_fd_, POLLIN, 0};
    if (poll(&event, 1, static_cast<int>(std::min<int64_t>(left, 1000))) <= 0)
      continue;
    char bytes[4096];
    const ssize_t num_read = read(stdout_fd_, bytes, sizeof(bytes));
    if (num_read < 0 && errno == EINTR) continue;
    if (num_read <= 0) return absl::UnavailableError("it ended");
    buffer_.append(bytes, static_cast<size_t>(num_read));
  }
}

absl::StatusOr<std::string> Subprocess::ReadAfter(const std::string& label,
                                                  absl::Time deadline) {
  while (true) {
    SY_ASSIGN_OR_RETURN(const std::string line, ReadLine(deadline));
    const size_t at = line.find(label);
    if (at != std::string::npos) return line.substr(at + label.size());
  }
}

void Subprocess::Signal(int signal_number) {
  if (!reaped_) kill(pid_, signal_number);
}

absl::StatusOr<int> Subprocess::Wait(absl::Time deadline) {
  while (!reaped_) {
    int status = 0;
    const pid_t done = waitpid(pid_, &status, WNOHANG);
    if (done == pid_) {
      reaped_ = true;
      exit_code_ =
          WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      break;
    }
    if (absl::Now() >= deadline)
      return absl::DeadlineExceededError("it still runs");
    absl::SleepFor(absl::Milliseconds(2));
  }
  return exit_code_;
}

}  // namespace switchyard
