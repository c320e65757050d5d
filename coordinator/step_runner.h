// What runs the engine's steps: one tensor-parallel group, as the engine sees
// it. WorkerGroup is the real one; engine tests use a fake.
#ifndef SWITCHYARD_COORDINATOR_STEP_RUNNER_H_
#define SWITCHYARD_COORDINATOR_STEP_RUNNER_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "switchyard/v1/worker.pb.h"

namespace switchyard {

struct RankFacts {
  std::string address;
  std::string device;
  uint64_t weights_bytes = 0;
  uint64_t workspace_bytes = 0;
};

// Constant once the group is ready.
struct GroupFacts {
  std::vector<RankFacts> ranks;   // [world_size], by rank
  uint64_t cache_bytes = 0;       // the arena of each rank
  uint32_t kv_element_bytes = 0;  // of attention blocks (and conv states)
};

// One rank's share of a step.
struct RankStep {
  absl::Duration execute_time;
  absl::Duration collective_time;  // of which in collectives
  // By the device's own clock, if it has one: else both are 0.
  absl::Duration device_time;
  absl::Duration device_idle;  // since the step before it
  bool replayed_graph = false;
  absl::Duration record_time;  // spent recording a graph; 0: recorded none
};

// A step on which all ranks agree.
struct StepOutcome {
  v1::StepResult result;        // rank 0's: tokens and prompt log-probabilities
  absl::Duration execute_time;  // of the slowest rank
  absl::Duration collective_time;  // of that rank, in collectives
  absl::Duration round_trip;       // from Submit to the last rank's result
  std::vector<RankStep> ranks;     // [world_size], by rank
};

// The payload of the status of a lost group that holds the rank at fault, as a
// decimal number; not there if no single rank is.
inline constexpr char kLostRankPayload[] = "switchyard/lost-rank";

// A status with this payload says that the group was ended by its own
// coordinator: nothing is wrong with it.
inline constexpr char kShutDownPayload[] = "switchyard/shut-down";

// Thread safety: Submit and NextResult are called by one thread, the engine's;
// everything else may be called from any thread at any time.
//
// Once a step fails, a rank disagrees, vanishes or misses its deadline, the
// group is lost: every method returns the same kUnavailable status, which names
// the rank, its address and the step.
class StepRunner {
 public:
  // Plans submitted whose results have not been taken.
  static constexpr int kMaxStepsInFlight = 2;

  virtual ~StepRunner() = default;

  virtual const GroupFacts& facts() const = 0;

  // Sends a plan to every rank and returns without waiting for its execution.
  // REQUIRES: step ids are 1, 2, 3, ...; fewer than kMaxStepsInFlight in
  // flight.
  virtual absl::Status Submit(const v1::StepPlan& plan) = 0;

  // Waits for the oldest step in flight. REQUIRES: one is in flight.
  virtual absl::StatusOr<StepOutcome> NextResult() = 0;

  // Phase one on every rank: validates and warms, changes nothing that a step
  // can see. If any rank refuses, all forget it, and kAborted carries the
  // refusing rank's message. One placement at a time. Blocks; steps go on.
  virtual absl::Status PreparePlacement(
      uint64_t epoch, const std::vector<std::string>& mixer_names) = 0;
  // Phase two, after every rank has prepared `epoch`. An error loses the group:
  // its ranks may no longer agree.
  virtual absl::Status CommitPlacement(uint64_t epoch) = 0;
  // Forgets a prepared placement instead of committing it.
  virtual absl::Status AbortPlacement(uint64_t epoch) = 0;

  // OK, or why the group is lost.
  virtual absl::Status health() const = 0;

  // Called once, from an unspecified thread, when the group is lost, even while
  // no step is in flight; at once if it is lost already. The callback must not
  // block or call back into the runner. REQUIRES: set before the first Submit.
  virtual void SetFailureCallback(
      std::function<void(const absl::Status&)> on_failure) = 0;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_STEP_RUNNER_H_
