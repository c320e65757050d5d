// What a worker process does with a model, as its gRPC service sees it: the
// seam between the wire (WorkerService) and the execution (Executor).
#ifndef SWITCHYARD_WORKER_STEP_EXECUTOR_H_
#define SWITCHYARD_WORKER_STEP_EXECUTOR_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "switchyard/v1/worker.pb.h"
#include "worker/collective.h"

namespace switchyard {

// How far Load has come. Written by the executor, read by GetStatus.
struct LoadProgress {
  std::atomic<uint64_t> bytes_loaded{0};
  std::atomic<uint64_t> bytes_total{0};
};

// One rank of a model. The service calls every method from one thread, in the
// order Load, AllocateCache, then any number of the others; it never calls one
// after Load, AllocateCache or Execute has failed. Requests come from another
// process: a bad one yields a Status, never a crash.
class StepExecutor {
 public:
  virtual ~StepExecutor() = default;

  // Loads this rank's slices of the model. `request.rank`, `world_size` agree
  // with `collective`, which outlives the executor. Errors:
  // kInvalidArgument, kNotFound, kFailedPrecondition (config_fingerprint of
  // another model; a dimension that the world size does not divide),
  // kUnimplemented; each names the file, field or tensor.
  virtual absl::StatusOr<v1::ConfigureResponse> Load(
      const v1::ConfigureRequest& request, Collective& collective,
      LoadProgress& progress) = 0;

  // Allocates the cache arena. kResourceExhausted if it does not fit.
  virtual absl::Status AllocateCache(uint64_t arena_bytes) = 0;

  // Runs one step, in the order worker.proto gives. The executor fills tokens,
  // prompt_logprobs (rank 0 only) and collective_ms; the caller fills step_id,
  // rank, code, message and execute_ms. After an error the group is over.
  virtual absl::StatusOr<v1::StepResult> Execute(const v1::StepPlan& plan) = 0;

  // Validates and warms a placement, one mixer name per layer; changes nothing
  // that a step can see. kFailedPrecondition names layer and mixer. At most one
  // placement is prepared at a time, until its commit or abort.
  virtual absl::Status PreparePlacement(
      uint64_t epoch, const std::vector<std::string>& mixer_names) = 0;
  // kFailedPrecondition unless `epoch` is the prepared one.
  virtual absl::Status CommitPlacement(uint64_t epoch) = 0;
  // Forgets the prepared placement; OK when none is prepared.
  virtual absl::Status AbortPlacement(uint64_t epoch) = 0;
};

// What a device brings: how to run steps, and how its ranks talk.
struct WorkerBackend {
  std::unique_ptr<StepExecutor> executor;
  CollectiveFactory make_collective;  // for world sizes above 1
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_STEP_EXECUTOR_H_
