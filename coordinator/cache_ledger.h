// Who holds which block and slot of the cache: the coordinator's ledger, the
// only decider. The ids it hands out mean the same on every rank, because the
// arenas are equally large and every rank applies the same plans in order.
//
// A sequence holds exactly what its placement needs for its cached positions
// (CacheSpec::SequenceBytes): blocks in attention layers, at most the ring in
// windowed ones, one slot in recurrent ones, nothing for the mixers that it
// does not use. No unit is padded to the size of another kind, so the bytes
// held are the sum of what the live sequences need. What can be lost is
// external: free bytes lying in extents too small for the next unit. A sequence
// alone in the arena that never shared it loses nothing.
//
// Units are counted by reference; a unit returns to the arena with its last.
// Beside the sequences, the prefix cache may keep a unit, which no sequence
// need hold then: it is reusable. A block that is kept may be shared.
//
// Pure bookkeeping, no memory. Owned and used by one thread.
#ifndef SWITCHYARD_COORDINATOR_CACHE_LEDGER_H_
#define SWITCHYARD_COORDINATOR_CACHE_LEDGER_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "coordinator/cache_arena.h"
#include "model/cache_spec.h"
#include "model/placement.h"

namespace switchyard {

class CacheLedger {
 public:
  // A block appended to a layer's block table, or a layer's slot.
  struct NewUnit {
    int32_t layer = 0;
    uint32_t cache_id = 0;
  };

  CacheLedger(CacheSpec spec, int64_t arena_bytes);

  // Makes `sequence_id` hold the cache of positions [0, num_tokens), in every
  // layer or, on failure, exactly what it held before. Returns what is new, by
  // layer, then in block table order. ResourceExhausted if it does not fit now.
  // The first blocks of layers whose tables only grow may be `shared`, block by
  // block, each in the order of these layers. REQUIRES: a sequence that holds
  // anything keeps its placement and shares nothing more; num_tokens does not
  // shrink; shared units are kept.
  absl::StatusOr<std::vector<NewUnit>> Reserve(
      uint64_t sequence_id, const Placement& placement, int64_t num_tokens,
      absl::Span<const std::vector<uint32_t>> shared = {});
  // The bytes that Reserve would take from the arena.
  int64_t BytesToReserve(uint64_t sequence_id, const Placement& placement,
                         int64_t num_tokens, int64_t num_shared_blocks) const;

  // Takes back all that `sequence_id` holds, if it holds anything.
  void Release(uint64_t sequence_id);

  // The prefix cache's own reference. REQUIRES: Keep: the unit is there and not
  // kept yet; Drop: it is kept.
  void Keep(uint32_t cache_id);
  void Drop(uint32_t cache_id);
  // A new unit like another one, kept and held by no sequence.
  std::optional<uint32_t> AllocateKept(uint32_t like_id);

  // Block table or slot in this layer. REQUIRES: the sequence holds cache.
  absl::Span<const uint32_t> IdsOf(uint64_t sequence_id, int32_t layer) const {
    return holders_.at(sequence_id).ids[layer];
  }
  // Whether blocks of this layer can be shared: its table only grows.
  bool Shares(const Placement& placement, int32_t layer) const {
    const MixerCacheSpec& mixer = SpecOf(placement, layer);
    return mixer.kind == CacheKind::kBlocks && mixer.ring_blocks == 0;
  }

  // Positions `sequence_id` has room for; 0 if it holds nothing.
  int64_t NumTokensOf(uint64_t sequence_id) const;

  // Bytes of a sequence with `num_tokens` cached positions.
  int64_t BytesFor(const Placement& placement, int64_t num_tokens) const {
    return spec_.SequenceBytes(placement, num_tokens);
  }
  // The most positions, at most `limit`, that a sequence alone in the arena can
  // cache under `placement`; 0 if not even one.
  int64_t MaxTokens(const Placement& placement, int64_t limit) const;

  int64_t capacity_bytes() const { return arena_.capacity_bytes(); }
  int64_t free_bytes() const { return arena_.free_bytes(); }
  // By live sequences; and kept for later ones, by none of them.
  int64_t held_bytes() const { return held_bytes_; }
  int64_t reusable_bytes() const {
    return capacity_bytes() - free_bytes() - held_bytes_;
  }
  int64_t num_kept() const { return num_kept_; }
  bool IsKept(uint32_t cache_id) const {
    const auto it = units_.find(cache_id);
    return it != units_.end() && it->second.kept;
  }
  int64_t BytesOf(uint32_t cache_id) const {
    return units_.at(cache_id).num_bytes;
  }
  // An upper bound of what one more block in every block table would take.
  int64_t growth_bytes() const { return growth_bytes_; }
  int64_t slot_bytes_held() const { return slot_bytes_held_; }
  int64_t num_blocks_held() const { return num_blocks_held_; }
  int64_t num_slots_held() const { return num_slots_held_; }
  int64_t num_holders() const { return static_cast<int64_t>(holders_.size()); }
  const CacheSpec& spec() const { return spec_; }

  // Recounts everything from the holders: every unit held by as many as are
  // counted, of the size and number its layer needs, apart from each other and
  // from the free space, nothing leaked. Internal names the first
  // contradiction. Linear in the units held.
  absl::Status CheckIntegrity() const;

 private:
  struct Unit {
    int64_t num_bytes = 0;
    int32_t num_references = 0;  // of sequences
    CacheKind kind = CacheKind::kBlocks;
    bool kept = false;
  };
  struct Holder {
    Placement placement;
    int64_t num_tokens = 0;                  // positions it has room for
    int64_t growth_bytes = 0;                // its share of growth_bytes_
    std::vector<std::vector<uint32_t>> ids;  // [layer], in block table order
  };

  const MixerCacheSpec& SpecOf(const Placement& placement,
                               int32_t layer) const {
    return spec_.At(layer, placement[layer]);
  }
  void Reference(Unit* unit);
  void Unreference(uint32_t cache_id);

  CacheSpec spec_;
  CacheArena arena_;
  absl::flat_hash_map<uint32_t, Unit> units_;      // by cache id
  absl::flat_hash_map<uint64_t, Holder> holders_;  // by sequence id
  int64_t growth_bytes_ = 0;
  int64_t held_bytes_ = 0;
  int64_t num_kept_ = 0;
  int64_t num_blocks_held_ = 0;
  int64_t num_slots_held_ = 0;
  int64_t slot_bytes_held_ = 0;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_CACHE_LEDGER_H_
