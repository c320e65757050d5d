// The engine as the rest of the coordinator sees it: thread-safe, with the loop
// running on a thread of its own.
//
// Every method may be called from any thread, except as noted. Those that
// return a value wait for the next step boundary; the others do not wait.
#ifndef SWITCHYARD_COORDINATOR_ENGINE_H_
#define SWITCHYARD_COORDINATOR_ENGINE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "coordinator/engine_inbox.h"
#include "coordinator/engine_loop.h"
#include "coordinator/placements.h"
#include "coordinator/request.h"
#include "coordinator/served_model.h"
#include "coordinator/step_runner.h"
#include "switchyard/v1/admin.pb.h"

namespace switchyard {

class Engine {
 public:
  // Starts the loop. `model` and `runner` are borrowed and must outlive the
  // engine. `on_lost` is called once, on the engine's thread, after every
  // stream has ended, when the workers are gone or an invariant is broken; the
  // engine then only refuses. It must not call back.
  Engine(const EngineOptions& options, const ServedModel* model,
         PlacementTable placements, CacheSpec cache_spec, StepRunner* runner,
         std::function<void(const absl::Status&)> on_lost);
  ~Engine();  // Stop()
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // ---- Requests.

  // Hands a request over; its events, errors too, go to `sink` (see there),
  // perhaps before this returns. The result names it to Cancel. The errors:
  // kNotFound (preset), kFailedPrecondition (placement), kAlreadyExists (its id
  // is live), kInvalidArgument (the whole cache could not hold the prompt),
  // kResourceExhausted (the queue is full, with a retry delay), kUnavailable
  // (shutting down, workers lost).
  uint64_t Submit(EngineRequest request, RequestSink* sink);
  // Ends a request with FINISH_REASON_CANCELLED at the next step boundary,
  // where its cache is free again. No effect once it is over.
  void Cancel(uint64_t handle);

  // Tells the observer of a request that was refused before Submit.
  void ReportRefused(absl::string_view request_id, const absl::Status& why);

  // ---- Placements. One change at a time; others wait for it. `cancelled` is
  // asked now and then while a change waits, and before it takes effect: once
  // it says true, the change fails with kCancelled and leaves everything as it
  // was. Null: never.

  // A snapshot; never waits.
  std::shared_ptr<const PlacementTable> placements() const
      ABSL_LOCKS_EXCLUDED(snapshot_mutex_);

  // The collective switch, see docs/placements.md. Errors leave everything as
  // it was: kNotFound, kInvalidArgument, kFailedPrecondition (the placement
  // does not fit the model, or a running sequence not into the cache under it),
  // kAborted (a rank refused), kCancelled, kUnavailable.
  absl::StatusOr<PlacementSwitch> SetDefaultPlacement(
      const v1::Placement& placement, v1::InFlight in_flight,
      const std::function<bool()>& cancelled) ABSL_LOCKS_EXCLUDED(turn_mutex_);
  // The new epoch. Errors as PlacementTable::Define and Delete.
  absl::StatusOr<uint64_t> DefinePreset(
      const v1::Preset& preset,
      const std::function<bool()>& cancelled = nullptr)
      ABSL_LOCKS_EXCLUDED(turn_mutex_);
  absl::StatusOr<uint64_t> DeletePreset(
      absl::string_view name, const std::function<bool()>& cancelled = nullptr)
      ABSL_LOCKS_EXCLUDED(turn_mutex_);
  // As PlacementTable::ReplaceFilePresets.
  absl::StatusOr<PlacementTable::FileChange> ReplaceFilePresets(Presets presets)
      ABSL_LOCKS_EXCLUDED(turn_mutex_);

  // ---- State.

  absl::StatusOr<v1::Load> load();
  const GroupFacts& group() const { return runner_->facts(); }
  // How long the loop has not come round though it has work; zero while idle.
  absl::Duration overdue() const { return loop_.heartbeat().overdue(); }

  // ---- The end.

  // Refuses what is not admitted yet, and everything new; running streams go
  // on. `on_idle` is called on the engine's thread when the last has ended; it
  // must not call back.
  void Drain(std::function<void()> on_idle);
  // Ends every stream and the loop; waits for a step that runs. Idempotent, but
  // not for two threads at once.
  void Stop();

 private:
  // The right to change the placements, given back at the end of the scope.
  class Turn;

  // Waits until no other change is under way. kCancelled as above.
  absl::Status TakeTurn(const std::function<bool()>& cancelled)
      ABSL_LOCKS_EXCLUDED(turn_mutex_);
  // Runs `task` on the engine's thread and waits for it. kUnavailable, without
  // having run it, after Stop().
  absl::Status Run(absl::FunctionRef<void(EngineLoop&)> task);
  // Runs a change of the placements, and publishes what came out.
  absl::Status Change(absl::FunctionRef<void(EngineLoop&)> change);
  // SetDefaultPlacement, but for the report; says the target's name.
  absl::StatusOr<PlacementSwitch> Switch(const v1::Placement& placement,
                                         v1::InFlight in_flight,
                                         const std::function<bool()>& cancelled,
                                         std::string* name);
  // The second half of it.
  absl::StatusOr<PlacementSwitch> CommitPrepared(
      const PlacementTable::Resolved& target, uint64_t epoch,
      v1::InFlight in_flight, const std::function<bool()>& cancelled);
  absl::Status WaitUntilDefaultIsDrained(
      const std::function<bool()>& cancelled);

  StepRunner* const runner_;
  EngineObserver* const observer_;  // may be null
  // Shared with the runner's failure callback, which may come after the end.
  const std::shared_ptr<EngineInbox> inbox_;
  EngineLoop loop_;  // the thread's
  std::atomic<uint64_t> last_handle_{0};
  absl::Mutex turn_mutex_;
  bool changing_ ABSL_GUARDED_BY(turn_mutex_) = false;  // the placements
  mutable absl::Mutex snapshot_mutex_;
  // Shared with readers who may hold on to it while the next one is published.
  std::shared_ptr<const PlacementTable> snapshot_
      ABSL_GUARDED_BY(snapshot_mutex_);
  std::thread thread_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_ENGINE_H_
