#include "worker/worker_main.h"

#include <pthread.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "rpc/host_port.h"
#include "worker/worker_service.h"

namespace switchyard {
namespace {

// Leaving may take this long, then the kernel ends the process: a group that
// is over must not hold its devices because a step is stuck.
constexpr unsigned kExitSeconds = 10;

absl::StatusOr<int> ParseInt(absl::string_view flag, absl::string_view text,
                             int low, int high) {
  int value;
  if (!absl::SimpleAtoi(text, &value) || value < low || value > high) {
    return absl::InvalidArgumentError(
        absl::StrCat(flag, " is \"", text, "\"; it must be a number from ", low,
                     " to ", high));
  }
  return value;
}

absl::Status CheckDevice(absl::string_view device) {
  absl::string_view index = device;
  int number;
  if (device == "auto" || device == "cpu" || device == "cuda" ||
      (absl::ConsumePrefix(&index, "cuda:") &&
       absl::SimpleAtoi(index, &number) && number >= 0)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "--device is \"", device, "\"; it must be auto, cpu, cuda or cuda:N"));
}

int Fail(const absl::Status& status, int exit_code) {
  Log(LogLevel::kError, status.message(),
      {{"code", absl::StatusCodeToString(status.code())}});
  return exit_code;
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
  if (!backend.ok()) return Fail(backend.status(), 1);
  WorkerServiceOptions service_options;
  service_options.host = options.listen;
  service_options.port = options.port;
  service_options.health_port = options.health_port;
  service_options.session.group = options.group;
  service_options.session.collective_timeout = options.collective_timeout;
  absl::StatusOr<std::unique_ptr<WorkerService>> service = WorkerService::Start(
      *std::move(backend), service_options, [] { kill(getpid(), SIGTERM); });
  if (!service.ok()) return Fail(service.status(), 1);
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
  return outcome.ok() ? 0 : Fail(outcome, 1);
}

}  // namespace

std::string WorkerHelp() {
  return
      R"(switchyard worker: one rank of a tensor-parallel group, for a coordinator to find.

It waits for a coordinator (`switchyard coordinator --workers HOST:PORT,...`), which tells it the
model and its rank, and serves that one group until the coordinator goes away. Then it exits; let
your process manager start it again. `switchyard serve` starts its own workers.

Usage: switchyard worker [flags]
  --port N                 port to listen on; 0 picks one (default 9000)
  --listen ADDRESS         address to listen on; 0.0.0.0 for all (default 127.0.0.1)
  --device DEVICE          auto, cpu, cuda or cuda:N (default auto: CUDA if there is one)
  --threads N              threads of the CPU device (default: as many as there are cores)
  --all-reduce auto|nccl   auto: short messages between GPUs of one host that reach each other's memory
                           take a kernel of our own, everything else NCCL (default auto)
  --collective-timeout S   seconds that a step waits for a silent peer (default 20)
  --health-port N          port for grpc.health.v1 in plaintext, for probes; 0 picks one (default: none)
  --group-tls-cert FILE    our certificate, for coordinator and ranks (PEM); read again when it changes
  --group-tls-key FILE     its key (PEM)
  --group-tls-ca FILE      signs the certificates of the group (PEM): nobody else may call
  --group-token-file FILE  the secret that callers must bring, one a line; the first is ours to show
  --exit-with-parent       stop when the process that started this one does
  --log-format FORMAT      text or json; one line per event on stderr (default text)
  --log-level LEVEL        debug, info, warning or error (default info)
  --help                   this text
)";
}

absl::StatusOr<WorkerOptions> ParseWorkerOptions(
    absl::Span<const std::string> args) {
  WorkerOptions options;
  for (size_t i = 0; i < args.size(); ++i) {
    std::string flag = args[i];
    std::optional<std::string> value;  // of --flag=value
    if (const size_t equals = flag.find('=');
        absl::StartsWith(flag, "--") && equals != std::string::npos) {
      value = flag.substr(equals + 1);
      flag.resize(equals);
    }
    if (flag == "--help" || flag == "-h") {
      options.help = true;
      continue;
    }
    if (flag == "--exit-with-parent" && !value.has_value()) {
      options.exit_with_parent = true;
      continue;
    }
    const std::map<std::string, std::string*> files = {
        {"--group-tls-cert", &options.group.tls.cert},
        {"--group-tls-key", &options.group.tls.key},
        {"--group-tls-ca", &options.group.tls.ca},
        {"--group-token-file", &options.group.token_file}};
    const auto file = files.find(flag);
    if (file == files.end() && flag != "--port" && flag != "--health-port" &&
        flag != "--listen" && flag != "--device" && flag != "--threads" &&
        flag != "--all-reduce" && flag != "--collective-timeout" &&
        flag != "--log-format" && flag != "--log-level") {
      return absl::InvalidArgumentError(absl::StrCat(
          "unknown argument \"", args[i], "\"; --help lists the flags"));
    }
    if (!value.has_value()) {
      if (i + 1 == args.size())
        return absl::InvalidArgumentError(absl::StrCat(flag, " needs a value"));
      value = args[++i];
    }
    absl::StatusOr<int> number = 0;
    if (file != files.end()) {
      *file->second = *value;
    } else if (flag == "--listen") {
      options.listen = *value;
    } else if (flag == "--device") {
      const absl::Status known = CheckDevice(*value);
      if (!known.ok()) return known;
      options.device = *value;
    } else if (flag == "--all-reduce") {
      if (*value != "auto" && *value != "nccl") {
        return absl::InvalidArgumentError(absl::StrCat(
            "--all-reduce is \"", *value, "\"; it must be auto or nccl"));
      }
      options.own_all_reduce = *value == "auto";
    } else if (flag == "--log-format") {
      const std::optional<LogFormat> format = ParseLogFormat(*value);
      if (!format.has_value()) {
        return absl::InvalidArgumentError(absl::StrCat(
            "--log-format is \"", *value, "\"; it must be text or json"));
      }
      options.log_format = *format;
    } else if (flag == "--log-level") {
      const std::optional<LogLevel> level = ParseLogLevel(*value);
      if (!level.has_value()) {
        return absl::InvalidArgumentError(
            absl::StrCat("--log-level is \"", *value,
                         "\"; it must be debug, info, warning or error"));
      }
      options.log_level = *level;
    } else if (flag == "--port") {
      number = ParseInt(flag, *value, 0, 65535);
      options.port = number.value_or(0);
    } else if (flag == "--health-port") {
      number = ParseInt(flag, *value, 0, 65535);
      options.health_port = number.value_or(0);
    } else if (flag == "--threads") {
      number = ParseInt(flag, *value, 1, 1024);
      options.num_threads = number.value_or(0);
    } else {
      number = ParseInt(flag, *value, 1, 86400);
      options.collective_timeout = absl::Seconds(number.value_or(0));
    }
    if (!number.ok()) return number.status();
  }
  return options;
}

int WorkerMain(absl::Span<const std::string> args,
               const WorkerBackendFactory& make_backend) {
  const absl::StatusOr<WorkerOptions> options = ParseWorkerOptions(args);
  if (!options.ok()) return Fail(options.status(), 2);
  if (options->help) {
    std::fputs(WorkerHelp().c_str(), stdout);
    return 0;
  }
  LogOptions log;
  log.format = options->log_format;
  log.level = options->log_level;
  log.component = "worker";
  ConfigureLog(log);
  return Serve(*options, make_backend);
}

}  // namespace switchyard
