#include "worker/cache_store.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "kernels/status.h"

namespace switchyard {
namespace {

// NaN in fp32, bf16 and fp16 alike.
constexpr uint8_t kPoison = 0xff;

const char* UnitName(CacheKind kind) {
  return kind == CacheKind::kBlocks ? "block" : "slot";
}

}  // namespace

int64_t CacheStore::PaddingBytes(const CacheSpec& spec) {
  int64_t bytes = 0;
  for (int32_t layer = 0; layer < spec.num_layers(); ++layer) {
    for (int32_t mixer = 0; mixer < spec.num_mixers(layer); ++mixer) {
      bytes = std::max(bytes, spec.At(layer, mixer).unit_bytes);
    }
  }
  return bytes + kCacheUnitBytes;  // to a whole cache id
}

absl::StatusOr<std::unique_ptr<CacheStore>> CacheStore::Create(
    Device* device, const CacheSpec* spec, const CacheStoreOptions& options) {
  const int64_t padding_bytes = PaddingBytes(*spec);
  const int64_t max_bytes =
      int64_t{std::numeric_limits<uint32_t>::max()} * kCacheUnitBytes -
      padding_bytes;
  if (options.arena_bytes <= 0 || options.arena_bytes > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("arena_bytes is ", options.arena_bytes,
                     ", should be between 1 and ", max_bytes));
  }
  SY_ASSIGN_OR_RETURN(DeviceBuffer arena,
                      device->Allocate(options.arena_bytes + padding_bytes));
  SY_RETURN_IF_ERROR(
      device->Fill(arena.get() + options.arena_bytes, 0, padding_bytes));
  if (options.poison_freed) {
    SY_RETURN_IF_ERROR(device->Fill(arena.get(), kPoison, options.arena_bytes));
  }
  return std::unique_ptr<CacheStore>(
      new CacheStore(device, spec, options, std::move(arena)));
}

absl::Status CacheStore::CheckRoom(const SequenceCache& cache,
                                   int64_t layer) const {
  if (layer >= spec_->num_layers()) {
    return absl::InvalidArgumentError(
        absl::StrCat("cache for layer ", layer, "; the model has ",
                     spec_->num_layers(), " layers"));
  }
  const int64_t capacity = spec_->NumUnits(layer, cache.placement_[layer],
                                           options_.max_context_tokens);
  if (static_cast<int64_t>(cache.ids_[layer].size()) >= capacity) {
    return absl::InvalidArgumentError(
        absl::StrCat("a unit for layer ", layer,
                     " is one too many: a sequence holds at most ", capacity));
  }
  return absl::OkStatus();
}

absl::Status CacheStore::CheckFree(uint32_t begin, int64_t num_bytes) const {
  const int64_t end_bytes = begin * kCacheUnitBytes + num_bytes;
  if (end_bytes > options_.arena_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "ends at byte ", end_bytes, " of an arena of ", options_.arena_bytes));
  }
  const int64_t end = end_bytes / kCacheUnitBytes;
  const auto next = live_.lower_bound(begin);
  const bool hits_next = next != live_.end() && next->first < end;
  const bool hits_previous =
      next != live_.begin() && std::prev(next)->second.end > begin;
  if (hits_next || hits_previous) {
    return absl::InvalidArgumentError(
        "overlaps a unit that a live sequence holds, or that is kept");
  }
  return absl::OkStatus();
}

absl::Status CacheStore::Append(SequenceCache& cache, int64_t layer,
                                uint32_t cache_id) {
  SY_RETURN_IF_ERROR(CheckRoom(cache, layer));
  const MixerCacheSpec& unit = spec_->At(layer, cache.placement_[layer]);
  if (absl::Status free = CheckFree(cache_id, unit.unit_bytes); !free.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(UnitName(unit.kind), " ",
                                                   cache_id, " for layer ",
                                                   layer, " ", free.message()));
  }
  live_[cache_id] = {
      static_cast<uint32_t>(cache_id + unit.unit_bytes / kCacheUnitBytes), 1,
      false};
  cache.ids_[layer].push_back(cache_id);
  if (unit.kind == CacheKind::kSlot) {
    return device_->Fill(arena_.get() + cache_id * kCacheUnitBytes, 0,
                         unit.unit_bytes);
  }
  return absl::OkStatus();
}

absl::Status CacheStore::Share(SequenceCache& cache, int64_t layer,
                               uint32_t cache_id) {
  SY_RETURN_IF_ERROR(CheckRoom(cache, layer));
  const MixerCacheSpec& spec = spec_->At(layer, cache.placement_[layer]);
  const auto unit = live_.find(cache_id);
  if (spec.kind != CacheKind::kBlocks || spec.ring_blocks > 0 ||
      unit == live_.end() || !unit->second.kept ||
      (unit->second.end - cache_id) * kCacheUnitBytes != spec.unit_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("unit ", cache_id, " for layer ", layer,
                     " is not a kept block that its sequences may share"));
  }
  ++unit->second.num_holders;
  cache.ids_[layer].push_back(cache_id);
  return absl::OkStatus();
}

absl::Status CacheStore::Keep(uint32_t cache_id) {
  const auto unit = live_.find(cache_id);
  if (unit == live_.end() || unit->second.kept) {
    return absl::InvalidArgumentError(
        absl::StrCat("unit ", cache_id, " is to be kept, but is ",
                     unit == live_.end() ? "not there" : "kept already"));
  }
  unit->second.kept = true;
  return absl::OkStatus();
}

absl::Status CacheStore::Drop(uint32_t cache_id) {
  const auto unit = live_.find(cache_id);
  if (unit == live_.end() || !unit->second.kept) {
    return absl::InvalidArgumentError(
        absl::StrCat("unit ", cache_id, " is to be dropped, but is not kept"));
  }
  unit->second.kept = false;
  return unit->second.num_holders == 0 ? Free(unit) : absl::OkStatus();
}

absl::Status CacheStore::Copy(absl::Span<const UnitCopy> copies) {
  struct Extent {
    int64_t from = 0;
    int64_t to = 0;
    int64_t bytes = 0;
  };
  std::vector<Extent> extents;
  for (const UnitCopy& copy : copies) {
    const auto error = [&copy](absl::string_view problem) {
      return absl::InvalidArgumentError(absl::StrCat(
          "copy of unit ", copy.from_id, " to ", copy.to_id, ": ", problem));
    };
    const auto from = live_.find(copy.from_id);
    if (from == live_.end()) return error("there is no such unit");
    const uint32_t size = from->second.end - from->first;
    if (copy.keep) {
      absl::Status free = CheckFree(copy.to_id, size * kCacheUnitBytes);
      if (!free.ok()) return error(free.message());
      live_[copy.to_id] = {copy.to_id + size, 0, true};
    } else {
      const auto to = live_.find(copy.to_id);
      if (to == live_.end() || to->second.kept || to->second.num_holders != 1 ||
          to->second.end - to->first != size) {
        return error("not to a unit of this size that one sequence holds");
      }
    }
    extents.push_back({copy.from_id * kCacheUnitBytes,
                       copy.to_id * kCacheUnitBytes, size * kCacheUnitBytes});
  }
  std::vector<int64_t> targets;
  for (const Extent& extent : extents) targets.push_back(extent.to);
  std::sort(targets.begin(), targets.end());
  for (size_t i = 0; i < extents.size(); ++i) {
    const bool twice = i > 0 && targets[i] == targets[i - 1];
    const int64_t unit = twice ? targets[i] : extents[i].from;
    if (twice || std::binary_search(targets.begin(), targets.end(), unit)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "unit ", unit / kCacheUnitBytes, " is the target of a copy and the ",
          twice ? "target" : "source",
          " of another; the copies of a step come in no order"));
    }
  }
  // Neighbours that are neighbours at both ends go at once.
  std::sort(extents.begin(), extents.end(),
            [](const Extent& a, const Extent& b) { return a.from < b.from; });
  for (size_t i = 0; i < extents.size();) {
    Extent run = extents[i++];
    while (i < extents.size() && extents[i].from == run.from + run.bytes &&
           extents[i].to == run.to + run.bytes) {
      run.bytes += extents[i++].bytes;
    }
    SY_RETURN_IF_ERROR(device_->CopyOnDevice(
        arena_.get() + run.to, arena_.get() + run.from, run.bytes));
  }
  return absl::OkStatus();
}

absl::Status CacheStore::Free(std::map<uint32_t, Unit>::iterator unit) {
  const uint32_t begin = unit->first;
  const int64_t num_bytes = (unit->second.end - begin) * kCacheUnitBytes;
  live_.erase(unit);
  if (!options_.poison_freed) return absl::OkStatus();
  return device_->Fill(arena_.get() + begin * kCacheUnitBytes, kPoison,
                       num_bytes);
}

absl::Status CacheStore::CheckCovers(const SequenceCache& cache,
                                     int64_t num_tokens) const {
  for (int32_t layer = 0; layer < spec_->num_layers(); ++layer) {
    const int32_t mixer = cache.placement_[layer];
    const int64_t needed = spec_->NumUnits(layer, mixer, num_tokens);
    const int64_t held = cache.ids_[layer].size();
    if (held < needed) {
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", layer, " holds ", held, " ",
                       UnitName(spec_->At(layer, mixer).kind), "s, ",
                       num_tokens, " positions need ", needed));
    }
  }
  return absl::OkStatus();
}

SequenceCache CacheStore::PaddingCache(const Placement& placement) const {
  const uint32_t id = static_cast<uint32_t>(
      (options_.arena_bytes + kCacheUnitBytes - 1) / kCacheUnitBytes);
  SequenceCache cache(placement);
  for (std::vector<uint32_t>& ids : cache.ids_) ids.assign(1, id);
  return cache;
}

absl::Status CacheStore::Release(SequenceCache& cache) {
  for (std::vector<uint32_t>& ids : cache.ids_) {
    for (const uint32_t id : ids) {
      const auto unit = live_.find(id);
      SY_CHECK(unit != live_.end() && unit->second.num_holders > 0);
      if (--unit->second.num_holders == 0 && !unit->second.kept) {
        SY_RETURN_IF_ERROR(Free(unit));
      }
    }
    ids.clear();
  }
  return absl::OkStatus();
}

}  // namespace switchyard
