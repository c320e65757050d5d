// Decides what every step computes: who runs, on which cache, which positions.
//
// Pure: no I/O, no clock, no randomness. The same calls give the same plans.
// Owns the live sequences and the cache ledger; one thread (the engine's) owns
// and uses the scheduler.
//
// Use: Schedule() makes a plan; every plan must be sent to the workers, in
// order; Commit() takes their results, in the same order. The synchronous loop
// commits each step before it schedules the next. The overlapped loop schedules
// further steps first: a token that a step in flight will sample has a position
// already, and the workers know it when they get there. When such a step turns
// out to have ended its sequence (a stop token), the result of the later step
// is dropped; its cache is forgotten by the plan after that.
//
// Policy:
//  * Order of arrival is the order of everything; a sequence id is its number.
//  * A step gives every sequence that is generating one position, then shares
//    what is left of max_num_batched_tokens among prompts (and rebuilt caches),
//    in order; the last one in may get only a chunk of its own.
//  * The queue's head is admitted when there is room for all its known tokens
//    beside one more block for everybody else; nobody overtakes it.
//  * A sequence begins with what the cache has of its tokens (prefix_cache.h),
//    under its placement. What is only kept for that is free for the asking:
//    it never stands in the way of an admission or of growth.
//  * A running sequence that lacks room takes it from those that arrived after
//    it, the latest first: their cache is forgotten and rebuilt later
//    (preemption). If none is left to give, it waits for a step.
//  * The oldest always advances. Should it not find room in an arena that has
//    only itself left (scattered holes), it starts over, and nobody joins until
//    it is done: alone in a clean arena it fits, Add() has seen to that.
#ifndef SWITCHYARD_COORDINATOR_SCHEDULER_H_
#define SWITCHYARD_COORDINATOR_SCHEDULER_H_

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "coordinator/cache_ledger.h"
#include "coordinator/placement_ids.h"
#include "coordinator/prefix_cache.h"
#include "coordinator/sequence.h"
#include "switchyard/v1/worker.pb.h"

namespace switchyard {

struct SchedulerOptions {
  // Both at least 1. No more sequences run at a time than there are batched
  // tokens, so that whoever is oldest can advance in every step.
  int32_t max_num_seqs = 64;
  int32_t max_num_batched_tokens = 2048;
  bool prefix_caching = true;
};

class Scheduler {
 public:
  // One sampled token of a live sequence.
  struct Sampled {
    uint64_t sequence_id = 0;
    // kNoTokenId: its logits are not finite numbers. Then the sequence has
    // ended, without this token, and nothing of it is reused.
    uint32_t token_id = 0;
    int result_index = 0;  // in StepResult.tokens: its log-probabilities
    // The sequence itself, if this was its last token; else null.
    std::unique_ptr<Sequence> finished;
  };

  // `arena_bytes` is the cache of every rank.
  Scheduler(const SchedulerOptions& options, CacheSpec spec,
            int64_t arena_bytes);
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  // Queues a sequence and returns its id: 1, 2, 3, ... InvalidArgument for an
  // empty prompt or no max_tokens; ResourceExhausted, with the bytes needed and
  // there, if the whole arena could not hold it at its longest.
  absl::StatusOr<uint64_t> Add(SequenceRequest request);

  // Ends a live sequence (cancelled, or a stop string was met) and returns it.
  // Its cache is nobody's at once, and forgotten by the next plan. Results in
  // flight are dropped. NotFound if it is not live.
  absl::StatusOr<std::unique_ptr<Sequence>> Finish(uint64_t sequence_id,
                                                   v1::FinishReason reason);

  // Drops a live sequence's cache and everything in flight, and queues it to
  // continue from its committed tokens under `placement`: every token committed
  // after this call was computed under it. A sequence that runs on `placement`
  // already only changes its epoch. NotFound; ResourceExhausted as in Add, and
  // then the sequence goes on as it was.
  absl::Status Recompute(uint64_t sequence_id, const Placement& placement,
                         uint64_t epoch);
  // What Recompute would say, changing nothing.
  absl::Status CheckRecompute(uint64_t sequence_id,
                              const Placement& placement) const;

  // The next plan, or nothing when there is nothing to run and nothing to
  // forget: no work is left, or all of it waits for steps in flight.
  std::optional<v1::StepPlan> Schedule(uint64_t epoch);

  // Takes the result of the oldest plan in flight. Returns its tokens in the
  // order of the batch, without those of sequences that ended or restarted
  // meanwhile. Prompt log-probabilities are the caller's to read (a restarted
  // prompt reports its positions again). Internal, changing nothing, if the
  // result is not of that plan or has not the tokens it asked for.
  absl::StatusOr<std::vector<Sampled>> Commit(const v1::StepResult& result);

  // A live sequence, or null.
  const Sequence* Find(uint64_t sequence_id) const;
  // The most positions a sequence may cache under `placement`, at most `limit`:
  // its prompt and all but the last of its max_tokens must fit.
  int64_t MaxTokens(const Placement& placement, int64_t limit) const {
    return ledger_.MaxTokens(placement, limit);
  }

  int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t num_in_flight() const {
    return static_cast<int64_t>(in_flight_.size());
  }
  int64_t num_preemptions() const { return num_preemptions_; }
  const CacheLedger& ledger() const { return ledger_; }
  const PrefixCache& prefixes() const { return prefixes_; }

  // Internal names the first contradiction among queues, sequences, ledger and
  // prefixes. Linear in what is held and kept.
  absl::Status CheckIntegrity() const;

 private:
  using Queue = std::map<uint64_t, std::unique_ptr<Sequence>>;  // by arrival

  // One sequence's part of a step, before it has its cache.
  struct Share {
    Sequence* sequence = nullptr;
    int64_t num_positions = 0;
  };
  // What a step in flight owes a sequence.
  struct Pending {
    uint64_t sequence_id = 0;
    int32_t num_restarts = 0;  // of the sequence when it was planned
    int64_t num_positions = 0;
    bool sample = false;
  };
  struct StepInFlight {
    uint64_t step_id = 0;
    std::vector<Pending> batch;
  };

  absl::Status CheckFits(const Placement& placement, int64_t num_tokens) const;
  // Plans the running sequences; true if every share found its cache.
  bool ScheduleRunning(int64_t* budget, v1::StepPlan* plan, StepInFlight* step);
  std::vector<Share> ShareBudget(int64_t* budget);
  void Admit(int64_t budget, v1::StepPlan* plan, StepInFlight* step);
  // The sequence to admit next, waiting_.end() if nobody may join.
  Queue::iterator NextToAdmit();
  bool HasRoomFor(const Sequence& sequence, const PrefixCache::Hit& hit) const;
  enum class Admission { kDone, kNoRoom, kInPieces };
  // Lets `next` begin with what is found of it, if `reuse`. On failure nothing
  // has changed, but for what has been evicted.
  Admission TryAdmit(Queue::iterator next, bool reuse, int64_t* budget,
                     v1::StepPlan* plan, StepInFlight* step);
  // Of `wanted` positions from `start` on, those before its branch.
  int64_t UpToBranch(uint64_t sequence_id, int64_t start, int64_t wanted) const;
  // Cache for a sequence's first `num_tokens` positions, at the expense of what
  // no live sequence holds.
  absl::StatusOr<std::vector<CacheLedger::NewUnit>> Reserve(
      const Sequence& sequence, int64_t num_tokens,
      absl::Span<const std::vector<uint32_t>> shared = {});
  void AppendStart(const Sequence& sequence, const PrefixCache::Hit& hit,
                   v1::StepPlan* plan);
  void AppendStep(const Share& share,
                  const std::vector<CacheLedger::NewUnit>& units,
                  v1::StepPlan* plan, StepInFlight* step);
  // The latest arrival after `sequence_id` that is not about to leave anyway;
  // running_.end() if there is none.
  Queue::iterator FindVictim(uint64_t sequence_id);
  // Moves a running sequence to the queue; its cache is free from here on.
  void Preempt(Queue::iterator victim);
  // A running sequence's cache is free from here on, and the workers' memory of
  // it ends with the next plan. `sound`: what it computed may be reused.
  void Forget(const Sequence& sequence, bool sound = true);

  const SchedulerOptions options_;
  CacheLedger ledger_;
  PrefixCache prefixes_;
  PlacementIds placement_ids_;
  Queue waiting_;
  Queue running_;
  std::deque<StepInFlight> in_flight_;
  std::vector<uint64_t> to_forget_;  // for the next plan
  // Restarted because holes kept it from growing; it runs alone until it ends.
  std::optional<uint64_t> solo_;
  // The queue's head found free bytes enough, but no extents large enough;
  // until something is freed it need not ask again.
  bool admission_blocked_ = false;
  uint64_t last_sequence_id_ = 0;
  uint64_t last_step_id_ = 0;
  int64_t num_preemptions_ = 0;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_SCHEDULER_H_
