#include "cli/worker_flags.h"

#include <cstdio>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "cli/flags.h"

namespace switchyard {
namespace {

bool IsDevice(absl::string_view device) {
  int number = 0;
  return device == "auto" || device == "cpu" || device == "cuda" ||
         (absl::ConsumePrefix(&device, "cuda:") &&
          absl::SimpleAtoi(device, &number) && number >= 0);
}

}  // namespace

std::optional<int> ParseWorkerFlags(absl::Span<const std::string> args,
                                    WorkerOptions* options) {
  std::string all_reduce = options->own_all_reduce ? "auto" : "nccl";
  std::string log_format = "text";
  std::string log_level = "info";
  FlagSet flags(
      "switchyard worker",
      "Runs one rank of a tensor-parallel group. It waits for a coordinator "
      "(`switchyard coordinator --workers HOST:PORT,...`), which tells it the "
      "model and its rank, and serves that one group until the coordinator "
      "goes away. Then it exits; let your process manager start it again. "
      "`switchyard serve` starts its own workers.",
      "[flags]");
  flags.String("listen", &options->listen, "ADDRESS",
               "where it listens; 0.0.0.0 for every interface");
  flags.Int("port", &options->port, 0, 65535,
            "of the coordinator's calls; 0 picks a free one");
  flags.Int("health-port", &options->health_port, 0, 65535,
            "of grpc.health.v1 in plaintext, for probes; 0 picks a free one "
            "(default: no such port)");
  flags.String("device", &options->device, "auto|cpu|cuda|cuda:N",
               "what it runs on; auto: CUDA if there is any");
  flags.Int("threads", &options->num_threads, 0, 1024,
            "of the CPU device; 0: as many as there are cores");
  flags.Choice("all-reduce", &all_reduce, {"auto", "nccl"},
               "between GPUs; auto: a kernel of our own for short messages "
               "where they reach each other's memory");
  flags.Duration("collective-timeout", &options->collective_timeout,
                 "for a step that waits for a silent peer",
                 absl::Milliseconds(1));
  flags.Bool("exit-with-parent", &options->exit_with_parent,
             "stop when the process that started this one does");

  flags.Section("Who may call");
  flags.String("group-tls-cert", &options->group.tls.cert, "FILE",
               "our certificate, for coordinator and ranks (PEM); read again "
               "when it changes, like all of these");
  flags.String("group-tls-key", &options->group.tls.key, "FILE",
               "its key (PEM)");
  flags.String("group-tls-ca", &options->group.tls.ca, "FILE",
               "nobody may call without a certificate that these CAs signed "
               "(PEM)");
  flags.String("group-token-file", &options->group.token_file, "FILE",
               "the secrets of which callers must bring one, one a line; the "
               "first is ours to show");

  flags.Section("Logs, on stderr");
  flags.Choice("log-format", &log_format, {"text", "json"},
               "one line per event, for people or for machines");
  flags.Choice("log-level", &log_level, {"debug", "info", "warning", "error"},
               "what is logged at least; debug: every step");
  if (std::optional<int> code = flags.ParseOrExitCode(args)) return code;
  if (!IsDevice(options->device)) {
    std::fprintf(stderr,
                 "switchyard worker: --device=%s: expected auto, cpu, cuda or "
                 "cuda:N (see switchyard worker --help)\n",
                 options->device.c_str());
    return kExitUsage;
  }
  options->own_all_reduce = all_reduce == "auto";
  options->log_format = ParseLogFormat(log_format).value_or(LogFormat::kText);
  options->log_level = ParseLogLevel(log_level).value_or(LogLevel::kInfo);
  return std::nullopt;
}

}  // namespace switchyard
