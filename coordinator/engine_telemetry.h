// Turns what the engine reports into metrics and log lines.
#ifndef SWITCHYARD_COORDINATOR_ENGINE_TELEMETRY_H_
#define SWITCHYARD_COORDINATOR_ENGINE_TELEMETRY_H_

#include <cstdint>
#include <deque>

#include "coordinator/engine_observer.h"
#include "coordinator/metrics.h"
#include "coordinator/step_runner.h"

namespace switchyard {

class EngineTelemetry final : public EngineObserver {
 public:
  // `metrics` is borrowed, and made for as many ranks as `facts` has.
  // `default_placement`: its name.
  EngineTelemetry(const GroupFacts& facts, absl::string_view default_placement,
                  Metrics* metrics);

  void OnRefusedAtEdge(absl::string_view request_id,
                       const absl::Status& why) override;
  void OnRefused(const RequestTrace& request, const absl::Status& why) override;
  void OnQueued(RequestTrace* request) override;
  void OnScheduled(RequestTrace* request, uint64_t step_id) override;
  void OnRecompute(RequestTrace* request) override;
  void OnToken(RequestTrace* request, SteadyTime time) override;
  void OnFinished(RequestTrace* request, v1::FinishReason reason) override;
  void OnFailed(RequestTrace* request, const absl::Status& why) override;
  void OnSubmitted(const v1::StepPlan& plan) override;
  void OnStep(const StepOutcome& outcome, SteadyTime time) override;
  void OnState(const EngineState& state) override;
  void OnSwitch(const SwitchReport& report) override;
  void OnLost(const absl::Status& why) override;

 private:
  struct StepInFlight {
    uint64_t step_id = 0;
    uint64_t epoch = 0;
    int num_sequences = 0;
    SteadyTime submitted;
    int64_t num_tokens = 0;
    bool is_prefill = false;
  };

  void EndRequest(RequestTrace* request, SteadyTime now);
  void LogEnd(const RequestTrace& request, absl::string_view reason,
              SteadyTime now) const;
  // Says so, now and then, when requests take the cache from each other.
  void WatchPreemptions(const EngineState& state);

  Metrics* const metrics_;
  // The engine's thread only.
  std::deque<StepInFlight> in_flight_;
  SteadyTime last_step_;
  int64_t num_preemptions_ = 0;
  uint64_t last_step_id_ = 0;
  SteadyTime window_start_;  // of the count of preemptions
  int64_t num_preemptions_before_ = 0;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_ENGINE_TELEMETRY_H_
