// Short names for placements on the wire: a plan spells a placement out once
// and then refers to it by number.
//
// A placement keeps its number as long as a started sequence uses it, and after
// that until the table is full and another placement needs the number; a plan
// that reuses it spells it out anew. So neither side's table grows with the
// number of placements ever seen. Not thread-safe.
#ifndef SWITCHYARD_COORDINATOR_PLACEMENT_IDS_H_
#define SWITCHYARD_COORDINATOR_PLACEMENT_IDS_H_

#include <cstdint>
#include <deque>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "model/placement.h"

namespace switchyard {

class PlacementIds {
 public:
  struct Id {
    uint32_t value = 0;
    bool is_new = false;  // the workers do not know it (by this meaning) yet
  };

  // More than `capacity` ids are given out only while more are in use.
  explicit PlacementIds(int64_t capacity);

  // One more user of `placement`.
  Id Acquire(const Placement& placement);
  // One user less. REQUIRES: an Acquire that was not released.
  void Release(const Placement& placement);

  int64_t num_ids() const { return static_cast<int64_t>(placements_.size()); }
  int64_t num_in_use() const { return num_in_use_; }

 private:
  struct Entry {
    uint32_t id = 0;
    int64_t num_users = 0;
    bool queued = false;  // in unused_
  };

  const int64_t capacity_;
  std::vector<Placement> placements_;  // by id
  absl::flat_hash_map<Placement, Entry> entries_;
  // Ids that went out of use, the earliest first, each once; some are in use
  // again.
  std::deque<uint32_t> unused_;
  int64_t num_in_use_ = 0;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_PLACEMENT_IDS_H_
