#include "cli/serve.h"

#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/commands.h"
#include "cli/engine_flags.h"
#include "cli/flags.h"
#include "cli/subprocess.h"
#include "coordinator/coordinator_main.h"
#include "coordinator/stop_requests.h"
#include "kernels/device.h"
#include "kernels/status.h"
#include "log/log.h"
#include "rpc/host_port.h"

namespace switchyard {
namespace {

constexpr absl::Duration kWorkerStart = absl::Seconds(60);
constexpr absl::Duration kWorkerExit = absl::Seconds(5);

// A secret that only this process and its children can read: a file without a
// name, which they inherit open. Returns its path, as each of them sees it.
absl::StatusOr<std::string> MakeGroupToken() {
  unsigned char random[32];
  if (getrandom(random, sizeof(random), 0) != sizeof(random)) {
    return absl::InternalError(
        absl::StrCat("getrandom: ", std::strerror(errno)));
  }
  const std::string token = absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(random), sizeof(random)));
  const int fd = memfd_create("switchyard-group-token", /*flags=*/0);
  if (fd < 0 || write(fd, token.data(), token.size()) !=
                    static_cast<ssize_t>(token.size())) {
    return absl::InternalError(
        absl::StrCat("a file for the group's token: ", std::strerror(errno)));
  }
  return absl::StrCat("/proc/self/fd/", fd);
}

struct LocalWorkersOptions {
  int world_size = 1;
  std::string device = "auto";
  int threads = 0;  // per worker; 0: the machine's cores, shared out
  std::string all_reduce = "auto";
  std::vector<std::string> log_flags;
  std::string group_token_file;
};

void StartLog(const CoordinatorOptions& options) {
  LogOptions log;
  log.format = ParseLogFormat(options.log_format).value_or(log.format);
  log.level = ParseLogLevel(options.log_level).value_or(log.level);
  log.component = "coordinator";
  ConfigureLog(log);
}

// Says why nothing can be served, in the log's own format.
int FailServing(const absl::Status& status) {
  Log(LogLevel::kError, status.message(),
      {{"code", absl::StatusCodeToString(status.code())}});
  return kExitFailure;
}

// The workers of `serve`: processes of this binary, one per rank.
class LocalWorkers {
 public:
  absl::Status Start(const LocalWorkersOptions& options) {
    for (int rank = 0; rank < options.world_size; ++rank) {
      std::string why_cpu;
      const std::string device =
          DeviceOfRank(options.device, rank, options.world_size, &why_cpu);
      if (rank == 0 && !why_cpu.empty())
        Log(LogLevel::kInfo, absl::StrCat("running on the CPU: ", why_cpu));
      SY_ASSIGN_OR_RETURN(std::unique_ptr<Subprocess> process,
                          Subprocess::Start(Arguments(options, device)));
      processes_.push_back(std::move(process));
    }
    for (int rank = 0; rank < options.world_size; ++rank) {
      absl::StatusOr<std::string> address = processes_[rank]->ReadAfter(
          "worker listening on ", absl::Now() + kWorkerStart);
      if (!address.ok()) {
        return absl::UnavailableError(
            absl::StrCat("the worker of rank ", rank,
                         " did not start: ", address.status().message()));
      }
      addresses_.push_back(*std::move(address));
    }
    return absl::OkStatus();
  }

  const std::vector<std::string>& addresses() const { return addresses_; }

  // Waits for them, and tells which one ended badly; the rest is killed.
  void Finish() {
    const absl::Time deadline = absl::Now() + kWorkerExit;
    for (size_t rank = 0; rank < processes_.size(); ++rank) {
      const absl::StatusOr<int> code = processes_[rank]->Wait(deadline);
      if (!code.ok()) {
        Log(LogLevel::kError, "the worker did not end, and is killed",
            {{"rank", rank}});
        continue;
      }
      if (*code == 0) continue;
      Log(LogLevel::kError,
          *code > 128
              ? absl::StrCat("the worker was ended by signal ", *code - 128)
              : absl::StrCat("the worker ended with exit code ", *code),
          {{"rank", rank}});
    }
    processes_.clear();
  }

 private:
  static std::vector<std::string> Arguments(const LocalWorkersOptions& options,
                                            const std::string& device) {
    const int cores =
        std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    const int threads = options.threads > 0
                            ? options.threads
                            // One core is for the coordinator: OpenMP threads
                            // that share a core spin against each other.
                            : std::max(1, (cores - 1) / options.world_size);
    std::vector<std::string> arguments = {
        "worker",
        "--port=0",
        absl::StrCat("--device=", device),
        absl::StrCat("--threads=", threads),
        absl::StrCat("--all-reduce=", options.all_reduce),
        absl::StrCat("--group-token-file=", options.group_token_file),
        "--exit-with-parent"};
    arguments.insert(arguments.end(), options.log_flags.begin(),
                     options.log_flags.end());
    return arguments;
  }

  std::vector<std::unique_ptr<Subprocess>> processes_;  // by rank
  std::vector<std::string> addresses_;
};

}  // namespace

int ServeCommand(absl::Span<const std::string> args) {
  CoordinatorOptions options;
  LocalWorkersOptions local;
  FlagSet flags("switchyard serve",
                "Serves a model from this machine: starts one worker per rank, "
                "and the coordinator that clients talk to. Prints the "
                "addresses when it is ready; Ctrl-C lets running streams end, "
                "then stops.",
                "--model DIR [flags]");
  flags.String("model", &options.model_dir, "DIR",
               "the checkpoint: config.json, safetensors, tokenizer.json",
               kOptional);
  flags.Int("tensor-parallel-size", &local.world_size, 1, 1024,
            "ranks that share the model");
  flags.Choice(
      "device", &local.device, {"auto", "cpu", "cuda"},
      "what they run on; auto: a GPU each if there are as many, else the "
      "CPU");
  flags.Int("threads", &local.threads, 0, 1024,
            "of each rank on the CPU; 0: all cores but one, shared out");
  flags.Choice("all-reduce", &local.all_reduce, {"auto", "nccl"},
               "between GPUs; auto: a kernel of our own for short messages "
               "where they reach each other's memory");
  AddEngineFlags(&options, &flags);
  if (std::optional<int> code = flags.ParseOrExitCode(args)) return *code;
  StopRequests stop;
  StartLog(options);
  local.log_flags = {absl::StrCat("--log-format=", options.log_format),
                     absl::StrCat("--log-level=", options.log_level)};

  absl::StatusOr<std::unique_ptr<CoordinatorModel>> model =
      LoadCoordinatorModel(options, local.world_size);
  if (!model.ok()) return FailServing(model.status());
  absl::StatusOr<std::string> token_file = MakeGroupToken();
  if (!token_file.ok()) return FailServing(token_file.status());
  options.group.token_file = local.group_token_file = *std::move(token_file);
  LocalWorkers workers;
  if (absl::Status status = workers.Start(local); !status.ok()) {
    return FailServing(status);
  }
  const int exit_code =
      RunCoordinator(options, model->get(), workers.addresses(), &stop);
  workers.Finish();
  return exit_code;
}

int CoordinatorCommand(absl::Span<const std::string> args) {
  CoordinatorOptions options;
  std::vector<std::string> workers;
  FlagSet flags("switchyard coordinator",
                "Serves a model with workers that run elsewhere, each started "
                "with `switchyard worker`. Every one of them, and this "
                "machine, must see the checkpoint under the same path.",
                "--model DIR --workers HOST:PORT,... [flags]");
  flags.String("model", &options.model_dir, "DIR",
               "the checkpoint: config.json, safetensors, tokenizer.json",
               kOptional);
  flags.List("workers", &workers, "HOST:PORT,...",
             "the ranks, in order; their number is the tensor parallel size",
             kRequired);
  AddEngineFlags(&options, &flags);
  AddGroupFlags(&options.group, &flags);
  if (std::optional<int> code = flags.ParseOrExitCode(args)) return *code;
  for (const std::string& worker : workers) {
    const absl::Status status = CheckHostPort(worker);
    if (status.ok()) continue;
    std::fprintf(stderr, "switchyard coordinator: --workers: %s\n",
                 std::string(status.message()).c_str());
    return kExitUsage;
  }
  StopRequests stop;
  StartLog(options);

  absl::StatusOr<std::unique_ptr<CoordinatorModel>> model =
      LoadCoordinatorModel(options, static_cast<int32_t>(workers.size()));
  if (!model.ok()) return FailServing(model.status());
  return RunCoordinator(options, model->get(), workers, &stop);
}

}  // namespace switchyard
