#include "tests/coordinator/fake_group.h"

#include <utility>

namespace switchyard {

FakeGroup::FakeGroup(const ModelConfig* config, CacheSpec spec,
                     uint64_t cache_bytes)
    : worker_(config, std::move(spec), static_cast<int64_t>(cache_bytes),
              static_cast<uint32_t>(config->vocab_size)) {
  facts_.ranks = {{"fake:1", "cpu", 1000}};
  facts_.cache_bytes = cache_bytes;
  facts_.kv_element_bytes = 4;
}

void FakeGroup::Hold() {
  absl::MutexLock lock(&mutex_);
  held_ = true;
}

bool FakeGroup::Allow(int num_steps) {
  absl::MutexLock lock(&mutex_);
  num_allowed_ += num_steps;
  const auto taken = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return num_allowed_ == 0;
  };
  return mutex_.AwaitWithTimeout(absl::Condition(&taken), absl::Minutes(1));
}

void FakeGroup::Release() {
  absl::MutexLock lock(&mutex_);
  held_ = false;
}

void FakeGroup::Lose(const absl::Status& why) {
  std::function<void(const absl::Status&)> on_failure;
  {
    absl::MutexLock lock(&mutex_);
    lost_ = why;
    on_failure = on_failure_;
  }
  if (on_failure) on_failure(why);
}

void FakeGroup::RefusePrepare(const absl::Status& why) {
  absl::MutexLock lock(&mutex_);
  refusal_ = why;
}

void FakeGroup::Spoil(uint64_t sequence_id, int64_t position) {
  absl::MutexLock lock(&mutex_);
  worker_.Spoil(sequence_id, position);
}

std::vector<std::string> FakeGroup::complaints() const {
  absl::MutexLock lock(&mutex_);
  return worker_.complaints();
}

std::vector<uint64_t> FakeGroup::committed_epochs() const {
  absl::MutexLock lock(&mutex_);
  return committed_;
}

int FakeGroup::num_aborted() const {
  absl::MutexLock lock(&mutex_);
  return num_aborted_;
}

size_t FakeGroup::num_sequences() const {
  absl::MutexLock lock(&mutex_);
  return worker_.sequence_ids().size();
}

absl::Status FakeGroup::Submit(const v1::StepPlan& plan) {
  absl::MutexLock lock(&mutex_);
  if (!lost_.ok()) return lost_;
  in_flight_.push_back(plan);
  return absl::OkStatus();
}

absl::StatusOr<StepOutcome> FakeGroup::NextResult() {
  absl::MutexLock lock(&mutex_);
  const auto may_go = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return !held_ || num_allowed_ > 0 || !lost_.ok();
  };
  mutex_.Await(absl::Condition(&may_go));
  if (!lost_.ok()) return lost_;
  if (num_allowed_ > 0) --num_allowed_;
  StepOutcome outcome;
  outcome.result = Execute(in_flight_.front());
  in_flight_.pop_front();
  return outcome;
}

v1::StepResult FakeGroup::Execute(const v1::StepPlan& plan) {
  for (const v1::SequenceStart& start : plan.started()) {
    Wanted& wanted = wanted_[start.sequence_id()];
    wanted.logprobs = start.sampling().has_logprobs();
    wanted.prompt_logprobs = start.sampling().has_prompt_logprobs();
    wanted.prompt.assign(start.token_ids().begin(),
                         start.token_ids().begin() + start.num_prompt_tokens());
  }
  v1::StepResult result = worker_.Execute(plan);
  for (v1::SampledToken& token : *result.mutable_tokens()) {
    if (!wanted_[token.sequence_id()].logprobs) continue;
    v1::TokenLogprobs* logprobs = token.mutable_logprobs();
    logprobs->set_logprob(LogprobOf(token.token_id()));
    v1::TopLogprob* top = logprobs->add_top();
    top->set_token_id(token.token_id());
    top->set_logprob(LogprobOf(token.token_id()));
  }
  for (const v1::SequenceStep& step : plan.batch()) {
    const Wanted& wanted = wanted_[step.sequence_id()];
    if (!wanted.prompt_logprobs || step.start() >= wanted.prompt.size()) {
      continue;
    }
    v1::PromptLogprobs* part = result.add_prompt_logprobs();
    part->set_sequence_id(step.sequence_id());
    part->set_start(step.start());
    for (uint32_t i = step.start();
         i < step.start() + step.num_tokens() && i < wanted.prompt.size();
         ++i) {
      v1::TokenLogprobs* position = part->add_positions();
      if (i > 0) position->set_logprob(LogprobOf(wanted.prompt[i]));
    }
  }
  return result;
}

absl::Status FakeGroup::PreparePlacement(
    uint64_t epoch, const std::vector<std::string>& /*mixer_names*/) {
  absl::MutexLock lock(&mutex_);
  if (!lost_.ok()) return lost_;
  if (!refusal_.ok()) return std::exchange(refusal_, absl::OkStatus());
  prepared_epoch_ = epoch;
  return absl::OkStatus();
}

absl::Status FakeGroup::CommitPlacement(uint64_t epoch) {
  absl::MutexLock lock(&mutex_);
  if (!lost_.ok()) return lost_;
  if (!in_flight_.empty() || prepared_epoch_ != epoch) {
    return absl::InternalError("committed while a step runs, or unprepared");
  }
  prepared_epoch_ = 0;
  committed_.push_back(epoch);
  return absl::OkStatus();
}

absl::Status FakeGroup::AbortPlacement(uint64_t /*epoch*/) {
  absl::MutexLock lock(&mutex_);
  prepared_epoch_ = 0;
  ++num_aborted_;
  return lost_;
}

absl::Status FakeGroup::health() const {
  absl::MutexLock lock(&mutex_);
  return lost_;
}

void FakeGroup::SetFailureCallback(
    std::function<void(const absl::Status&)> on_failure) {
  absl::MutexLock lock(&mutex_);
  on_failure_ = std::move(on_failure);
}

}  // namespace switchyard
