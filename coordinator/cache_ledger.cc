#include "coordinator/cache_ledger.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "absl/container/btree_map.h"
#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "kernels/status.h"

namespace switchyard {
namespace {

// Blocks and slots differ in size and lifetime; apart, they leave larger holes.
CacheArena::End EndFor(CacheKind kind) {
  return kind == CacheKind::kSlot ? CacheArena::End::kHigh
                                  : CacheArena::End::kLow;
}

}  // namespace

CacheLedger::CacheLedger(CacheSpec spec, int64_t arena_bytes)
    : spec_(std::move(spec)), arena_(arena_bytes) {}

absl::StatusOr<std::vector<CacheLedger::NewUnit>> CacheLedger::Reserve(
    uint64_t sequence_id, const Placement& placement, int64_t num_tokens,
    absl::Span<const std::vector<uint32_t>> shared) {
  SY_CHECK(placement.num_layers() == spec_.num_layers() && num_tokens > 0);
  std::vector<NewUnit> added;
  const auto known = holders_.find(sequence_id);
  const int64_t held_tokens =
      known == holders_.end() ? 0 : known->second.num_tokens;
  SY_CHECK(known == holders_.end() || known->second.placement == placement);
  SY_CHECK(num_tokens >= held_tokens);
  SY_CHECK(shared.empty() || known == holders_.end());
  // The usual step of a decode stays within its last block.
  const int64_t block_size = spec_.block_size();
  if (held_tokens > 0 && (held_tokens + block_size - 1) / block_size ==
                             (num_tokens + block_size - 1) / block_size) {
    known->second.num_tokens = num_tokens;
    return added;
  }

  for (int32_t layer = 0; layer < spec_.num_layers(); ++layer) {
    const MixerCacheSpec& mixer = SpecOf(placement, layer);
    const int64_t num_new =
        spec_.NumUnits(layer, placement[layer], num_tokens) -
        spec_.NumUnits(layer, placement[layer], held_tokens) -
        (Shares(placement, layer) ? static_cast<int64_t>(shared.size()) : 0);
    for (int64_t i = 0; i < num_new; ++i) {
      const std::optional<uint32_t> id =
          arena_.Allocate(mixer.unit_bytes, EndFor(mixer.kind));
      if (!id.has_value()) {
        const int64_t free_before = arena_.free_bytes();
        for (const NewUnit& unit : added) {
          arena_.Free(unit.cache_id, SpecOf(placement, unit.layer).unit_bytes);
        }
        return absl::ResourceExhaustedError(absl::StrCat(
            "no room for a unit of ", mixer.unit_bytes, " bytes of layer ",
            layer, " in the ", free_before, " free bytes left of the cache's ",
            arena_.capacity_bytes()));
      }
      added.push_back({layer, *id});
    }
  }

  Holder& holder = holders_[sequence_id];
  if (holder.ids.empty()) {
    holder.placement = placement;
    holder.ids.resize(spec_.num_layers());
    for (int32_t layer = 0; layer < spec_.num_layers(); ++layer) {
      const MixerCacheSpec& mixer = SpecOf(placement, layer);
      if (mixer.kind == CacheKind::kBlocks) {
        holder.growth_bytes += mixer.unit_bytes;
      }
    }
    growth_bytes_ += holder.growth_bytes;
  }
  holder.num_tokens = num_tokens;
  for (const std::vector<uint32_t>& block : shared) {
    size_t next = 0;
    for (int32_t layer = 0; layer < spec_.num_layers(); ++layer) {
      if (!Shares(placement, layer)) continue;
      const uint32_t id = block[next++];
      Unit& unit = units_.at(id);
      SY_CHECK(unit.kept);
      Reference(&unit);
      holder.ids[layer].push_back(id);
    }
    SY_CHECK(next == block.size());
  }
  for (const NewUnit& unit : added) {
    const MixerCacheSpec& mixer = SpecOf(placement, unit.layer);
    holder.ids[unit.layer].push_back(unit.cache_id);
    const auto [it, inserted] =
        units_.emplace(unit.cache_id, Unit{mixer.unit_bytes, 0, mixer.kind});
    SY_CHECK(inserted);
    Reference(&it->second);
  }
  return added;
}

int64_t CacheLedger::BytesToReserve(uint64_t sequence_id,
                                    const Placement& placement,
                                    int64_t num_tokens,
                                    int64_t num_shared_blocks) const {
  const int64_t held_tokens = NumTokensOf(sequence_id);
  const int64_t block_size = spec_.block_size();
  if (held_tokens > 0 && (held_tokens + block_size - 1) / block_size ==
                             (num_tokens + block_size - 1) / block_size) {
    return 0;
  }
  int64_t bytes =
      BytesFor(placement, num_tokens) - BytesFor(placement, held_tokens);
  for (int32_t layer = 0; num_shared_blocks > 0 && layer < spec_.num_layers();
       ++layer) {
    if (!Shares(placement, layer)) continue;
    bytes -= num_shared_blocks * SpecOf(placement, layer).unit_bytes;
  }
  return bytes;
}

void CacheLedger::Keep(uint32_t cache_id) {
  Unit& unit = units_.at(cache_id);
  SY_CHECK(!unit.kept);
  unit.kept = true;
  ++num_kept_;
}

void CacheLedger::Drop(uint32_t cache_id) {
  const auto it = units_.find(cache_id);
  SY_CHECK(it != units_.end() && it->second.kept);
  it->second.kept = false;
  --num_kept_;
  if (it->second.num_references > 0) return;
  arena_.Free(cache_id, it->second.num_bytes);
  units_.erase(it);
}

std::optional<uint32_t> CacheLedger::AllocateKept(uint32_t like_id) {
  const Unit like = units_.at(like_id);
  const std::optional<uint32_t> id =
      arena_.Allocate(like.num_bytes, EndFor(like.kind));
  if (!id.has_value()) return id;
  SY_CHECK(
      units_.emplace(*id, Unit{like.num_bytes, 0, like.kind, true}).second);
  ++num_kept_;
  return id;
}

void CacheLedger::Reference(Unit* unit) {
  if (unit->num_references++ > 0) return;
  held_bytes_ += unit->num_bytes;
  ++(unit->kind == CacheKind::kSlot ? num_slots_held_ : num_blocks_held_);
  if (unit->kind == CacheKind::kSlot) slot_bytes_held_ += unit->num_bytes;
}

void CacheLedger::Release(uint64_t sequence_id) {
  const auto it = holders_.find(sequence_id);
  if (it == holders_.end()) return;
  for (const std::vector<uint32_t>& layer_ids : it->second.ids) {
    for (const uint32_t id : layer_ids) Unreference(id);
  }
  growth_bytes_ -= it->second.growth_bytes;
  holders_.erase(it);
}

void CacheLedger::Unreference(uint32_t cache_id) {
  const auto it = units_.find(cache_id);
  SY_CHECK(it != units_.end() && it->second.num_references > 0);
  const Unit& unit = it->second;
  if (--it->second.num_references > 0) return;
  held_bytes_ -= unit.num_bytes;
  --(unit.kind == CacheKind::kSlot ? num_slots_held_ : num_blocks_held_);
  if (unit.kind == CacheKind::kSlot) slot_bytes_held_ -= unit.num_bytes;
  if (unit.kept) return;
  arena_.Free(cache_id, unit.num_bytes);
  units_.erase(it);
}

int64_t CacheLedger::NumTokensOf(uint64_t sequence_id) const {
  const auto it = holders_.find(sequence_id);
  return it == holders_.end() ? 0 : it->second.num_tokens;
}

int64_t CacheLedger::MaxTokens(const Placement& placement,
                               int64_t limit) const {
  int64_t fits = 0;
  int64_t beyond = std::max<int64_t>(limit, 0) + 1;
  while (beyond - fits > 1) {
    const int64_t middle = fits + (beyond - fits) / 2;
    (BytesFor(placement, middle) <= capacity_bytes() ? fits : beyond) = middle;
  }
  return fits;
}

absl::Status CacheLedger::CheckIntegrity() const {
  SY_RETURN_IF_ERROR(arena_.CheckIntegrity());

  absl::flat_hash_map<uint32_t, int32_t> references;
  int64_t growth_bytes = 0;
  for (const auto& [sequence_id, holder] : holders_) {
    growth_bytes += holder.growth_bytes;
    for (int32_t layer = 0; layer < spec_.num_layers(); ++layer) {
      const MixerCacheSpec& mixer = SpecOf(holder.placement, layer);
      const int64_t expected =
          spec_.NumUnits(layer, holder.placement[layer], holder.num_tokens);
      if (static_cast<int64_t>(holder.ids[layer].size()) != expected) {
        return absl::InternalError(absl::StrCat(
            "cache ledger: sequence ", sequence_id, " holds ",
            holder.ids[layer].size(), " units in layer ", layer, ", but its ",
            holder.num_tokens, " positions need ", expected));
      }
      for (const uint32_t id : holder.ids[layer]) {
        const auto unit = units_.find(id);
        if (unit == units_.end() ||
            unit->second.num_bytes != mixer.unit_bytes ||
            unit->second.kind != mixer.kind) {
          return absl::InternalError(absl::StrCat(
              "cache ledger: sequence ", sequence_id, " holds id ", id,
              " in layer ", layer, ", which is not a unit of that layer"));
        }
        ++references[id];
      }
    }
  }

  // Units and free extents must tile the arena without a gap or an overlap.
  absl::btree_map<int64_t, int64_t> tiles = arena_.free_extents();
  int64_t num_blocks = 0;
  int64_t num_slots = 0;
  int64_t slot_bytes = 0;
  int64_t held_bytes = 0;
  int64_t num_kept = 0;
  for (const auto& [id, unit] : units_) {
    const auto counted = references.find(id);
    const int32_t num_holders =
        counted == references.end() ? 0 : counted->second;
    if (num_holders != unit.num_references) {
      return absl::InternalError(absl::StrCat(
          "cache ledger: id ", id, " is held by ", num_holders,
          " block tables, but counts ", unit.num_references, " references"));
    }
    if (num_holders == 0 && !unit.kept) {
      return absl::InternalError(
          absl::StrCat("cache ledger: id ", id, " is neither held nor kept"));
    }
    num_kept += unit.kept ? 1 : 0;
    if (num_holders > 0) {
      held_bytes += unit.num_bytes;
      ++(unit.kind == CacheKind::kSlot ? num_slots : num_blocks);
      if (unit.kind == CacheKind::kSlot) slot_bytes += unit.num_bytes;
    }
    if (!tiles.emplace(int64_t{id} * kCacheUnitBytes, unit.num_bytes).second) {
      return absl::InternalError(
          absl::StrCat("cache ledger: id ", id, " is both held and free"));
    }
  }
  int64_t end = 0;
  for (const auto& [offset, num_bytes] : tiles) {
    if (offset != end) {
      return absl::InternalError(absl::StrCat(
          "cache ledger: the arena's bytes from ", std::min(offset, end),
          " to ", std::max(offset, end), " are ",
          offset < end ? "held twice" : "neither held nor free"));
    }
    end += num_bytes;
  }
  if (end != capacity_bytes() || num_blocks != num_blocks_held_ ||
      num_slots != num_slots_held_ || slot_bytes != slot_bytes_held_ ||
      held_bytes != held_bytes_ || num_kept != num_kept_ ||
      growth_bytes != growth_bytes_) {
    return absl::InternalError(absl::StrCat(
        "cache ledger: counts ", num_blocks_held_, " blocks, ", num_slots_held_,
        " slots of ", slot_bytes_held_, " bytes, ", growth_bytes_,
        " bytes of growth, ", held_bytes_, " bytes held, ", num_kept_,
        " units kept, but holds ", num_blocks, " blocks, ", num_slots,
        " slots of ", slot_bytes, " bytes, ", growth_bytes, " bytes, ",
        held_bytes, " bytes, ", num_kept, " units; ", end, " of ",
        capacity_bytes(), " bytes are accounted for"));
  }
  return absl::OkStatus();
}

}  // namespace switchyard
