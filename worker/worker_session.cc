#include "worker/worker_session.h"

#include <sys/prctl.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "kernels/status.h"
#include "worker/sockets.h"

namespace switchyard {
namespace {

constexpr uint32_t kMaxWorldSize = 1024;

// How often a device that works on its own is asked whether a step is done. The
// next step is launched by then, so this delays no device.
constexpr absl::Duration kPollPeriod = absl::Microseconds(20);

// When all ranks are told to stop, a peer may be gone before this one is told.
// For this long, a step that lost a peer waits for the word.
constexpr absl::Duration kPeerGoneGrace = absl::Milliseconds(100);

absl::Status CheckRequest(const v1::ConfigureRequest& request) {
  if (request.world_size() < 1 || request.world_size() > kMaxWorldSize) {
    return absl::InvalidArgumentError(
        absl::StrCat("world_size is ", request.world_size(),
                     "; it must be between 1 and ", kMaxWorldSize));
  }
  if (request.rank() >= request.world_size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank is ", request.rank(), " in a group of ",
                     request.world_size(), "; it must be smaller"));
  }
  if (request.world_size() > 1 && request.rendezvous_address().empty()) {
    return absl::InvalidArgumentError(
        "rendezvous_address is empty; a group of several ranks needs it");
  }
  return absl::OkStatus();
}

}  // namespace

WorkerSession::WorkerSession(WorkerBackend backend,
                             const WorkerSessionOptions& options,
                             std::function<void()> on_over)
    : options_(options),
      on_over_(std::move(on_over)),
      last_contact_(SteadyNow()),
      backend_(std::move(backend)),
      thread_([this] { RunTasks(); }) {
  SY_CHECK(backend_.executor != nullptr);
}

WorkerSession::~WorkerSession() {
  End(absl::CancelledError("the worker is going away"));
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

absl::Status WorkerSession::Configure(v1::ConfigureRequest request,
                                      Done<v1::ConfigureResponse> done) {
  SY_RETURN_IF_ERROR(CheckRequest(request));
  {
    absl::MutexLock lock(&mutex_);
    last_contact_ = SteadyNow();
    SY_RETURN_IF_ERROR(Expect(State::kIdle, "Configure"));
    state_ = State::kLoading;
  }
  Enqueue([this, request = std::move(request),
           done = std::move(done)](const absl::Status& over) mutable {
    if (!over.ok()) return std::move(done)(over);
    absl::StatusOr<v1::ConfigureResponse> response = Load(request);
    const absl::Status status = response.status();
    if (status.ok()) {
      absl::MutexLock lock(&mutex_);
      state_ = State::kConfigured;
      last_contact_ = SteadyNow();
    }
    std::move(done)(std::move(response));
    if (!status.ok()) End(status);
  });
  return absl::OkStatus();
}

absl::StatusOr<v1::ConfigureResponse> WorkerSession::Load(
    const v1::ConfigureRequest& request) {
  SY_RETURN_IF_ERROR(Connect(request));
  Collective* collective;
  {
    absl::MutexLock lock(&mutex_);
    collective = collective_.get();
  }
  return backend_.executor->Load(request, *collective, progress_);
}

absl::Status WorkerSession::Connect(const v1::ConfigureRequest& request) {
  rank_ = request.rank();
  std::unique_ptr<Collective> collective;
  if (request.world_size() == 1) {
    collective = MakeLocalCollective();
  } else {
    if (backend_.make_collective == nullptr) {
      return absl::UnimplementedError(
          "this worker's device has no collective; only a world size of 1");
    }
    CollectiveOptions options;
    options.rank = request.rank();
    options.world_size = request.world_size();
    options.connect_timeout = options_.connect_timeout;
    options.operation_timeout = options_.collective_timeout;
    SY_ASSIGN_OR_RETURN(options.local_host,
                        LocalHostTowards(request.rendezvous_address()));
    Rendezvous* rendezvous = &table_;
    if (request.rank() > 0) {
      SY_ASSIGN_OR_RETURN(const ClientCredentials credentials,
                          LoadClientCredentials(options_.group));
      absl::MutexLock lock(&mutex_);
      if (outcome_.has_value()) return OverStatus();
      remote_rendezvous_ =
          MakeRemoteRendezvous(request.rendezvous_address(), credentials);
      rendezvous = remote_rendezvous_.get();
    }
    SY_ASSIGN_OR_RETURN(collective,
                        backend_.make_collective(options, *rendezvous));
  }
  absl::MutexLock lock(&mutex_);
  if (outcome_.has_value()) return OverStatus();
  collective_ = std::move(collective);
  return absl::OkStatus();
}

void WorkerSession::AllocateCache(uint64_t arena_bytes, DoneStatus done) {
  Enqueue([this, arena_bytes,
           done = std::move(done)](const absl::Status& over) mutable {
    absl::Status refusal = over;
    if (refusal.ok()) {
      absl::MutexLock lock(&mutex_);
      refusal = Expect(State::kConfigured, "AllocateCache");
    }
    if (!refusal.ok()) return std::move(done)(refusal);
    const absl::Status status = backend_.executor->AllocateCache(arena_bytes);
    if (status.ok()) {
      absl::MutexLock lock(&mutex_);
      state_ = State::kReady;
      last_contact_ = SteadyNow();
    }
    std::move(done)(status);
    if (!status.ok()) End(status);
  });
}

absl::Status WorkerSession::OpenStream() {
  absl::MutexLock lock(&mutex_);
  SY_RETURN_IF_ERROR(Expect(State::kReady, "Execute"));
  state_ = State::kServing;
  return absl::OkStatus();
}

void WorkerSession::Execute(v1::StepPlan plan, DoneStep done) {
  bool too_many;
  {
    absl::MutexLock lock(&mutex_);
    too_many = ++num_queued_plans_ > kMaxQueuedPlans;
  }
  Step step{plan.step_id(), plan.epoch(), SteadyTime(), std::move(done)};
  Enqueue(
      [this, too_many, plan = std::move(plan),
       step = std::move(step)](const absl::Status& over) mutable {
        step.start = SteadyNow();
        if (over.ok() && !too_many) return LaunchStep(plan, std::move(step));
        FinishStep(std::move(step),
                   over.ok() ? absl::ResourceExhaustedError(
                                   absl::StrCat("more than ", kMaxQueuedPlans,
                                                " plans wait for execution"))
                             : over);
      },
      /*launches=*/true);
}

void WorkerSession::LaunchStep(const v1::StepPlan& plan, Step step) {
  absl::Status status;
  if (plan.step_id() != last_launched_ + 1) {
    status = absl::InvalidArgumentError(
        absl::StrCat("step_id is ", plan.step_id(), "; the next step is ",
                     last_launched_ + 1));
  } else {
    status = backend_.executor->Launch(plan);
  }
  if (status.ok()) {
    last_launched_ = plan.step_id();
    steps_.push_back(std::move(step));
    return;
  }
  // The results of the steps before it are still good.
  while (!steps_.empty()) {
    CollectSteps();
    if (!steps_.empty()) absl::SleepFor(kPollPeriod);
  }
  FinishStep(std::move(step), status);
}

void WorkerSession::CollectSteps() {
  while (!steps_.empty()) {
    if (const std::optional<absl::Status> over = outcome(); over.has_value()) {
      absl::Status why;
      {
        absl::MutexLock lock(&mutex_);
        why = OverStatus();
      }
      return FailSteps(why);
    }
    std::optional<absl::StatusOr<v1::StepResult>> result = CollectOldest();
    if (!result.has_value()) return;
    const absl::Status status = result->status();
    Step step = std::move(steps_.front());
    steps_.pop_front();
    FinishStep(std::move(step), *std::move(result));
    if (!status.ok()) return FailSteps(status);
  }
}

std::optional<absl::StatusOr<v1::StepResult>> WorkerSession::CollectOldest() {
  Collective* collective;
  {
    absl::MutexLock lock(&mutex_);
    collective = collective_.get();
  }
  const absl::StatusOr<bool> ready = backend_.executor->Ready();
  // A collective that failed leaves numbers that mean nothing.
  if (absl::Status health = collective->health(); !health.ok()) return health;
  if (!ready.ok()) return ready.status();
  if (*ready) return backend_.executor->Collect();
  const Step& step = steps_.front();
  const absl::Duration waited = Since(std::max(step.start, last_finished_));
  if (collective->world_size() == 1 || waited < options_.collective_timeout) {
    return std::nullopt;
  }
  return absl::DeadlineExceededError(absl::StrCat(
      "rank ", rank_, " waited ",
      absl::FormatDuration(options_.collective_timeout), " for step ",
      step.step_id, " on its device: a peer is silent, or the device hangs"));
}

void WorkerSession::FinishStep(Step step,
                               absl::StatusOr<v1::StepResult> outcome) {
  if (!outcome.ok()) {
    // What a step says that was woken by the end tells nothing of its cause.
    absl::MutexLock lock(&mutex_);
    if (absl::IsUnavailable(outcome.status())) {
      const auto is_over = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return outcome_.has_value();
      };
      mutex_.AwaitWithTimeout(absl::Condition(&is_over), kPeerGoneGrace);
    }
    if (outcome_.has_value()) outcome = OverStatus();
  }
  const absl::Status status = outcome.status();
  v1::StepResult result = outcome.ok() ? *std::move(outcome) : v1::StepResult();
  const SteadyTime now = SteadyNow();
  result.set_step_id(step.step_id);
  result.set_rank(rank_);
  result.set_code(static_cast<uint32_t>(status.code()));
  result.set_message(std::string(status.message()));
  result.set_execute_ms(absl::ToDoubleMilliseconds(
      Between(std::max(step.start, last_finished_), now)));
  last_finished_ = now;
  {
    absl::MutexLock lock(&mutex_);
    --num_queued_plans_;
    if (status.ok()) {
      last_step_id_ = step.step_id;
      epoch_ = step.epoch;
    }
  }
  std::move(step.done)(std::move(result));
  if (!status.ok()) End(status);
}

void WorkerSession::FailSteps(const absl::Status& why) {
  while (!steps_.empty()) {
    Step step = std::move(steps_.front());
    steps_.pop_front();
    FinishStep(std::move(step), why);
  }
}

void WorkerSession::PreparePlacement(uint64_t epoch,
                                     std::vector<std::string> mixer_names,
                                     DoneStatus done) {
  Control(
      [this, epoch, mixer_names = std::move(mixer_names)] {
        return backend_.executor->PreparePlacement(epoch, mixer_names);
      },
      [this, done = std::move(done)](absl::Status prepared) mutable {
        if (!prepared.ok()) return std::move(done)(prepared);
        WarmPlacement(std::move(done));
      });
}

void WorkerSession::WarmPlacement(DoneStatus done) {
  // A piece at a time, behind the plans that have arrived meanwhile.
  Enqueue(
      [this, done = std::move(done)](const absl::Status& over) mutable {
        if (!over.ok()) return std::move(done)(over);
        const absl::StatusOr<bool> more = backend_.executor->Warm();
        if (more.ok() && *more) return WarmPlacement(std::move(done));
        std::move(done)(more.status());
        if (!more.ok()) End(more.status());
      },
      /*launches=*/true);
}

void WorkerSession::CommitPlacement(uint64_t epoch, DoneStatus done) {
  Control([this, epoch] { return backend_.executor->CommitPlacement(epoch); },
          std::move(done));
}

void WorkerSession::AbortPlacement(uint64_t epoch, DoneStatus done) {
  Control([this, epoch] { return backend_.executor->AbortPlacement(epoch); },
          std::move(done));
}

void WorkerSession::Control(absl::AnyInvocable<absl::Status() &&> call,
                            DoneStatus done) {
  Enqueue([this, call = std::move(call),
           done = std::move(done)](const absl::Status& over) mutable {
    absl::Status refusal = over;
    if (refusal.ok()) {
      absl::MutexLock lock(&mutex_);
      if (state_ != State::kReady)
        refusal = Expect(State::kServing, "a placement change");
      else if (outcome_.has_value())
        refusal = OverStatus();
    }
    std::move(done)(refusal.ok() ? std::move(call)() : refusal);
  });
}

void WorkerSession::End(const absl::Status& reason) {
  {
    absl::MutexLock lock(&mutex_);
    if (outcome_.has_value()) return;
    outcome_ = reason;
    if (remote_rendezvous_ != nullptr) remote_rendezvous_->Cancel();
    if (collective_ != nullptr) collective_->Abort();
  }
  table_.Cancel();
  if (on_over_ != nullptr) on_over_();
}

v1::GetStatusResponse WorkerSession::GetStatus() {
  v1::GetStatusResponse response;
  response.set_bytes_loaded(progress_.bytes_loaded);
  response.set_bytes_total(progress_.bytes_total);
  absl::MutexLock lock(&mutex_);
  last_contact_ = SteadyNow();
  response.set_last_step_id(last_step_id_);
  response.set_epoch(epoch_);
  if (outcome_.has_value()) {
    response.set_phase(v1::GetStatusResponse::PHASE_FAILED);
    response.set_message(std::string(OverStatus().message()));
  } else if (state_ == State::kIdle) {
    response.set_phase(v1::GetStatusResponse::PHASE_IDLE);
  } else if (state_ == State::kLoading) {
    response.set_phase(v1::GetStatusResponse::PHASE_LOADING);
  } else {
    response.set_phase(v1::GetStatusResponse::PHASE_READY);
  }
  return response;
}

std::optional<absl::Status> WorkerSession::outcome() const {
  absl::MutexLock lock(&mutex_);
  return outcome_;
}

absl::Status WorkerSession::Expect(State expected, const char* method) const {
  if (outcome_.has_value()) return OverStatus();
  if (state_ == expected) return absl::OkStatus();
  const char* now = "";
  switch (state_) {
    case State::kIdle:
      now = "is not configured";
      break;
    case State::kLoading:
      now = "is loading for another call of Configure";
      break;
    case State::kConfigured:
      now = "is configured and has no cache yet";
      break;
    case State::kReady:
      now = "is ready for its stream of steps";
      break;
    case State::kServing:
      now = "serves another stream of steps, or this one already";
      break;
  }
  return absl::FailedPreconditionError(
      absl::StrCat(method, " is out of turn: the worker ", now));
}

absl::Status WorkerSession::OverStatus() const {
  return absl::FailedPreconditionError(absl::StrCat(
      "the worker's group is over: ",
      outcome_->ok() ? "it was shut down" : std::string(outcome_->message())));
}

void WorkerSession::Enqueue(
    absl::AnyInvocable<void(const absl::Status&) &&> run, bool launches) {
  absl::MutexLock lock(&mutex_);
  tasks_.push_back({std::move(run), launches});
}

std::optional<WorkerSession::Task> WorkerSession::NextTask(absl::Status* over) {
  const bool waits_for_device = !steps_.empty();
  const bool has_room =
      backend_.executor->num_steps() < StepExecutor::kMaxSteps;
  absl::MutexLock lock(&mutex_);
  const auto has_work = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (tasks_.empty()) return stopping_;
    return has_room || !tasks_.front().launches || outcome_.has_value();
  };
  if (!mutex_.AwaitWithTimeout(
          absl::Condition(&has_work),
          waits_for_device ? kPollPeriod : options_.contact_timeout)) {
    const bool waits_for_coordinator =
        state_ == State::kConfigured || state_ == State::kReady;
    if (!outcome_.has_value() && waits_for_coordinator &&
        Since(last_contact_) >= options_.contact_timeout) {
      tasks_.push_back({[this](const absl::Status&) {
                          End(absl::UnavailableError(
                              "the coordinator went away before it opened its "
                              "stream"));
                        },
                        false});
    }
    return std::nullopt;
  }
  if (tasks_.empty()) return std::nullopt;  // stopping
  // What is under way ends first.
  if (outcome_.has_value() && waits_for_device) return std::nullopt;
  Task task = std::move(tasks_.front());
  tasks_.pop_front();
  if (outcome_.has_value()) *over = OverStatus();
  return task;
}

void WorkerSession::RunTasks() {
  // The default slack is more than the poll period.
  prctl(PR_SET_TIMERSLACK, 1000);
  for (;;) {
    CollectSteps();
    absl::Status over;
    if (std::optional<Task> task = NextTask(&over); task.has_value()) {
      std::move(task->run)(over);
      continue;
    }
    absl::MutexLock lock(&mutex_);
    if (stopping_ && tasks_.empty() && steps_.empty()) return;
  }
}

}  // namespace switchyard
