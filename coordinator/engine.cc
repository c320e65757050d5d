#include "coordinator/engine.h"

#include <optional>
#include <utility>

#include "absl/synchronization/notification.h"
#include "absl/time/time.h"
#include "kernels/status.h"

namespace switchyard {
namespace {

// How often a waiting change looks whether its caller is still there.
constexpr absl::Duration kCancellationPoll = absl::Milliseconds(50);

bool IsTrue(const std::function<bool()>& cancelled) {
  return cancelled != nullptr && cancelled();
}

absl::Status Stopped() {
  return absl::UnavailableError("the server is shutting down");
}

}  // namespace

class Engine::Turn {
 public:
  explicit Turn(Engine* engine) : engine_(engine) {}
  ~Turn() {
    absl::MutexLock lock(&engine_->turn_mutex_);
    engine_->changing_ = false;
  }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  Engine* const engine_;
};

absl::Status Engine::TakeTurn(const std::function<bool()>& cancelled) {
  absl::MutexLock lock(&turn_mutex_);
  const auto is_free = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(turn_mutex_) {
    return !changing_;
  };
  for (;;) {
    const bool free = turn_mutex_.AwaitWithTimeout(absl::Condition(&is_free),
                                                   kCancellationPoll);
    if (IsTrue(cancelled)) {
      return absl::CancelledError(
          "the caller left before another change of the placements had ended");
    }
    if (!free) continue;
    changing_ = true;
    return absl::OkStatus();
  }
}

Engine::Engine(const EngineOptions& options, const ServedModel* model,
               PlacementTable placements, CacheSpec cache_spec,
               StepRunner* runner,
               std::function<void(const absl::Status&)> on_lost)
    : runner_(runner),
      observer_(options.observer),
      inbox_(std::make_shared<EngineInbox>()),
      loop_(options, model, std::move(placements), std::move(cache_spec),
            runner, inbox_.get(), std::move(on_lost)),
      snapshot_(std::make_shared<PlacementTable>(loop_.placements())) {
  // The group may be lost while no step is in flight to tell.
  runner_->SetFailureCallback([this, inbox = inbox_](const absl::Status& why) {
    inbox->Post([this, why] { loop_.Lose(why); });
  });
  thread_ = std::thread([this] { loop_.Run(); });
}

Engine::~Engine() { Stop(); }

uint64_t Engine::Submit(EngineRequest request, RequestSink* sink) {
  const uint64_t handle = ++last_handle_;
  const bool posted = inbox_->Post(
      [this, handle, request = std::move(request), sink]() mutable {
        loop_.Add(handle, std::move(request), sink);
      });
  if (!posted) sink->OnError(Stopped());
  return handle;
}

void Engine::Cancel(uint64_t handle) {
  inbox_->Post([this, handle] { loop_.Cancel(handle); });
}

void Engine::ReportRefused(absl::string_view request_id,
                           const absl::Status& why) {
  if (observer_ != nullptr) observer_->OnRefusedAtEdge(request_id, why);
}

std::shared_ptr<const PlacementTable> Engine::placements() const {
  absl::MutexLock lock(&snapshot_mutex_);
  return snapshot_;
}

absl::Status Engine::Run(absl::FunctionRef<void(EngineLoop&)> task) {
  absl::Notification done;
  const bool posted = inbox_->Post([this, task, &done] {
    task(loop_);
    done.Notify();
  });
  if (!posted) return Stopped();
  done.WaitForNotification();
  return absl::OkStatus();
}

absl::Status Engine::Change(absl::FunctionRef<void(EngineLoop&)> change) {
  return Run([this, change](EngineLoop& loop) {
    change(loop);
    auto snapshot = std::make_shared<PlacementTable>(loop.placements());
    absl::MutexLock lock(&snapshot_mutex_);
    snapshot_ = std::move(snapshot);
  });
}

absl::StatusOr<uint64_t> Engine::DefinePreset(
    const v1::Preset& preset, const std::function<bool()>& cancelled) {
  SY_RETURN_IF_ERROR(TakeTurn(cancelled));
  const Turn turn(this);
  absl::StatusOr<uint64_t> epoch;
  SY_RETURN_IF_ERROR(Change([&](EngineLoop& loop) {
    epoch =
        loop.mutable_placements()->Define(preset.name(), preset.placement());
  }));
  return epoch;
}

absl::StatusOr<uint64_t> Engine::DeletePreset(
    absl::string_view name, const std::function<bool()>& cancelled) {
  SY_RETURN_IF_ERROR(TakeTurn(cancelled));
  const Turn turn(this);
  absl::StatusOr<uint64_t> epoch;
  SY_RETURN_IF_ERROR(Change([&](EngineLoop& loop) {
    epoch = loop.mutable_placements()->Delete(name);
  }));
  return epoch;
}

absl::StatusOr<PlacementTable::FileChange> Engine::ReplaceFilePresets(
    Presets presets) {
  SY_RETURN_IF_ERROR(TakeTurn(/*cancelled=*/nullptr));
  const Turn turn(this);
  absl::StatusOr<PlacementTable::FileChange> change;
  SY_RETURN_IF_ERROR(Change([&](EngineLoop& loop) {
    change = loop.mutable_placements()->ReplaceFilePresets(std::move(presets));
  }));
  return change;
}

absl::StatusOr<PlacementSwitch> Engine::SetDefaultPlacement(
    const v1::Placement& placement, v1::InFlight in_flight,
    const std::function<bool()>& cancelled) {
  // Held until the report is made, so that reports come in the order of epochs.
  std::optional<Turn> turn;
  const absl::Status waited = TakeTurn(cancelled);
  if (waited.ok()) turn.emplace(this);
  SwitchReport report;
  absl::StatusOr<PlacementSwitch> done =
      waited.ok() ? Switch(placement, in_flight, cancelled, &report.placement)
                  : absl::StatusOr<PlacementSwitch>(waited);
  if (observer_ == nullptr) return done;
  report.in_flight = in_flight;
  report.status = done.status();
  if (done.ok()) {
    report.epoch = done->epoch;
    report.pause = done->pause;
    report.num_recomputed = done->num_recomputed;
  }
  observer_->OnSwitch(report);
  return done;
}

absl::StatusOr<PlacementSwitch> Engine::Switch(
    const v1::Placement& placement, v1::InFlight in_flight,
    const std::function<bool()>& cancelled, std::string* name) {
  // Nothing but this function changes the table from here on.
  const std::shared_ptr<const PlacementTable> table = placements();
  SY_ASSIGN_OR_RETURN(const PlacementTable::Resolved target,
                      table->Resolve(placement));
  *name = table->NameOf(target);
  const uint64_t epoch = table->epoch() + 1;
  const v1::MixerList mixers = table->ToProto(target.placement);
  SY_RETURN_IF_ERROR(runner_->PreparePlacement(
      epoch, {mixers.names().begin(), mixers.names().end()}));

  absl::StatusOr<PlacementSwitch> done =
      CommitPrepared(target, epoch, in_flight, cancelled);
  if (!done.ok()) {
    // The ranks forget what they prepared; if they cannot, the group is lost
    // and says so itself.
    runner_->AbortPlacement(epoch).IgnoreError();
    return done;
  }
  return done;
}

absl::StatusOr<PlacementSwitch> Engine::CommitPrepared(
    const PlacementTable::Resolved& target, uint64_t epoch,
    v1::InFlight in_flight, const std::function<bool()>& cancelled) {
  if (in_flight == v1::IN_FLIGHT_DRAIN) {
    const absl::Status drained = WaitUntilDefaultIsDrained(cancelled);
    if (!drained.ok()) {
      Run([](EngineLoop& loop) { loop.ReleaseDefault(); }).IgnoreError();
      return drained;
    }
  } else if (IsTrue(cancelled)) {
    return absl::CancelledError("the caller left while the ranks prepared");
  }
  absl::StatusOr<PlacementSwitch> done;
  SY_RETURN_IF_ERROR(Change([&](EngineLoop& loop) {
    done = loop.CommitDefault(target, epoch, in_flight);
    loop.ReleaseDefault();
  }));
  return done;
}

absl::Status Engine::WaitUntilDefaultIsDrained(
    const std::function<bool()>& cancelled) {
  // Shared with the engine, which may hold on to it after this has given up.
  auto drained = std::make_shared<absl::Notification>();
  SY_RETURN_IF_ERROR(Run([&](EngineLoop& loop) {
    loop.DrainDefault([drained] { drained->Notify(); });
  }));
  while (!drained->WaitForNotificationWithTimeout(kCancellationPoll)) {
    if (IsTrue(cancelled)) {
      return absl::CancelledError(
          "the caller left before the running sequences had ended");
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::Load> Engine::load() {
  v1::Load load;
  SY_RETURN_IF_ERROR(Run([&](EngineLoop& loop) { load = loop.load(); }));
  return load;
}

void Engine::Drain(std::function<void()> on_idle) {
  inbox_->Post([this, on_idle = std::move(on_idle)]() mutable {
    loop_.Drain(std::move(on_idle));
  });
}

void Engine::Stop() {
  if (!thread_.joinable()) return;
  inbox_->Post([this] { loop_.Stop(); });
  thread_.join();
  inbox_->Close();
  loop_.RunTasks();  // what came in since; the loop refuses it
}

}  // namespace switchyard
