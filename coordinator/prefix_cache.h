// Prefix reuse as the scheduler sees it: what a sequence may begin with, and
// what it leaves behind.
//
// Joins the index of prefixes with the ledger: keeps the units that the index
// names, and says in every plan what the workers are to keep, to drop and to
// copy. Full blocks of layers whose tables only grow are shared as they are;
// everything else (slots, rings, a partly filled last block) a sequence copies
// from a snapshot before its first step. Snapshots are taken where a sequence
// ends, of the cache that it leaves, without a copy; and at a branch: a prompt
// that begins like an earlier one, but finds no snapshot there, stops there
// and leaves a copy.
//
// Published, so that others may begin with it, is only what committed steps
// wrote. A sequence may end while steps that run past its end are in flight:
// its state then is that of the tokens which these steps consume, and is
// published as theirs when the last of them has committed.
//
// Logits that are not finite numbers put what they were computed from under
// suspicion, whoever computed it. With a sequence that ends so go the snapshots
// of its tokens, and the blocks that no finite logits have followed.
//
// Live sequences always win: all that is kept and that none of them holds is
// given up for their sake, least recently used first.
//
// Owned by the scheduler; not thread-safe. Borrows the ledger.
#ifndef SWITCHYARD_COORDINATOR_PREFIX_CACHE_H_
#define SWITCHYARD_COORDINATOR_PREFIX_CACHE_H_

#include <cstdint>
#include <list>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "coordinator/cache_ledger.h"
#include "coordinator/prefix_index.h"
#include "coordinator/sequence.h"
#include "switchyard/v1/worker.pb.h"

namespace switchyard {

class PrefixCache {
 public:
  // What a sequence may begin with.
  struct Hit {
    int64_t num_tokens = 0;                     // 0: nothing
    std::vector<std::vector<uint32_t>> shared;  // blocks, see Reserve
    std::vector<uint32_t> snapshot;             // units to copy
    int64_t held_bytes = 0;  // of the shared ones, by live sequences already
  };

  explicit PrefixCache(CacheLedger* ledger)
      : ledger_(ledger), index_(ledger->spec().block_size()) {}

  // ---- A sequence's life. Those that never began leave nothing.

  // Looks up a waiting sequence, unless `look_up` is false. What is found stays
  // until Abandon, or until the plan is complete and the sequence holds it.
  Hit Begin(const Sequence& sequence, bool look_up);
  void Abandon(uint64_t sequence_id);
  // After the ledger has reserved its cache: what the workers must know.
  void AppendHit(const Sequence& sequence, const Hit& hit,
                 v1::SequenceStart* start, v1::StepPlan* plan) const;
  // Where it must not go on in the same step; 0: nowhere.
  int64_t BranchOf(uint64_t sequence_id) const;
  // It goes on there in step `step_id`: leaves a copy, if all the others of
  // this step leave room. REQUIRES: the plan reserves nothing after this.
  void CopyBranch(const Sequence& sequence, uint64_t step_id,
                  v1::StepPlan* plan);
  // Some of its positions have committed.
  void Publish(const Sequence& sequence);
  // Logits of the last of them were finite numbers.
  void Vouch(uint64_t sequence_id);
  // It ends, or starts over; `last_step_id` is the last step in flight. Its
  // cache goes back to the ledger, but for what is kept.
  void End(const Sequence& sequence, uint64_t last_step_id);
  // It ends because its logits are not finite numbers.
  void Reject(const Sequence& sequence);

  // ---- Steps.

  // A step sampled a token, or kNoTokenId, of a sequence that had ended before.
  void CommitSample(uint64_t sequence_id, int32_t num_restarts,
                    uint32_t token_id);
  void CommitStep(uint64_t step_id);
  // What the workers keep and drop from here on; true if something could not
  // be evicted so far for this plan's sake, and now can.
  bool Complete(v1::StepPlan* plan);

  // Gives up one thing that no live sequence holds; false if there is none.
  bool Evict();

  int64_t num_queried_tokens() const { return num_queried_tokens_; }
  int64_t num_hit_tokens() const { return num_hit_tokens_; }
  void CountQuery(int64_t num_tokens, int64_t num_hit) {
    num_queried_tokens_ += num_tokens;
    num_hit_tokens_ += num_hit;
  }

  // Internal if index and ledger disagree. Linear in what is kept.
  absl::Status CheckIntegrity() const;

 private:
  struct State {
    PrefixIndex::Id node = 0;   // of what is published; may be gone
    int64_t num_published = 0;  // blocks
    std::vector<PrefixIndex::Id> used;
    PrefixIndex::Id pinned = 0;  // snapshot
    int64_t branch = 0;
    PrefixIndex::Id claimed = 0;
  };
  // What an ended sequence, or a copy, leaves when its step has committed.
  struct Leaving {
    uint64_t sequence_id = 0;
    int32_t num_restarts = 0;
    Placement placement;
    std::vector<uint32_t> tokens;
    int64_t num_tokens = 0;   // that the state has consumed
    int64_t first_block = 0;  // of `blocks`; those before are published
    std::vector<std::vector<uint32_t>> blocks;
    std::vector<uint32_t> state;
    uint64_t step_id = 0;
    PrefixIndex::Id claimed = 0;  // as long as a copy is under way
    bool fresh = false;           // the plan that makes it is not complete
  };

  bool HasState(const Placement& placement) const;
  // The first block of what is left that has to be entered, if those before
  // `num_published` are in the index now.
  int64_t FirstToEnter(const Placement& placement, int64_t num_published) const;
  std::vector<uint32_t> BlockOf(const Sequence& sequence, int64_t block) const;
  // What cannot be shared of a sequence of `num_tokens` positions.
  std::vector<uint32_t> StateOf(const Sequence& sequence,
                                int64_t num_tokens) const;
  void Enter(const Leaving& leaving);
  void GiveUp(const Leaving& leaving);
  // What begins with `tokens` leaves the index, but for sound blocks.
  void RemoveUnsound(const Placement& placement, PrefixIndex::Tokens tokens);
  void Keep(const std::vector<uint32_t>& units);
  void Drop(const std::vector<uint32_t>& units);
  void LetGo(State* state);

  CacheLedger* const ledger_;
  PrefixIndex index_;
  absl::flat_hash_map<uint64_t, State> states_;
  std::list<Leaving> leaving_;     // the earliest first
  std::vector<uint64_t> pinning_;  // sequences that begin in this plan
  // For the next plan.
  std::vector<uint32_t> to_keep_;
  absl::btree_set<uint32_t> to_drop_;
  int64_t num_queried_tokens_ = 0;
  int64_t num_hit_tokens_ = 0;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_PREFIX_CACHE_H_
