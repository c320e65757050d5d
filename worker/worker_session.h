// One rank's part in one group, from Configure to the end: what a worker
// process is, without the wire.
//
// A session moves through idle -> loading -> configured -> ready -> serving and
// is over when its coordinator shuts it down or goes away, or when anything
// fails. It never starts again: a new group needs a new process.
#ifndef SWITCHYARD_WORKER_WORKER_SESSION_H_
#define SWITCHYARD_WORKER_WORKER_SESSION_H_

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "rpc/credentials.h"
#include "rpc/steady_time.h"
#include "switchyard/v1/worker.pb.h"
#include "worker/collective.h"
#include "worker/rendezvous.h"
#include "worker/step_executor.h"

namespace switchyard {

struct WorkerSessionOptions {
  ClientFiles group;  // how this rank shows itself to rank 0; read when needed
  // How long a collective operation may wait for a silent peer. Shorter than
  // the coordinator's step deadline, so that the waiting rank can name the
  // peer.
  absl::Duration collective_timeout = absl::Seconds(20);
  // How long connecting the ranks may take.
  absl::Duration connect_timeout = absl::Minutes(5);
  // A configured worker that hears nothing for this long before its stream of
  // steps opens has lost its coordinator.
  absl::Duration contact_timeout = absl::Minutes(1);
};

// Thread-safe. Methods that take a callback return at once; the executor's
// thread does the work, in the order of the calls, and calls back exactly once.
class WorkerSession {
 public:
  template <typename T>
  using Done = absl::AnyInvocable<void(absl::StatusOr<T>) &&>;
  using DoneStatus = absl::AnyInvocable<void(absl::Status) &&>;

  // Plans that may wait for execution; a coordinator has two in flight.
  static constexpr int kMaxQueuedPlans = 8;

  // `on_over` is called once, from an unspecified thread, when the session is
  // over; outcome() then says why. It must not destroy the session.
  WorkerSession(WorkerBackend backend, const WorkerSessionOptions& options,
                std::function<void()> on_over);
  // Ends the session and waits for the executor's thread.
  ~WorkerSession();

  // Joins the collective and loads the model. Returns a refusal at once,
  // without a callback and without a change: kInvalidArgument names a malformed
  // field, kFailedPrecondition says that the session is not idle. When loading
  // fails the session is over.
  absl::Status Configure(v1::ConfigureRequest request,
                         Done<v1::ConfigureResponse> done);
  void AllocateCache(uint64_t arena_bytes, DoneStatus done);

  // Claims the session for the one stream of steps. kFailedPrecondition if the
  // session is not ready or serves another stream.
  absl::Status OpenStream();
  // Runs a step; `done` is called in the order of the calls. Where the device
  // works on its own, a step is launched while the one before it runs. A
  // failure is in the result, and ends the session; steps that the end of the
  // session cuts short say why it is over. REQUIRES: OpenStream succeeded.
  void Execute(v1::StepPlan plan,
               absl::AnyInvocable<void(v1::StepResult) &&> done);

  void PreparePlacement(uint64_t epoch, std::vector<std::string> mixer_names,
                        DoneStatus done);
  void CommitPlacement(uint64_t epoch, DoneStatus done);
  void AbortPlacement(uint64_t epoch, DoneStatus done);

  // Ends the session: wakes whatever waits for a peer, fails what is queued.
  // The first reason stands; OK is a clean shutdown.
  void End(const absl::Status& reason);

  v1::GetStatusResponse GetStatus();

  // Why the session is over; nothing while it is not.
  std::optional<absl::Status> outcome() const;

  // The group's meeting place, used when this is rank 0.
  RendezvousTable& rendezvous() { return table_; }

 private:
  enum class State { kIdle, kLoading, kConfigured, kReady, kServing };
  using DoneStep = absl::AnyInvocable<void(v1::StepResult) &&>;
  struct Task {
    // Runs with OK, or with the reason why the session is over.
    absl::AnyInvocable<void(const absl::Status&) &&> run;
    // It launches work of a step's kind: it waits until the executor has room.
    bool launches = false;
  };
  // A step from its plan's arrival on.
  struct Step {
    uint64_t step_id = 0;
    uint64_t epoch = 0;
    SteadyTime start;  // when nothing kept it from running any more
    DoneStep done;
  };

  void Enqueue(absl::AnyInvocable<void(const absl::Status&) &&> run,
               bool launches = false);
  void RunTasks();
  // Waits for the next task, at most for a moment while steps are under way;
  // nothing then, or when the session stops.
  std::optional<Task> NextTask(absl::Status* over);
  void LaunchStep(const v1::StepPlan& plan, Step step);
  // Delivers the steps that are done, or that failed.
  void CollectSteps();
  // Nothing while the oldest step is still under way.
  std::optional<absl::StatusOr<v1::StepResult>> CollectOldest();
  void FinishStep(Step step, absl::StatusOr<v1::StepResult> outcome);
  void FailSteps(const absl::Status& why);
  void WarmPlacement(DoneStatus done);
  absl::StatusOr<v1::ConfigureResponse> Load(
      const v1::ConfigureRequest& request);
  absl::Status Connect(const v1::ConfigureRequest& request);
  // Queues a call of the executor that is allowed once there is a cache.
  void Control(absl::AnyInvocable<absl::Status() &&> call, DoneStatus done);
  // kFailedPrecondition unless the session is live and in state `expected`.
  absl::Status Expect(State expected, const char* method) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status OverStatus() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const WorkerSessionOptions options_;
  const std::function<void()> on_over_;
  RendezvousTable table_;
  LoadProgress progress_;

  mutable absl::Mutex mutex_;
  State state_ ABSL_GUARDED_BY(mutex_) = State::kIdle;
  std::optional<absl::Status> outcome_ ABSL_GUARDED_BY(mutex_);
  std::deque<Task> tasks_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  int num_queued_plans_ ABSL_GUARDED_BY(mutex_) = 0;
  SteadyTime last_contact_ ABSL_GUARDED_BY(mutex_);
  uint64_t last_step_id_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t epoch_ ABSL_GUARDED_BY(mutex_) = 0;
  // Set by the executor's thread, under the lock because End reaches for them.
  std::unique_ptr<Rendezvous> remote_rendezvous_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<Collective> collective_ ABSL_GUARDED_BY(mutex_);

  // The executor's thread only. The executor goes before its collective.
  WorkerBackend backend_;
  uint32_t rank_ = 0;
  std::deque<Step> steps_;  // launched, oldest first
  uint64_t last_launched_ = 0;
  SteadyTime last_finished_;  // 0: never
  std::thread thread_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_WORKER_SESSION_H_
