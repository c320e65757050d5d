// The engine: schedule, run, deliver, and again.
//
// Everything here happens on one thread, the engine's. Other threads reach it
// by posting tasks to its inbox, which it runs between steps; class Engine
// wraps that up. Events of requests leave through their sinks.
//
// Two loops give the same tokens. The simple one is the reference: it has one
// step in flight, and delivers a step before it plans the next. The overlapped
// one, the default, keeps two in flight: while the workers run step N+1, step N
// is committed, N+2 is planned and sent, and only then are N's tokens
// detokenised and streamed, so the workers never wait for any of that.
#ifndef SWITCHYARD_COORDINATOR_ENGINE_LOOP_H_
#define SWITCHYARD_COORDINATOR_ENGINE_LOOP_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/engine_inbox.h"
#include "coordinator/engine_observer.h"
#include "coordinator/heartbeat.h"
#include "coordinator/live_requests.h"
#include "coordinator/placements.h"
#include "coordinator/request.h"
#include "coordinator/scheduler.h"
#include "coordinator/served_model.h"
#include "coordinator/step_runner.h"
#include "model/cache_spec.h"
#include "switchyard/v1/admin.pb.h"

namespace switchyard {

struct EngineOptions {
  SchedulerOptions scheduler = {/*max_num_seqs=*/256,
                                /*max_num_batched_tokens=*/2048};
  // Requests beyond max_num_seqs that may wait; more are refused.
  int32_t max_waiting_seqs = 1024;
  bool async_scheduling = true;  // the overlapped loop
  // What a refused client is told to wait before it comes back.
  absl::Duration retry_delay = absl::Seconds(1);
  EngineObserver* observer = nullptr;  // borrowed; null: nobody watches
};

// What a switch of the default placement did.
struct PlacementSwitch {
  uint64_t epoch = 0;
  Placement placement;
  absl::Duration pause;  // no step ran for this long
  uint32_t num_recomputed = 0;
};

class EngineLoop {
 public:
  // `model`, `runner` and `inbox` are borrowed. `on_lost` is called once, on
  // the engine's thread, when the engine can serve no more: its workers are
  // gone, or it found itself in a state that cannot be.
  EngineLoop(const EngineOptions& options, const ServedModel* model,
             PlacementTable placements, CacheSpec cache_spec,
             StepRunner* runner, EngineInbox* inbox,
             std::function<void(const absl::Status&)> on_lost);

  // Returns after Stop().
  void Run();
  // Runs what has been posted. For the owner, once Run has returned.
  void RunTasks();

  // ---- Requests. `handle` grows with every request.
  void Add(uint64_t handle, EngineRequest request, RequestSink* sink);
  // The stream ends with FINISH_REASON_CANCELLED, the cache is free at once. A
  // request that is over already is left alone.
  void Cancel(uint64_t handle);

  // ---- Placements.
  const PlacementTable& placements() const { return placements_; }
  PlacementTable* mutable_placements() { return &placements_; }
  // From here on requests for the default placement are held back; calls
  // `on_drained` once no sequence runs on it (or the engine is over).
  void DrainDefault(std::function<void()> on_drained);
  // Lets the held requests go on, under what the default is now.
  void ReleaseDefault();
  // The second phase of a switch, after every rank has prepared `epoch`. Errors
  // leave the placements, and every sequence, as they were.
  absl::StatusOr<PlacementSwitch> CommitDefault(
      const PlacementTable::Resolved& target, uint64_t epoch,
      v1::InFlight in_flight);

  // ---- The end.
  // Refuses new requests and those not admitted yet, with UNAVAILABLE; calls
  // `on_idle` when the last stream has ended.
  void Drain(std::function<void()> on_idle);
  // Ends every stream with UNAVAILABLE, and Run.
  void Stop();
  // Ends every stream with `why`, and refuses new ones with it. With
  // kShutDownPayload nobody is told of a loss.
  void Lose(const absl::Status& why);

  v1::Load load() const;

  // For any thread.
  const Heartbeat& heartbeat() const { return heartbeat_; }

 private:
  using Clock = std::chrono::steady_clock;

  // A step that has been committed; its tokens may still have to go out.
  struct CommittedStep {
    v1::StepResult result;
    std::vector<Scheduler::Sampled> sampled;
    Clock::time_point taken;
  };

  void StepSimple();
  void StepOverlapped();
  // Plans a step and sends it; false if there is nothing to run, or no more.
  bool SubmitStep();
  // Waits for the oldest step in flight and commits it; false if it failed.
  bool TakeStep(CommittedStep* step);
  void Deliver(CommittedStep* step);
  void DeliverToken(Scheduler::Sampled* sampled, CommittedStep* step);
  // Until nothing is in flight or undelivered.
  void Settle();
  void WaitForTasks();
  void WaitAtRest();
  void CheckDrained();

  absl::Status Enqueue(LiveRequest* live, EngineRequest request);
  void Complete(LiveRequest* live, const Sequence& sequence,
                v1::FinishReason reason);
  void Refuse(LiveRequest* live, const absl::Status& why);
  // The scheduler does not have its sequence any more.
  void Fail(LiveRequest* live, const absl::Status& why);
  void EndCancelled(LiveRequest* live);
  std::vector<LiveRequest*> OnDefault() const;
  void ReportState();

  const EngineOptions options_;
  const ServedModel* const model_;
  StepRunner* const runner_;
  EngineInbox* const inbox_;
  const std::function<void(const absl::Status&)> on_lost_;
  EngineObserver nobody_;
  EngineObserver* const observer_;  // never null

  PlacementTable placements_;
  Scheduler scheduler_;
  LiveRequests requests_;
  std::vector<EngineInbox::Task> tasks_;
  CommittedStep undelivered_;

  absl::Status lost_;  // not OK: why no request is served any more
  bool stopped_ = false;
  bool draining_ = false;
  bool hold_default_ = false;
  std::function<void()> on_idle_;
  std::function<void()> on_drained_;

  Heartbeat heartbeat_;
  uint64_t num_steps_ = 0;
  bool busy_ = false;  // steps run, or have just run
  Clock::time_point busy_since_;
  absl::Duration busy_time_;     // of the completed busy periods
  absl::Duration execute_time_;  // of all steps, by the slowest rank
  uint64_t num_generated_tokens_ = 0;
  // Of rank 0's device. The idle time before the first step of a busy period is
  // the requests', not the engine's.
  uint64_t first_busy_step_ = 0;
  double device_ms_ = 0;
  double device_idle_ms_ = 0;
  uint64_t num_graph_steps_ = 0;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_ENGINE_LOOP_H_
