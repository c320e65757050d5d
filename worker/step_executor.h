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
// after Load, AllocateCache, Launch or Collect has failed. Requests come from
// another process: a bad one yields a Status, never a crash.
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

  // Steps that may be launched and not collected.
  static constexpr int kMaxSteps = 2;

  // Begins one step, in the order worker.proto gives, and returns without
  // waiting for it where the device works on its own. The plan may name tokens
  // that steps under way still have to sample. REQUIRES: num_steps() <
  // kMaxSteps. After an error the group is over.
  virtual absl::Status Launch(const v1::StepPlan& plan) = 0;
  // Steps launched and not collected.
  virtual int num_steps() const = 0;
  // Whether the oldest of them is done, or has failed. REQUIRES: num_steps() >
  // 0.
  virtual absl::StatusOr<bool> Ready() = 0;
  // Waits for the oldest of them. The executor fills tokens, prompt_logprobs
  // (rank 0 only), collective_ms and what is known of the device's time; the
  // caller fills step_id, rank, code, message and execute_ms. After an error
  // the group is over. REQUIRES: num_steps() > 0.
  virtual absl::StatusOr<v1::StepResult> Collect() = 0;

  // A step from its plan to its result. REQUIRES: num_steps() == 0.
  absl::StatusOr<v1::StepResult> Execute(const v1::StepPlan& plan) {
    if (absl::Status status = Launch(plan); !status.ok()) return status;
    return Collect();
  }

  // Validates a placement, one mixer name per layer, and finds out what warming
  // it takes; changes nothing that a step can see. kFailedPrecondition names
  // layer and mixer. At most one placement is prepared at a time, until its
  // commit or abort.
  virtual absl::Status PreparePlacement(
      uint64_t epoch, const std::vector<std::string>& mixer_names) = 0;
  // Does a piece of the prepared placement's warming, about a step's worth of
  // work; true while there is more. Steps may be launched in between. REQUIRES:
  // num_steps() < kMaxSteps.
  virtual absl::StatusOr<bool> Warm() = 0;
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
