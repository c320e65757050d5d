// What other threads ask of the engine; all of it runs between two steps.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/client_status.h"
#include "coordinator/engine_loop.h"
#include "kernels/check.h"
#include "kernels/status.h"

namespace switchyard {
namespace {

absl::Status ShuttingDown() {
  return absl::UnavailableError("the server is shutting down");
}

}  // namespace

void EngineLoop::Add(uint64_t handle, EngineRequest request,
                     RequestSink* sink) {
  auto fresh = std::make_unique<LiveRequest>(handle, request, sink,
                                             model_->tokenizer.get());
  const auto refuse = [&](const absl::Status& why) {
    observer_->OnRefused(fresh->trace, why);
    sink->OnError(why);
  };
  if (!lost_.ok()) return refuse(lost_);
  if (draining_ || stopped_) return refuse(ShuttingDown());
  const int64_t max_live =
      int64_t{options_.scheduler.max_num_seqs} + options_.max_waiting_seqs;
  if (requests_.size() >= max_live) {
    return refuse(WithRetryDelay(absl::ResourceExhaustedError(absl::StrCat(
                                     "the queue is full: ", requests_.size(),
                                     " requests run or wait; retry later")),
                                 options_.retry_delay));
  }
  if (requests_.HasId(request.request_id)) {
    return refuse(absl::AlreadyExistsError(
        absl::StrCat("request_id: a request with the id \"", request.request_id,
                     "\" is still running")));
  }
  LiveRequest* live = requests_.Insert(std::move(fresh));
  if (live->on_default && hold_default_) {
    live->held = std::move(request);
    return;
  }
  if (absl::Status status = Enqueue(live, std::move(request)); !status.ok()) {
    Refuse(live, status);
  }
}

absl::Status EngineLoop::Enqueue(LiveRequest* live, EngineRequest request) {
  SequenceRequest wanted;
  RequestTrace& trace = live->trace;
  if (request.placement.has_value()) {
    SY_ASSIGN_OR_RETURN(PlacementTable::Resolved resolved,
                        placements_.Resolve(*request.placement));
    trace.placement = placements_.NameOf(resolved);
    wanted.placement = std::move(resolved.placement);
  } else {
    trace.placement = placements_.default_name();
    wanted.placement = placements_.default_placement();
  }
  wanted.epoch = placements_.epoch();

  // No more tokens than the whole cache can hold under this placement. The last
  // one is never cached.
  const int64_t num_prompt =
      static_cast<int64_t>(request.prompt_token_ids.size());
  const int64_t most = num_prompt + request.sampling.max_tokens() - 1;
  const int64_t room =
      scheduler_.MaxTokens(wanted.placement, most) - num_prompt + 1;
  if (room <= 0) {
    const CacheLedger& ledger = scheduler_.ledger();
    return absl::InvalidArgumentError(absl::StrCat(
        "prompt: its ", num_prompt, " tokens take ",
        ledger.BytesFor(wanted.placement, num_prompt),
        " bytes of cache under its placement; the whole cache has ",
        ledger.capacity_bytes(), ", enough for ", room + num_prompt - 1,
        " tokens: shorten it, or name a placement that keeps less"));
  }
  if (room < request.sampling.max_tokens()) {
    const uint32_t max_tokens = static_cast<uint32_t>(room);
    request.sampling.set_max_tokens(max_tokens);
    request.sampling.set_min_tokens(
        std::min(request.sampling.min_tokens(), max_tokens));
  }
  trace.epoch = wanted.epoch;
  trace.max_tokens = request.sampling.max_tokens();
  wanted.prompt_token_ids = std::move(request.prompt_token_ids);
  wanted.sampling = std::move(request.sampling);
  SY_ASSIGN_OR_RETURN(const uint64_t sequence_id,
                      scheduler_.Add(std::move(wanted)));
  requests_.Bind(live, sequence_id);
  trace.sequence_id = sequence_id;
  observer_->OnQueued(&trace);
  return absl::OkStatus();
}

void EngineLoop::Cancel(uint64_t handle) {
  if (!lost_.ok()) return;
  Deliver(&undelivered_);  // it may have ended in there
  if (LiveRequest* live = requests_.ByHandle(handle)) EndCancelled(live);
}

void EngineLoop::DrainDefault(std::function<void()> on_drained) {
  SY_CHECK(!hold_default_);
  hold_default_ = true;
  on_drained_ = std::move(on_drained);
}

void EngineLoop::ReleaseDefault() {
  hold_default_ = false;
  on_drained_ = nullptr;
  for (LiveRequest* live : requests_.All()) {
    if (!live->held.has_value()) continue;
    EngineRequest request = *std::move(live->held);
    live->held.reset();
    absl::Status status = Enqueue(live, std::move(request));
    if (!status.ok()) Refuse(live, status);
  }
}

std::vector<LiveRequest*> EngineLoop::OnDefault() const {
  std::vector<LiveRequest*> found = requests_.All();
  found.erase(std::remove_if(found.begin(), found.end(),
                             [](const LiveRequest* live) {
                               return !live->on_default ||
                                      live->sequence_id == 0;
                             }),
              found.end());
  return found;
}

absl::StatusOr<PlacementSwitch> EngineLoop::CommitDefault(
    const PlacementTable::Resolved& target, uint64_t epoch,
    v1::InFlight in_flight) {
  // A step boundary: what is in flight was planned under the old epoch.
  if (stopped_) return ShuttingDown();
  if (lost_.ok()) Settle();
  SY_RETURN_IF_ERROR(lost_);
  SY_CHECK(epoch == placements_.epoch() + 1);
  const Clock::time_point start = Clock::now();

  std::vector<LiveRequest*> moving;
  if (in_flight == v1::IN_FLIGHT_RECOMPUTE) moving = OnDefault();
  for (const LiveRequest* live : moving) {
    absl::Status fits =
        scheduler_.CheckRecompute(live->sequence_id, target.placement);
    if (fits.ok()) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        "request ", live->request_id,
        " cannot go on under the new placement: ", fits.message()));
  }
  if (absl::Status status = runner_->CommitPlacement(epoch); !status.ok()) {
    Lose(status);
    return status;
  }
  PlacementSwitch done;
  done.epoch = placements_.SetDefault(target);
  done.placement = target.placement;
  for (LiveRequest* live : moving) {
    const bool rebuilds =
        scheduler_.Find(live->sequence_id)->num_scheduled() &&
        scheduler_.Find(live->sequence_id)->placement() != target.placement;
    SY_CHECK(
        scheduler_.Recompute(live->sequence_id, target.placement, done.epoch)
            .ok());
    done.num_recomputed += rebuilds;
    live->trace.placement = placements_.default_name();
    live->trace.epoch = done.epoch;
    observer_->OnRecompute(&live->trace);
  }
  done.pause = absl::FromChrono(Clock::now() - start);
  return done;
}

void EngineLoop::Drain(std::function<void()> on_idle) {
  draining_ = true;
  on_idle_ = std::move(on_idle);
  if (!lost_.ok()) return;
  Deliver(&undelivered_);
  for (LiveRequest* live : requests_.All()) {
    if (!live->admitted) Refuse(live, ShuttingDown());
  }
}

void EngineLoop::Stop() {
  stopped_ = true;
  if (!lost_.ok()) return;
  Deliver(&undelivered_);
  for (LiveRequest* live : requests_.All()) Refuse(live, ShuttingDown());
  CheckDrained();
}

void EngineLoop::Lose(const absl::Status& why) {
  if (!lost_.ok()) return;
  lost_ = why;
  const bool was_told_to = lost_.ErasePayload(kShutDownPayload);
  for (LiveRequest* live : requests_.All()) {
    RequestSink* sink = live->sink;
    if (live->sequence_id != 0) {
      observer_->OnFailed(&live->trace, lost_);
    } else {
      observer_->OnRefused(live->trace, lost_);
    }
    requests_.Erase(live);
    sink->OnError(lost_);
  }
  if (!was_told_to) observer_->OnLost(lost_);
  CheckDrained();
  if (on_lost_ && !was_told_to) on_lost_(lost_);
}

void EngineLoop::CheckDrained() {
  const bool over = stopped_ || !lost_.ok();
  if (on_drained_ && (over || requests_.num_bound_on_default() == 0)) {
    std::exchange(on_drained_, nullptr)();
  }
  if (on_idle_ && (over || requests_.size() == 0)) {
    std::exchange(on_idle_, nullptr)();
  }
}

void EngineLoop::ReportState() {
  const CacheLedger& ledger = scheduler_.ledger();
  EngineState state;
  state.num_running = scheduler_.num_running();
  state.num_waiting = scheduler_.num_waiting() + requests_.num_unbound();
  state.num_preemptions = scheduler_.num_preemptions();
  state.cache_used_bytes = ledger.held_bytes();
  state.cache_slot_bytes = ledger.slot_bytes_held();
  state.cache_reusable_bytes = ledger.reusable_bytes();
  state.prefix_queried_tokens = scheduler_.prefixes().num_queried_tokens();
  state.prefix_hit_tokens = scheduler_.prefixes().num_hit_tokens();
  state.cache_capacity_bytes = ledger.capacity_bytes();
  state.epoch = placements_.epoch();
  state.busy = busy_;
  observer_->OnState(state);
}

v1::Load EngineLoop::load() const {
  v1::Load load;
  const CacheLedger& ledger = scheduler_.ledger();
  load.set_running_sequences(scheduler_.num_running());
  load.set_waiting_sequences(scheduler_.num_waiting() +
                             requests_.num_unbound());
  load.set_cache_used_bytes(ledger.held_bytes());
  load.set_cache_total_bytes(ledger.capacity_bytes());
  load.set_num_steps(num_steps_);
  load.set_num_preemptions(scheduler_.num_preemptions());
  load.set_num_blocks_held(ledger.num_blocks_held());
  load.set_num_slots_held(ledger.num_slots_held());
  absl::Duration busy = busy_time_;
  if (busy_) busy += absl::FromChrono(Clock::now() - busy_since_);
  load.set_busy_seconds(absl::ToDoubleSeconds(busy));
  load.set_execute_seconds(absl::ToDoubleSeconds(execute_time_));
  load.set_num_generated_tokens(num_generated_tokens_);
  load.set_device_seconds(device_ms_ / 1e3);
  load.set_device_idle_seconds(device_idle_ms_ / 1e3);
  load.set_num_graph_steps(num_graph_steps_);
  load.set_cache_reusable_bytes(ledger.reusable_bytes());
  load.set_prefix_queried_tokens(scheduler_.prefixes().num_queried_tokens());
  load.set_prefix_hit_tokens(scheduler_.prefixes().num_hit_tokens());
  return load;
}

}  // namespace switchyard
