// Copying one sequence's cache to another of the same tokens: how a benchmark
// fills a large batch without computing it sequence by sequence.
#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "kernels/status.h"
#include "worker/executor.h"

namespace switchyard {
namespace {

// Bytes of the arena to copy.
struct Extent {
  int64_t from = 0;
  int64_t to = 0;
  int64_t bytes = 0;
};

// Sorts by source, and joins neighbours that are neighbours at both ends.
std::vector<Extent> Joined(std::vector<Extent> extents) {
  std::sort(extents.begin(), extents.end(),
            [](const Extent& a, const Extent& b) { return a.from < b.from; });
  std::vector<Extent> joined;
  for (const Extent& extent : extents) {
    if (!joined.empty() &&
        joined.back().from + joined.back().bytes == extent.from &&
        joined.back().to + joined.back().bytes == extent.to) {
      joined.back().bytes += extent.bytes;
    } else {
      joined.push_back(extent);
    }
  }
  return joined;
}

}  // namespace

absl::Status Executor::CopyCache(uint64_t from_id, uint64_t to_id) {
  const auto from = sequences_.find(from_id);
  const auto to = sequences_.find(to_id);
  if (from == sequences_.end() || to == sequences_.end() || from == to) {
    return absl::InvalidArgumentError(
        absl::StrCat("sequences ", from_id, " and ", to_id,
                     " are not two that the rank knows"));
  }
  const WorkerSequence& source = from->second;
  WorkerSequence& target = to->second;
  const auto begin = [](const WorkerSequence& sequence, int32_t num) {
    return absl::MakeConstSpan(sequence.tokens).subspan(0, num);
  };
  const int64_t num_known =
      std::min(source.tokens.size(), target.tokens.size());
  if (source.cache.placement() != target.cache.placement() ||
      num_known < source.num_cached ||
      begin(source, source.num_cached) != begin(target, source.num_cached)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "sequence ", to_id, " does not begin with the ", source.num_cached,
        " cached tokens of sequence ", from_id, " under the same placement"));
  }
  SY_RETURN_IF_ERROR(cache_->CheckCovers(target.cache, source.num_cached));

  std::vector<Extent> extents;
  const Placement& placement = source.cache.placement();
  for (int32_t layer = 0; layer < placement.num_layers(); ++layer) {
    const int64_t bytes = cache_spec_->At(layer, placement[layer]).unit_bytes;
    const int64_t num_units =
        cache_spec_->NumUnits(layer, placement[layer], source.num_cached);
    for (int64_t i = 0; i < num_units; ++i) {
      extents.push_back({source.cache.ids(layer)[i] * kCacheUnitBytes,
                         target.cache.ids(layer)[i] * kCacheUnitBytes, bytes});
    }
  }
  for (const Extent& extent : Joined(std::move(extents))) {
    SY_RETURN_IF_ERROR(device_->CopyOnDevice(cache_->arena() + extent.to,
                                             cache_->arena() + extent.from,
                                             extent.bytes));
  }
  target.num_cached = source.num_cached;
  return device_->Synchronize();
}

}  // namespace switchyard
