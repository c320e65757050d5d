#include "coordinator/sequence.h"

#include <algorithm>
#include <utility>

#include "kernels/check.h"

namespace switchyard {

Sequence::Sequence(uint64_t id, SequenceRequest request)
    : id_(id),
      placement_(std::move(request.placement)),
      epoch_(request.epoch),
      sampling_(std::move(request.sampling)),
      token_ids_(std::move(request.prompt_token_ids)),
      num_prompt_tokens_(static_cast<int64_t>(token_ids_.size())) {
  SY_CHECK(num_prompt_tokens_ > 0 && sampling_.max_tokens() > 0);
}

int64_t Sequence::num_schedulable() const {
  if (num_generated() + num_samples_in_flight_ >= sampling_.max_tokens()) {
    return 0;
  }
  return num_tokens() + num_samples_in_flight_ - num_scheduled_;
}

int64_t Sequence::max_cached_tokens() const {
  return num_prompt_tokens_ + sampling_.max_tokens() - 1;
}

void Sequence::Start(int64_t num_cached) {
  SY_CHECK(state_ == State::kWaiting);
  SY_CHECK(num_cached >= 0 && num_cached < num_tokens());
  state_ = State::kRunning;
  num_scheduled_ = num_computed_ = num_cached;
  if (std::exchange(was_started_, true)) return;
  num_cached_prompt_tokens_ = std::min(num_cached, num_prompt_tokens_);
}

bool Sequence::Schedule(int64_t num_positions) {
  SY_CHECK(state_ == State::kRunning);
  SY_CHECK(num_positions > 0 && num_positions <= num_schedulable());
  const bool sample = num_positions == num_schedulable();
  num_scheduled_ += num_positions;
  if (sample) ++num_samples_in_flight_;
  return sample;
}

void Sequence::CommitPositions(int64_t num_positions) {
  SY_CHECK(state_ == State::kRunning);
  num_computed_ += num_positions;
  SY_CHECK(num_computed_ <= num_scheduled_);
}

void Sequence::CommitSample(int64_t num_positions, uint32_t token_id) {
  CommitPositions(num_positions);
  SY_CHECK(num_samples_in_flight_ > 0);
  --num_samples_in_flight_;
  const int64_t num_before = num_generated();
  token_ids_.push_back(token_id);
  const auto& stops = sampling_.stop_token_ids();
  if (num_before >= sampling_.min_tokens() &&
      std::find(stops.begin(), stops.end(), token_id) != stops.end()) {
    Finish(v1::FINISH_REASON_STOP);
  } else if (num_generated() >= sampling_.max_tokens()) {
    Finish(v1::FINISH_REASON_LENGTH);
  }
}

void Sequence::Restart() {
  SY_CHECK(state_ != State::kFinished);
  state_ = State::kWaiting;
  num_scheduled_ = 0;
  num_computed_ = 0;
  num_samples_in_flight_ = 0;
  ++num_restarts_;
}

void Sequence::Restart(Placement placement, uint64_t epoch) {
  Restart();
  placement_ = std::move(placement);
  epoch_ = epoch;
}

void Sequence::Finish(v1::FinishReason reason) {
  SY_CHECK(state_ != State::kFinished);
  SY_CHECK(reason != v1::FINISH_REASON_UNSPECIFIED);
  state_ = State::kFinished;
  finish_reason_ = reason;
}

}  // namespace switchyard
