// One request's tokens and counters, and the rules by which they move.
//
// A position is one token's place in the sequence. Its life: the token is known
// (or sampled by a step in flight, on the workers), then scheduled into a step,
// then computed when that step commits. Each step either continues the known
// tokens or, when it reaches the last of them, samples one more.
//
// Owned by the Scheduler while live, handed to the engine when it ends. Not
// thread-safe.
//
// Invariants:
//  1. 0 <= num_computed <= num_scheduled <= num_tokens + num_samples_in_flight.
//  2. num_generated + num_samples_in_flight <= max_tokens: a sequence that ends
//     by length is never scheduled past its end.
//  3. A waiting sequence has nothing scheduled and nothing in flight.
//  4. Results of steps scheduled before the latest Restart are void. They carry
//     an older num_restarts.
//  5. finish_reason is set exactly when the state is kFinished.
#ifndef SWITCHYARD_COORDINATOR_SEQUENCE_H_
#define SWITCHYARD_COORDINATOR_SEQUENCE_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "model/placement.h"
#include "switchyard/v1/generation.pb.h"

namespace switchyard {

// What a step reports in place of a sampled token if the logits are not finite
// numbers (worker.proto). Never one of a sequence's tokens.
inline constexpr uint32_t kNoTokenId = 0xffffffff;

// What the engine asks of the scheduler for one request.
struct SequenceRequest {
  std::vector<uint32_t> prompt_token_ids;  // at least one
  v1::SamplingParams sampling;             // as ResolveSamplingParams leaves it
  Placement placement;
  uint64_t epoch = 0;  // under which the placement was resolved
};

class Sequence {
 public:
  enum class State { kWaiting, kRunning, kFinished };

  // `id` also is the order of arrival.
  Sequence(uint64_t id, SequenceRequest request);

  uint64_t id() const { return id_; }
  State state() const { return state_; }
  const Placement& placement() const { return placement_; }
  uint64_t epoch() const { return epoch_; }
  const v1::SamplingParams& sampling() const { return sampling_; }

  // The prompt and what was generated and committed.
  absl::Span<const uint32_t> token_ids() const { return token_ids_; }
  int64_t num_tokens() const { return static_cast<int64_t>(token_ids_.size()); }
  int64_t num_prompt_tokens() const { return num_prompt_tokens_; }
  int64_t num_generated() const { return num_tokens() - num_prompt_tokens_; }
  // Positions planned so far, in flight included; and those committed.
  int64_t num_scheduled() const { return num_scheduled_; }
  int64_t num_computed() const { return num_computed_; }
  int64_t num_samples_in_flight() const { return num_samples_in_flight_; }
  // Prompt tokens that were in the cache when it was first started.
  int64_t num_cached_prompt_tokens() const { return num_cached_prompt_tokens_; }
  int32_t num_restarts() const { return num_restarts_; }

  // Positions that could be planned now: up to the last known or in-flight
  // token; 0 when the sequence only waits for its last samples to commit.
  int64_t num_schedulable() const;
  // Positions cached when it has generated all it may: the last sampled token's
  // is never computed.
  int64_t max_cached_tokens() const;
  // FINISH_REASON_UNSPECIFIED while it lives.
  v1::FinishReason finish_reason() const { return finish_reason_; }

  // The placement was resolved anew, to the same one.
  void set_epoch(uint64_t epoch) { epoch_ = epoch; }
  // The first `num_cached` positions count as computed. REQUIRES: kWaiting;
  // num_cached < num_tokens().
  void Start(int64_t num_cached = 0);
  // Plans the next `num_positions` positions; true if the last of them samples.
  // REQUIRES: kRunning; 0 < num_positions <= num_schedulable().
  bool Schedule(int64_t num_positions);
  // A step of `num_positions` that sampled nothing has run.
  void CommitPositions(int64_t num_positions);
  // A step of `num_positions` has run and sampled `token_id`. Finishes the
  // sequence on a stop token after at least min_tokens others (STOP), or on the
  // last of max_tokens (LENGTH).
  void CommitSample(int64_t num_positions, uint32_t token_id);
  // Forgets everything but the committed tokens: back to kWaiting.
  void Restart();
  // Restart() under another placement. REQUIRES: not kFinished.
  void Restart(Placement placement, uint64_t epoch);
  // REQUIRES: not kFinished.
  void Finish(v1::FinishReason reason);

 private:
  uint64_t id_;
  State state_ = State::kWaiting;
  Placement placement_;
  uint64_t epoch_;
  v1::SamplingParams sampling_;
  std::vector<uint32_t> token_ids_;
  int64_t num_prompt_tokens_;
  int64_t num_scheduled_ = 0;
  int64_t num_computed_ = 0;
  int64_t num_samples_in_flight_ = 0;
  int32_t num_restarts_ = 0;
  int64_t num_cached_prompt_tokens_ = 0;
  bool was_started_ = false;
  v1::FinishReason finish_reason_ = v1::FINISH_REASON_UNSPECIFIED;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_SEQUENCE_H_
