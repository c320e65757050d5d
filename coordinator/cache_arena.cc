#include "coordinator/cache_arena.h"

#include <iterator>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "model/cache_spec.h"

namespace switchyard {

CacheArena::CacheArena(int64_t arena_bytes)
    : capacity_bytes_(arena_bytes / kCacheUnitBytes * kCacheUnitBytes) {
  SY_CHECK(arena_bytes >= 0);
  SY_CHECK(capacity_bytes_ / kCacheUnitBytes <=
           std::numeric_limits<uint32_t>::max());
  if (capacity_bytes_ > 0) Insert(0, capacity_bytes_);
}

std::optional<uint32_t> CacheArena::Allocate(int64_t num_bytes, End end) {
  SY_CHECK(num_bytes > 0 && num_bytes % kCacheUnitBytes == 0);
  auto best = extents_by_size_.lower_bound({num_bytes, 0});
  if (best == extents_by_size_.end()) return std::nullopt;
  if (end == End::kHigh) {  // of the equally good ones, the highest
    best = std::prev(extents_by_size_.lower_bound({best->first + 1, 0}));
  }
  const auto [extent_bytes, extent_offset] = *best;
  Erase(extent_offset, extent_bytes);
  const int64_t rest_bytes = extent_bytes - num_bytes;
  const int64_t offset =
      end == End::kHigh ? extent_offset + rest_bytes : extent_offset;
  if (rest_bytes > 0) {
    Insert(end == End::kHigh ? extent_offset : offset + num_bytes, rest_bytes);
  }
  return static_cast<uint32_t>(offset / kCacheUnitBytes);
}

void CacheArena::Free(uint32_t id, int64_t num_bytes) {
  int64_t offset = int64_t{id} * kCacheUnitBytes;
  SY_CHECK(num_bytes > 0 && offset + num_bytes <= capacity_bytes_);
  auto next = extents_.lower_bound(offset);
  SY_CHECK(next == extents_.end() || offset + num_bytes <= next->first);
  if (next != extents_.begin()) {
    const auto [previous_offset, previous_bytes] = *std::prev(next);
    SY_CHECK(previous_offset + previous_bytes <= offset);
    if (previous_offset + previous_bytes == offset) {
      Erase(previous_offset, previous_bytes);
      offset = previous_offset;
      num_bytes += previous_bytes;
    }
  }
  next = extents_.lower_bound(offset);
  if (next != extents_.end() && next->first == offset + num_bytes) {
    const int64_t next_bytes = next->second;
    Erase(next->first, next_bytes);
    num_bytes += next_bytes;
  }
  Insert(offset, num_bytes);
}

int64_t CacheArena::largest_free_bytes() const {
  return extents_by_size_.empty() ? 0 : extents_by_size_.rbegin()->first;
}

void CacheArena::Insert(int64_t offset, int64_t num_bytes) {
  extents_.emplace(offset, num_bytes);
  extents_by_size_.emplace(num_bytes, offset);
  free_bytes_ += num_bytes;
}

void CacheArena::Erase(int64_t offset, int64_t num_bytes) {
  extents_.erase(offset);
  extents_by_size_.erase({num_bytes, offset});
  free_bytes_ -= num_bytes;
}

absl::Status CacheArena::CheckIntegrity() const {
  int64_t total = 0;
  int64_t end = -1;  // of the previous extent
  for (const auto& [offset, num_bytes] : extents_) {
    if (num_bytes <= 0 || offset <= end ||
        offset + num_bytes > capacity_bytes_) {
      return absl::InternalError(absl::StrCat(
          "cache arena: free extent of ", num_bytes, " bytes at ", offset,
          " overlaps or touches the one that ends at ", end,
          ", or leaves the arena of ", capacity_bytes_, " bytes"));
    }
    if (!extents_by_size_.contains({num_bytes, offset})) {
      return absl::InternalError(
          absl::StrCat("cache arena: free extent of ", num_bytes, " bytes at ",
                       offset, " is missing in the index by size"));
    }
    end = offset + num_bytes;
    total += num_bytes;
  }
  if (extents_by_size_.size() != extents_.size() || total != free_bytes_) {
    return absl::InternalError(absl::StrCat(
        "cache arena: ", extents_.size(), " free extents of ", total,
        " bytes, but ", extents_by_size_.size(), " in the index by size and ",
        free_bytes_, " bytes counted"));
  }
  return absl::OkStatus();
}

}  // namespace switchyard
