#include "worker/cache_store.h"

#include <algorithm>
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

absl::Status CacheStore::Append(SequenceCache& cache, int64_t layer,
                                uint32_t cache_id) {
  if (layer >= spec_->num_layers()) {
    return absl::InvalidArgumentError(
        absl::StrCat("cache for layer ", layer, "; the model has ",
                     spec_->num_layers(), " layers"));
  }
  const int32_t mixer = cache.placement_[layer];
  const MixerCacheSpec& unit = spec_->At(layer, mixer);
  std::vector<uint32_t>& ids = cache.ids_[layer];
  const auto error = [&](absl::string_view problem) {
    return absl::InvalidArgumentError(absl::StrCat(UnitName(unit.kind), " ",
                                                   cache_id, " for layer ",
                                                   layer, " ", problem));
  };

  const int64_t capacity =
      spec_->NumUnits(layer, mixer, options_.max_context_tokens);
  if (static_cast<int64_t>(ids.size()) >= capacity) {
    return error(
        absl::StrCat("is one too many: a sequence holds at most ", capacity));
  }
  const int64_t end_bytes = cache_id * kCacheUnitBytes + unit.unit_bytes;
  if (end_bytes > options_.arena_bytes) {
    return error(absl::StrCat("ends at byte ", end_bytes, " of an arena of ",
                              options_.arena_bytes));
  }
  const uint32_t end = static_cast<uint32_t>(end_bytes / kCacheUnitBytes);
  const auto next = live_.lower_bound(cache_id);
  const bool hits_next = next != live_.end() && next->first < end;
  const bool hits_previous =
      next != live_.begin() && std::prev(next)->second > cache_id;
  if (hits_next || hits_previous) {
    return error("overlaps a unit that a live sequence holds");
  }
  live_.emplace_hint(next, cache_id, end);
  ids.push_back(cache_id);
  if (unit.kind == CacheKind::kSlot) {
    return device_->Fill(arena_.get() + cache_id * kCacheUnitBytes, 0,
                         unit.unit_bytes);
  }
  return absl::OkStatus();
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
  for (int32_t layer = 0; layer < spec_->num_layers(); ++layer) {
    const MixerCacheSpec& unit = spec_->At(layer, cache.placement_[layer]);
    for (uint32_t id : cache.ids_[layer]) {
      SY_CHECK(live_.erase(id) == 1);
      if (!options_.poison_freed) continue;
      SY_RETURN_IF_ERROR(device_->Fill(arena_.get() + id * kCacheUnitBytes,
                                       kPoison, unit.unit_bytes));
    }
    cache.ids_[layer].clear();
  }
  return absl::OkStatus();
}

}  // namespace switchyard
