// A worker that computes nothing but believes nothing: it applies plans as
// worker.proto says and records every way in which one is not legal.
//
// Its cache is real enough to catch stale or wrongly shared units: every block
// remembers which tokens under which placement were written to it, every slot a
// digest of the tokens it has absorbed, and each step reads back all that its
// positions may see. Kept blocks must not be written to, and what is shared
// must be kept. The token it samples is a digest of the tokens so far and
// the placement, so it depends on nothing else that is in the batch.
#ifndef SWITCHYARD_TESTS_COORDINATOR_STRICT_WORKER_H_
#define SWITCHYARD_TESTS_COORDINATOR_STRICT_WORKER_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "model/cache_spec.h"
#include "model/config.h"
#include "model/placement.h"
#include "switchyard/v1/worker.pb.h"

namespace switchyard {

class StrictWorker {
 public:
  // `config` is borrowed.
  StrictWorker(const ModelConfig* config, CacheSpec spec, int64_t arena_bytes,
               uint32_t vocab_size);

  // The token that follows `tokens`.
  static uint32_t Next(const std::vector<uint32_t>& tokens,
                       const Placement& placement, uint32_t vocab_size);

  v1::StepResult Execute(const v1::StepPlan& plan);

  // What the sequence computes of its positions from `position` on is spoilt:
  // not finite numbers. So is what anybody computes from that; who has such
  // logits samples no token.
  void Spoil(uint64_t sequence_id, int64_t position) {
    spoilt_from_[sequence_id] = position;
  }
  // Spoilt units that are kept, for others to begin with.
  size_t num_spoilt_kept() const;

  // What was wrong with the plans so far; empty: nothing.
  const std::vector<std::string>& complaints() const { return complaints_; }
  // Units of its cache, held or kept.
  size_t num_units() const { return units_.size(); }
  // The sequences it remembers, ascending.
  std::vector<uint64_t> sequence_ids() const;

 private:
  struct Layer {
    std::vector<uint32_t> table;  // block table, or the one slot
  };
  struct State {
    Placement placement;
    std::vector<uint32_t> tokens;
    int64_t num_cached = 0;
    std::vector<Layer> layers;
    bool spoilt = false;
  };
  // What a unit holds: per position of a block, or of a slot in entry 0, a
  // digest of the tokens up to there.
  struct Unit {
    int64_t num_bytes = 0;
    std::vector<uint64_t> content;
    int num_holders = 0;
    bool kept = false;
    bool spoilt = false;
  };

  void Keep(uint32_t unit);
  void Drop(uint32_t unit);
  void Copy(const v1::CacheCopy& copy);
  // False, with a complaint, if it overlaps another or leaves the arena.
  bool Add(uint64_t id, uint32_t cache_id, Unit unit);
  void Forget(uint64_t id);
  void Start(const v1::SequenceStart& start);
  void Take(uint64_t id, State* state, const v1::SequenceStep& step);
  void Run(uint64_t id, State* state, const v1::SequenceStep& step);
  void Complain(uint64_t id, const std::string& what);

  const ModelConfig* config_;
  CacheSpec spec_;
  int64_t arena_bytes_;
  uint32_t vocab_size_;
  uint64_t last_step_id_ = 0;
  std::map<uint32_t, Placement> placements_;
  std::map<uint64_t, State> states_;
  std::map<uint32_t, Unit> units_;  // held, by cache id
  std::map<uint64_t, int64_t> spoilt_from_;
  std::vector<std::string> complaints_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_TESTS_COORDINATOR_STRICT_WORKER_H_
