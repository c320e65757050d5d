// The space of one rank's cache arena: which bytes are free, and where the next
// unit goes.
//
// Exact fit: a unit takes precisely its own bytes, whatever its size, so what
// is held is what was asked for, and a freed unit merges with the free space
// around it. Two rules keep that space in large pieces: a unit goes into the
// smallest free extent that holds it (a hole left by a unit of its own size, if
// there is one), and units with different lifetimes and sizes come from
// opposite ends: KV blocks from the low one, recurrent slots from the high one.
//
// A pure ledger of offsets: it touches no memory. Offsets and sizes are
// multiples of kCacheUnitBytes; a unit's id is its offset in that granule.
// Not thread-safe.
#ifndef SWITCHYARD_COORDINATOR_CACHE_ARENA_H_
#define SWITCHYARD_COORDINATOR_CACHE_ARENA_H_

#include <cstdint>
#include <optional>
#include <utility>

#include "absl/container/btree_map.h"
#include "absl/container/btree_set.h"
#include "absl/status/status.h"

namespace switchyard {

class CacheArena {
 public:
  enum class End { kLow, kHigh };

  // What does not fill a granule at the end of `arena_bytes` is left unused.
  // REQUIRES: 0 <= arena_bytes < 2^32 granules.
  explicit CacheArena(int64_t arena_bytes);

  // The id of a unit of `num_bytes`, or nothing if no free extent is so large.
  // REQUIRES: num_bytes is a positive multiple of kCacheUnitBytes.
  std::optional<uint32_t> Allocate(int64_t num_bytes, End end);

  // REQUIRES: `id` was allocated with `num_bytes` and is not free.
  void Free(uint32_t id, int64_t num_bytes);

  int64_t capacity_bytes() const { return capacity_bytes_; }
  int64_t free_bytes() const { return free_bytes_; }
  // The largest unit that would fit now.
  int64_t largest_free_bytes() const;

  // The free extents, by offset: offset -> bytes.
  const absl::btree_map<int64_t, int64_t>& free_extents() const {
    return extents_;
  }

  // Internal if the two indices of the free space disagree, or if extents
  // overlap, touch or leave the arena.
  absl::Status CheckIntegrity() const;

 private:
  void Insert(int64_t offset, int64_t num_bytes);
  void Erase(int64_t offset, int64_t num_bytes);

  int64_t capacity_bytes_ = 0;
  int64_t free_bytes_ = 0;
  // The same extents twice; neighbours are always merged.
  absl::btree_map<int64_t, int64_t> extents_;  // offset -> bytes
  absl::btree_set<std::pair<int64_t, int64_t>>
      extents_by_size_;  // bytes, offset
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_CACHE_ARENA_H_
