#include "cli/worker.h"

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "cli/worker_flags.h"
#include "kernels/device.h"
#include "kernels/status.h"
#include "log/log.h"
#include "worker/executor.h"
#include "worker/gloo_collective.h"
#include "worker/peer_collective.h"
#include "worker/worker_main.h"

namespace switchyard {
namespace {

absl::StatusOr<WorkerBackend> MakeBackend(const WorkerOptions& options) {
  std::string why_cpu;
  const std::string spec = DeviceOfRank(options.device, /*rank=*/0,
                                        /*num_ranks=*/1, &why_cpu);
  if (!why_cpu.empty())
    Log(LogLevel::kInfo, absl::StrCat("running on the CPU: ", why_cpu));
  SY_ASSIGN_OR_RETURN(std::unique_ptr<Device> device,
                      MakeDevice(spec, options.num_threads));
  WorkerBackend backend;
  backend.make_collective = MakeGlooCollective;
  if (device->type() == DeviceType::kCuda) {
    backend.make_collective =
        [device = device.get(), own_all_reduce = options.own_all_reduce](
            const CollectiveOptions& collective, Rendezvous& rendezvous)
        -> absl::StatusOr<std::unique_ptr<Collective>> {
      // NCCL takes the thread's current GPU, which this makes the rank's.
      SY_RETURN_IF_ERROR(device->Synchronize());
      return MakePeerCollective({collective, own_all_reduce}, rendezvous);
    };
  }
  backend.executor = std::make_unique<Executor>(std::move(device));
  return backend;
}

}  // namespace

int WorkerCommand(absl::Span<const std::string> args) {
  WorkerOptions options;
  if (std::optional<int> code = ParseWorkerFlags(args, &options)) return *code;
  return WorkerMain(options, MakeBackend);
}

}  // namespace switchyard
