#include "coordinator/placement_ids.h"

#include "kernels/check.h"

namespace switchyard {

PlacementIds::PlacementIds(int64_t capacity) : capacity_(capacity) {
  SY_CHECK(capacity > 0);
}

PlacementIds::Id PlacementIds::Acquire(const Placement& placement) {
  if (const auto it = entries_.find(placement); it != entries_.end()) {
    if (it->second.num_users++ == 0) ++num_in_use_;
    return {it->second.id, false};
  }
  ++num_in_use_;
  if (num_ids() >= capacity_) {
    while (!unused_.empty()) {
      const uint32_t id = unused_.front();
      unused_.pop_front();
      const auto old = entries_.find(placements_[id]);
      old->second.queued = false;
      if (old->second.num_users > 0) continue;  // in use again meanwhile
      entries_.erase(old);
      placements_[id] = placement;
      entries_.emplace(placement, Entry{id, 1, false});
      return {id, true};
    }
  }
  const auto id = static_cast<uint32_t>(placements_.size());
  placements_.push_back(placement);
  entries_.emplace(placement, Entry{id, 1, false});
  return {id, true};
}

void PlacementIds::Release(const Placement& placement) {
  const auto it = entries_.find(placement);
  SY_CHECK(it != entries_.end() && it->second.num_users > 0);
  if (--it->second.num_users > 0) return;
  --num_in_use_;
  if (it->second.queued) return;
  it->second.queued = true;
  unused_.push_back(it->second.id);
}

}  // namespace switchyard
