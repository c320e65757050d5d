#include "worker/worker_main.h"

#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "rpc/host_port.h"
#include "worker/worker_service.h"

namespace switchyard {
namespace {

// Leaving may take this long, then the kernel ends the process: a group that
// is over must not hold its devices because a step is stuck.
constexpr unsigned kExitSeconds = 10;

int Fail(const absl::Status& status) {
  Log(LogLevel::kError, status.message(),
      {{"code", absl::StatusCodeToString(status.code())}});
  return 1;
}

int Serve(const WorkerOptions& options,
          const WorkerBackendFactory& make_backend) {
  // Blocked here, and so in every thread that starts later; only sigwait below
  // takes them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);  // a lost peer is an error of the write
  if (options.exit_with_parent) prctl(PR_SET_PDEATHSIG, SIGTERM);

  absl::StatusOr<WorkerBackend> backend = make_backend(options);
  if (!backend.ok()) return Fail(backend.status());
  WorkerServiceOptions service_options;
  service_options.host = options.listen;
  service_options.port = options.port;
  service_options.health_port = options.health_port;
  service_options.session.group = options.group;
  service_options.session.collective_timeout = options.collective_timeout;
  absl::StatusOr<std::unique_ptr<WorkerService>> service = WorkerService::Start(
      *std::move(backend), service_options, [] { kill(getpid(), SIGTERM); });
  if (!service.ok()) return Fail(service.status());
  if (const std::optional<int> port = (*service)->health_port()) {
    std::printf("health on %s\n", JoinHostPort(options.listen, *port).c_str());
  }
  const std::string address = JoinHostPort(options.listen, (*service)->port());
  Log(LogLevel::kInfo, "listening", {{"address", address}});
  std::printf("worker listening on %s\n", address.c_str());
  std::fflush(stdout);

  int signal_number = 0;
  sigwait(&signals, &signal_number);  // from outside, or from our own session
  alarm(kExitSeconds);
  const absl::Status outcome =
      (*service)->session().outcome().value_or(absl::OkStatus());
  service->reset();
  return outcome.ok() ? 0 : Fail(outcome);
}

}  // namespace

int WorkerMain(const WorkerOptions& options,
               const WorkerBackendFactory& make_backend) {
  LogOptions log;
  log.format = options.log_format;
  log.level = options.log_level;
  log.component = "worker";
  ConfigureLog(log);
  return Serve(options, make_backend);
}

}  // namespace switchyard
