#include "coordinator/engine_loop.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/check.h"

namespace switchyard {
namespace {

// Units of cache whose bookkeeping is checked in a few milliseconds.
constexpr int64_t kMaxUnitsToCheck = 1 << 14;

absl::Status NotFinite(const Sequence& sequence,
                       const v1::MixerList& placement) {
  const v1::SamplingParams& sampling = sequence.sampling();
  const int64_t num_generated = sequence.num_generated();
  // What else can leave no finite logit; the other parameters are too tame.
  const bool by_request = sampling.repetition_penalty() != 1 ||
                          sampling.min_tokens() > num_generated;
  return absl::InternalError(absl::StrCat(
      "the model's logits for token ", num_generated + 1,
      " of this request are not finite numbers (placement ",
      absl::StrJoin(placement.names(), ","),
      "): the checkpoint's weights, or its dtype, are likely at fault",
      by_request ? ", unless the request's repetition_penalty, or min_tokens "
                   "with every token a stop token, left none"
                 : ""));
}

}  // namespace

EngineLoop::EngineLoop(const EngineOptions& options, const ServedModel* model,
                       PlacementTable placements, CacheSpec cache_spec,
                       StepRunner* runner, EngineInbox* inbox,
                       std::function<void(const absl::Status&)> on_lost)
    : options_(options),
      model_(model),
      runner_(runner),
      inbox_(inbox),
      on_lost_(std::move(on_lost)),
      observer_(options.observer == nullptr ? &nobody_ : options.observer),
      placements_(std::move(placements)),
      scheduler_(options.scheduler, std::move(cache_spec),
                 static_cast<int64_t>(runner->facts().cache_bytes)) {}

void EngineLoop::Run() {
  while (!stopped_) {
    heartbeat_.Beat();
    if (!lost_.ok()) {
      WaitAtRest();
      RunTasks();
    } else if (options_.async_scheduling) {
      StepOverlapped();
    } else {
      StepSimple();
    }
  }
}

void EngineLoop::StepSimple() {
  RunTasks();
  if (stopped_ || !lost_.ok()) return;
  if (!SubmitStep()) return WaitForTasks();
  CommittedStep step;
  if (TakeStep(&step)) Deliver(&step);
}

void EngineLoop::StepOverlapped() {
  RunTasks();
  if (stopped_ || !lost_.ok()) return;
  while (scheduler_.num_in_flight() < StepRunner::kMaxStepsInFlight &&
         SubmitStep()) {
  }
  if (scheduler_.num_in_flight() == 0) return WaitForTasks();
  if (!TakeStep(&undelivered_)) return;
  RunTasks();  // what arrived while the step ran joins the next plan
  if (stopped_ || !lost_.ok()) return;
  SubmitStep();
  Deliver(&undelivered_);
}

void EngineLoop::RunTasks() {
  inbox_->Take(&tasks_);
  for (EngineInbox::Task& task : tasks_) task();
  tasks_.clear();
  CheckDrained();
}

void EngineLoop::WaitForTasks() {
  if (!lost_.ok()) return;
  if (busy_) {
    busy_ = false;
    busy_time_ += absl::FromChrono(Clock::now() - busy_since_);
    // Linear in what is kept: a large cache is not walked at every pause.
    absl::Status integrity;
    if (scheduler_.ledger().num_kept() <= kMaxUnitsToCheck) {
      integrity = scheduler_.CheckIntegrity();
    }
    if (integrity.ok() && scheduler_.num_running() == 0 &&
        scheduler_.ledger().held_bytes() != 0) {
      integrity = absl::InternalError(
          absl::StrCat("no sequence runs, but ",
                       scheduler_.ledger().held_bytes(), " bytes are held"));
    }
    if (integrity.ok() && scheduler_.num_running() + scheduler_.num_waiting()) {
      integrity = absl::InternalError(absl::StrCat(
          "the engine is idle, but ", scheduler_.num_running(),
          " sequences run and ", scheduler_.num_waiting(), " wait"));
    }
    if (!integrity.ok()) return Lose(integrity);
  }
  ReportState();
  WaitAtRest();
}

void EngineLoop::WaitAtRest() {
  heartbeat_.Rest();
  inbox_->Wait();
  heartbeat_.Beat();
}

bool EngineLoop::SubmitStep() {
  const std::optional<v1::StepPlan> plan =
      scheduler_.Schedule(placements_.epoch());
  if (!plan.has_value()) return false;
  if (!busy_) {
    busy_ = true;
    busy_since_ = Clock::now();
    first_busy_step_ = plan->step_id();
  }
  if (absl::Status status = runner_->Submit(*plan); !status.ok()) {
    Lose(status);
    return false;
  }
  observer_->OnSubmitted(*plan);
  for (const v1::SequenceStart& start : plan->started()) {
    LiveRequest* live = requests_.BySequence(start.sequence_id());
    observer_->OnScheduled(&live->trace, plan->step_id());
    if (live->admitted) continue;  // again, after a preemption
    live->admitted = true;
    live->sink->OnAdmitted();
  }
  return true;
}

bool EngineLoop::TakeStep(CommittedStep* step) {
  absl::StatusOr<StepOutcome> outcome = runner_->NextResult();
  if (!outcome.ok()) {
    Lose(outcome.status());
    return false;
  }
  absl::StatusOr<std::vector<Scheduler::Sampled>> sampled =
      scheduler_.Commit(outcome->result);
  if (!sampled.ok()) {
    Lose(sampled.status());
    return false;
  }
  step->taken = Clock::now();
  observer_->OnStep(*outcome, step->taken);
  device_ms_ += outcome->result.device_ms();
  if (outcome->result.step_id() > first_busy_step_) {
    device_idle_ms_ += outcome->result.device_idle_ms();
  }
  num_graph_steps_ += outcome->result.graph() ? 1 : 0;
  step->result = std::move(outcome->result);
  step->sampled = *std::move(sampled);
  execute_time_ += outcome->execute_time;
  for (const Scheduler::Sampled& sampled : step->sampled) {
    num_generated_tokens_ += sampled.token_id != kNoTokenId;
  }
  ++num_steps_;
  ReportState();
  return true;
}

void EngineLoop::Deliver(CommittedStep* step) {
  for (v1::PromptLogprobs& part : *step->result.mutable_prompt_logprobs()) {
    LiveRequest* live = requests_.BySequence(part.sequence_id());
    if (live == nullptr) continue;
    const size_t end = part.start() + part.positions_size();
    if (live->prompt_logprobs.size() < end) live->prompt_logprobs.resize(end);
    for (int i = 0; i < part.positions_size(); ++i) {
      live->prompt_logprobs[part.start() + i].Swap(part.mutable_positions(i));
    }
  }
  for (Scheduler::Sampled& sampled : step->sampled) {
    DeliverToken(&sampled, step);
  }
  step->result.Clear();
  step->sampled.clear();
  CheckDrained();
}

void EngineLoop::DeliverToken(Scheduler::Sampled* sampled,
                              CommittedStep* step) {
  LiveRequest* live = requests_.BySequence(sampled->sequence_id);
  if (live == nullptr) return;
  if (sampled->token_id == kNoTokenId) {
    const Sequence& failed = *sampled->finished;
    return Fail(live,
                NotFinite(failed, placements_.ToProto(failed.placement())));
  }
  observer_->OnToken(&live->trace, step->taken);
  TokenDelta delta;
  delta.token_ids = absl::MakeConstSpan(&sampled->token_id, 1);
  if (live->wants_logprobs) {
    delta.logprobs =
        step->result.mutable_tokens(sampled->result_index)->mutable_logprobs();
  }
  const Sequence* finished = sampled->finished.get();
  delta.text = finished == nullptr
                   ? live->output.Append(sampled->token_id)
                   : live->output.AppendLast(
                         sampled->token_id,
                         finished->finish_reason() == v1::FINISH_REASON_STOP);
  live->sink->OnTokens(delta);

  if (live->output.stopped()) {
    std::unique_ptr<Sequence> sequence = std::move(sampled->finished);
    if (sequence == nullptr) {
      sequence = *scheduler_.Finish(live->sequence_id, v1::FINISH_REASON_STOP);
    }
    Complete(live, *sequence, v1::FINISH_REASON_STOP);
  } else if (finished != nullptr) {
    Complete(live, *finished, finished->finish_reason());
  }
}

void EngineLoop::Settle() {
  Deliver(&undelivered_);
  while (lost_.ok() && scheduler_.num_in_flight() > 0) {
    if (TakeStep(&undelivered_)) Deliver(&undelivered_);
  }
}

void EngineLoop::Complete(LiveRequest* live, const Sequence& sequence,
                          v1::FinishReason reason) {
  v1::GenerateComplete complete;
  complete.set_finish_reason(reason);
  complete.set_prompt_tokens(
      static_cast<uint32_t>(sequence.num_prompt_tokens()));
  complete.set_completion_tokens(
      static_cast<uint32_t>(sequence.num_generated()));
  complete.set_cached_tokens(
      static_cast<uint32_t>(sequence.num_cached_prompt_tokens()));
  // The first position has none and comes from no step.
  if (sequence.sampling().has_prompt_logprobs()) {
    live->prompt_logprobs.resize(sequence.num_prompt_tokens());
  }
  for (v1::TokenLogprobs& position : live->prompt_logprobs) {
    complete.add_prompt_logprobs()->Swap(&position);
  }
  *complete.mutable_placement() = placements_.ToProto(sequence.placement());
  complete.set_epoch(sequence.epoch());
  observer_->OnFinished(&live->trace, reason);
  RequestSink* sink = live->sink;
  requests_.Erase(live);
  sink->OnComplete(std::move(complete));
}

void EngineLoop::EndCancelled(LiveRequest* live) {
  if (live->sequence_id == 0) {
    return Refuse(live, absl::CancelledError("the request was cancelled"));
  }
  const std::unique_ptr<Sequence> sequence =
      *scheduler_.Finish(live->sequence_id, v1::FINISH_REASON_CANCELLED);
  if (const absl::string_view text = live->output.Flush(); !text.empty()) {
    live->sink->OnTokens({{}, text, nullptr});
  }
  Complete(live, *sequence, v1::FINISH_REASON_CANCELLED);
}

void EngineLoop::Refuse(LiveRequest* live, const absl::Status& why) {
  if (live->sequence_id != 0) {
    SY_CHECK(
        scheduler_.Finish(live->sequence_id, v1::FINISH_REASON_CANCELLED).ok());
    return Fail(live, why);
  }
  observer_->OnRefused(live->trace, why);
  RequestSink* sink = live->sink;
  requests_.Erase(live);
  sink->OnError(why);
}

void EngineLoop::Fail(LiveRequest* live, const absl::Status& why) {
  observer_->OnFailed(&live->trace, why);
  RequestSink* sink = live->sink;
  requests_.Erase(live);
  sink->OnError(why);
}

}  // namespace switchyard
