// CacheStore: one rank's cache arena, and which of its blocks and slots the
// sequences own.
//
// The coordinator's ledger decides every id; the store checks what arrives
// (range, overlap, layer, count), so that a wrong plan is an error and never a
// write into another sequence's state. It owns the arena: one allocation, cut
// up by the ids alone. One thread uses it.
//
// A unit may outlive its sequences: one that is kept is there until it is
// dropped. Kept blocks may be shared by sequences, which only read them; other
// kept units are the source of copies.
//
// Invariants: units are disjoint; a slot was zeroed when it was handed out;
// with `poison_freed` every byte outside of all units is 0xff, a NaN in every
// float type. Behind the arena lies one more unit, the
// padding's, which any number of sequences may write to at once.
#ifndef SWITCHYARD_WORKER_CACHE_STORE_H_
#define SWITCHYARD_WORKER_CACHE_STORE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/device.h"
#include "model/cache_spec.h"
#include "model/placement.h"

namespace switchyard {

struct CacheStoreOptions {
  int64_t arena_bytes = 0;
  int64_t max_context_tokens = 0;  // bounds a block table
  bool poison_freed = false;       // for tests: stale reads become NaN
};

// What one sequence holds: per layer its block table, or its one slot. Filled
// by CacheStore only.
class SequenceCache {
 public:
  explicit SequenceCache(const Placement& placement)
      : placement_(placement), ids_(placement.num_layers()) {}

  const Placement& placement() const { return placement_; }
  absl::Span<const uint32_t> ids(int32_t layer) const { return ids_[layer]; }

 private:
  friend class CacheStore;
  Placement placement_;
  std::vector<std::vector<uint32_t>> ids_;  // [layer]
};

class CacheStore {
 public:
  // `spec` is this rank's, borrowed. ResourceExhausted; InvalidArgument for an
  // arena that 32-bit ids cannot address.
  static absl::StatusOr<std::unique_ptr<CacheStore>> Create(
      Device* device, const CacheSpec* spec, const CacheStoreOptions& options);

  // Memory that Create takes beside the arena.
  static int64_t PaddingBytes(const CacheSpec& spec);

  std::byte* arena() const { return arena_.get(); }
  int64_t arena_bytes() const { return options_.arena_bytes; }

  // Hands the unit to the sequence: appends a block to the layer's table, or
  // sets the layer's slot and zeroes it. InvalidArgument: no such layer, beyond
  // the arena, overlapping a live unit, or more than the layer can hold.
  absl::Status Append(SequenceCache& cache, int64_t layer, uint32_t cache_id);

  // Appends a kept block to the layer's table, to be read only.
  // InvalidArgument: no such layer, its table is a ring or no table, not a kept
  // unit of its size, or one too many.
  absl::Status Share(SequenceCache& cache, int64_t layer, uint32_t cache_id);

  // InvalidArgument: no such unit, or it is kept already.
  absl::Status Keep(uint32_t cache_id);
  // Frees the unit unless a sequence holds it. InvalidArgument: not kept.
  absl::Status Drop(uint32_t cache_id);

  // One unit to another of the same size, in stream order; among themselves in
  // any order.
  struct UnitCopy {
    uint32_t from_id = 0;
    uint32_t to_id = 0;
    bool keep = false;  // `to_id` is a new unit, kept by nobody but itself
  };
  // InvalidArgument: `from_id` is no unit; `to_id` is none of that size that
  // one sequence alone holds, or, to be kept, overlaps one; or a target is
  // another copy's source or target.
  absl::Status Copy(absl::Span<const UnitCopy> copies);

  // Whether the sequence holds what its first `num_tokens` positions need.
  // InvalidArgument names the layer.
  absl::Status CheckCovers(const SequenceCache& cache,
                           int64_t num_tokens) const;

  // The cache of a sequence that only fills up a batch: it is at its first
  // position in every step, and nobody reads what it leaves. Not for Append or
  // Release.
  SequenceCache PaddingCache(const Placement& placement) const;

  // Takes all units back but those that are kept or shared, and poisons them if
  // asked to.
  absl::Status Release(SequenceCache& cache);

  // Whether a sequence holds a table of blocks there, or else one slot.
  bool HasTable(int32_t layer, int32_t mixer) const {
    return spec_->At(layer, mixer).kind == CacheKind::kBlocks;
  }
  // Entries of the table that ops get for a sequence of `num_tokens` positions.
  int64_t NumEntries(int32_t layer, int32_t mixer, int64_t num_tokens) const {
    return spec_->NumUnits(layer, mixer, num_tokens);
  }

  // By sequences or kept.
  int64_t num_units_held() const { return live_.size(); }

 private:
  CacheStore(Device* device, const CacheSpec* spec,
             const CacheStoreOptions& options, DeviceBuffer arena)
      : device_(device),
        spec_(spec),
        options_(options),
        arena_(std::move(arena)) {}

  struct Unit {
    uint32_t end = 0;  // granule
    int32_t num_holders = 0;
    bool kept = false;
  };

  // OK if a unit of granules [begin, end) fits into the arena, beside others.
  absl::Status CheckFree(uint32_t begin, int64_t num_bytes) const;
  // Of a sequence's layer, before it gets one more unit.
  absl::Status CheckRoom(const SequenceCache& cache, int64_t layer) const;
  absl::Status Free(std::map<uint32_t, Unit>::iterator unit);

  Device* const device_;
  const CacheSpec* const spec_;
  const CacheStoreOptions options_;
  DeviceBuffer arena_;
  std::map<uint32_t, Unit> live_;  // by first granule
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_CACHE_STORE_H_
