// Who watches the engine: metrics and logs, without the loop knowing of either.
#ifndef SWITCHYARD_COORDINATOR_ENGINE_OBSERVER_H_
#define SWITCHYARD_COORDINATOR_ENGINE_OBSERVER_H_

#include <chrono>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "coordinator/step_runner.h"
#include "switchyard/v1/admin.pb.h"
#include "switchyard/v1/generation.pb.h"

namespace switchyard {

using SteadyTime = std::chrono::steady_clock::time_point;

class PlacementMetrics;

// What is known of one request from the edge to its last token. The engine
// fills in what it is and calls the observer at every station; the observer
// keeps the times here.
struct RequestTrace {
  std::string request_id;
  uint64_t sequence_id = 0;  // what the workers call it; 0: not queued yet
  std::string placement;     // PlacementTable::NameOf
  uint64_t epoch = 0;
  uint32_t num_prompt_tokens = 0;
  uint32_t max_tokens = 0;

  SteadyTime received;
  SteadyTime queued;
  SteadyTime scheduled;  // first in a step
  SteadyTime first_token;
  SteadyTime last_token;
  uint32_t num_generated = 0;
  uint32_t num_restarts = 0;  // its cache was rebuilt
  bool was_scheduled = false;
  PlacementMetrics* metrics = nullptr;  // the observer's, of `placement`
};

// The engine between two steps.
struct EngineState {
  int64_t num_running = 0;
  int64_t num_waiting = 0;
  int64_t num_preemptions = 0;  // since the start
  int64_t cache_used_bytes = 0;
  int64_t cache_slot_bytes = 0;  // of which recurrent state
  int64_t cache_capacity_bytes = 0;
  int64_t cache_reusable_bytes = 0;   // kept for prefix reuse, held by nobody
  int64_t prefix_queried_tokens = 0;  // since the start
  int64_t prefix_hit_tokens = 0;      // of which found
  uint64_t epoch = 0;
  bool busy = false;  // steps run
};

// What came of a switch of the default placement.
struct SwitchReport {
  v1::InFlight in_flight = v1::IN_FLIGHT_UNSPECIFIED;
  absl::Status status;
  std::string placement;  // PlacementTable::NameOf; as wanted if that failed
  // The rest if it was done.
  uint64_t epoch = 0;
  absl::Duration pause;
  uint32_t num_recomputed = 0;
};

// Every method but OnRefusedAtEdge and OnSwitch is called on the engine's
// thread, between or during steps, and must not block. By default nobody cares.
class EngineObserver {
 public:
  virtual ~EngineObserver() = default;

  // Any thread: a request that never reached the engine. `why` may quote the
  // request, so only its code is for the logs.
  virtual void OnRefusedAtEdge(absl::string_view /*request_id*/,
                               const absl::Status& /*why*/) {}

  // ---- One request, in this order.
  // Refused before it had a sequence.
  virtual void OnRefused(const RequestTrace& /*request*/,
                         const absl::Status& /*why*/) {}
  virtual void OnQueued(RequestTrace* /*request*/) {}
  // It is in a step for the first time, or again after it lost its cache.
  virtual void OnScheduled(RequestTrace* /*request*/, uint64_t /*step_id*/) {}
  // It goes on under another placement; both fields are the new ones.
  virtual void OnRecompute(RequestTrace* /*request*/) {}
  // One more token, sampled by the step that was taken at `time`.
  virtual void OnToken(RequestTrace* /*request*/, SteadyTime /*time*/) {}
  // One of these two ends it.
  virtual void OnFinished(RequestTrace* /*request*/,
                          v1::FinishReason /*reason*/) {}
  virtual void OnFailed(RequestTrace* /*request*/,
                        const absl::Status& /*why*/) {}

  // ---- Steps, in order.
  virtual void OnSubmitted(const v1::StepPlan& /*plan*/) {}
  virtual void OnStep(const StepOutcome& /*outcome*/, SteadyTime /*time*/) {}
  virtual void OnState(const EngineState& /*state*/) {}

  // ---- The whole.
  // Any thread: a switch has ended, well or badly.
  virtual void OnSwitch(const SwitchReport& /*report*/) {}
  virtual void OnLost(const absl::Status& /*why*/) {}
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_ENGINE_OBSERVER_H_
