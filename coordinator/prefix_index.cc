#include "coordinator/prefix_index.h"

#include <algorithm>
#include <utility>

#include "absl/hash/hash.h"
#include "absl/strings/str_cat.h"
#include "kernels/check.h"

namespace switchyard {
namespace {

uint64_t DefaultHash(uint64_t parent, PrefixIndex::Tokens block) {
  return absl::HashOf(parent, block);
}

void Append(std::vector<uint32_t>* to, const std::vector<uint32_t>& from) {
  to->insert(to->end(), from.begin(), from.end());
}

}  // namespace

PrefixIndex::PrefixIndex(int32_t block_size)
    : PrefixIndex(block_size, DefaultHash) {}

PrefixIndex::PrefixIndex(int32_t block_size, Hash hash)
    : block_size_(block_size), hash_(std::move(hash)) {}

std::vector<PrefixIndex::Id> PrefixIndex::FindPath(const Placement& placement,
                                                   Tokens tokens) const {
  std::vector<Id> path;
  const auto root = roots_.find(placement);
  if (root == roots_.end()) return path;
  Id node = root->second;
  while (static_cast<int64_t>(tokens.size()) >= block_size_) {
    const std::optional<Id> child =
        FindChild(node, tokens.subspan(0, block_size_));
    if (!child.has_value()) break;
    path.push_back(node = *child);
    tokens.remove_prefix(block_size_);
  }
  return path;
}

const PrefixIndex::Snapshot* PrefixIndex::FindSnapshot(
    const Placement& placement, absl::Span<const Id> path,
    Tokens tokens) const {
  const auto root = roots_.find(placement);
  if (root == roots_.end()) return nullptr;
  for (int64_t depth = path.size(); depth >= 0; --depth) {
    const Node& node = nodes_.at(depth == 0 ? root->second : path[depth - 1]);
    if (node.snapshots.empty()) continue;
    const Tokens rest = tokens.subspan(depth * block_size_);
    std::vector<uint32_t> tail(
        rest.begin(),
        rest.begin() + std::min<int64_t>(rest.size(), block_size_ - 1));
    for (;;) {
      const auto found = node.snapshots.find(tail);
      if (found != node.snapshots.end()) {
        return &snapshots_.at(found->second).snapshot;
      }
      if (tail.empty()) break;
      tail.pop_back();
    }
  }
  return nullptr;
}

const std::vector<uint32_t>& PrefixIndex::UnitsOf(Id node) const {
  return nodes_.at(node).units;
}

PrefixIndex::Id PrefixIndex::Root(const Placement& placement) {
  const auto known = roots_.find(placement);
  if (known != roots_.end()) return known->second;
  const Id id = ++last_id_;
  Node& node = nodes_[id];
  node.placement = placement;
  node.hash = hash_(id, {});  // equal tokens of other placements hash apart
  roots_.emplace(placement, id);
  return id;
}

void PrefixIndex::Use(Id id) {
  Node& node = nodes_.at(id);
  if (CanEvict(node)) evictable_.erase(OrderOf(id, node));
  ++node.num_users;
}

void PrefixIndex::Unuse(Id id) {
  const auto it = nodes_.find(id);
  if (it == nodes_.end()) return;
  SY_CHECK(it->second.num_users > 0);
  --it->second.num_users;
  if (CanEvict(it->second)) evictable_.insert(OrderOf(id, it->second));
  Prune(id);
}

void PrefixIndex::Touch(Id id) {
  ++clock_;
  while (id != 0) {
    const auto it = nodes_.find(id);
    if (it == nodes_.end()) return;
    Node& node = it->second;
    const bool can_evict = CanEvict(node);
    if (can_evict) evictable_.erase(OrderOf(id, node));
    node.last_used = clock_;
    if (can_evict) evictable_.insert(OrderOf(id, node));
    id = node.parent;
  }
}

void PrefixIndex::Pin(Id id) {
  SnapshotEntry& entry = snapshots_.at(id);
  if (entry.num_pins++ == 0) evictable_.erase(OrderOf(id, entry));
}

void PrefixIndex::Unpin(Id id) {
  const auto it = snapshots_.find(id);
  if (it == snapshots_.end()) return;
  SnapshotEntry& entry = it->second;
  SY_CHECK(entry.num_pins > 0);
  entry.last_used = clock_;
  if (--entry.num_pins == 0) evictable_.insert(OrderOf(id, entry));
}

bool PrefixIndex::Claim(Id id) {
  return !std::exchange(nodes_.at(id).claimed, true);
}

void PrefixIndex::Unclaim(Id id) {
  const auto it = nodes_.find(id);
  if (it != nodes_.end()) it->second.claimed = false;
}

std::optional<PrefixIndex::Id> PrefixIndex::FindChild(Id parent,
                                                      Tokens block) const {
  const uint64_t hash = hash_(nodes_.at(parent).hash, block);
  const auto [begin, end] = by_hash_.equal_range(hash);
  for (auto it = begin; it != end; ++it) {
    const Node& node = nodes_.at(it->second);
    if (node.parent == parent && Tokens(node.tokens) == block) {
      return it->second;
    }
  }
  return std::nullopt;
}

PrefixIndex::Id PrefixIndex::Insert(Id parent, Tokens block,
                                    std::vector<uint32_t> units) {
  SY_CHECK(static_cast<int64_t>(block.size()) == block_size_);
  const Id id = ++last_id_;
  Node node;
  Node& above = nodes_.at(parent);
  node.parent = parent;
  node.hash = hash_(above.hash, block);
  node.depth = above.depth + 1;
  node.last_used = above.last_used;
  node.tokens.assign(block.begin(), block.end());
  node.units = std::move(units);
  above.children.insert(id);
  by_hash_.emplace(node.hash, id);
  const auto it = nodes_.emplace(id, std::move(node)).first;
  if (CanEvict(it->second)) evictable_.insert(OrderOf(id, it->second));
  return id;
}

std::vector<uint32_t> PrefixIndex::Replace(Id id, std::vector<uint32_t> units) {
  Node& node = nodes_.at(id);
  SY_CHECK(node.num_users == 0 && node.units.size() == units.size());
  node.sound = false;
  return std::exchange(node.units, std::move(units));
}

bool PrefixIndex::InsertSnapshot(Id id, Tokens tail,
                                 std::vector<uint32_t> units) {
  SY_CHECK(static_cast<int64_t>(tail.size()) < block_size_);
  Touch(id);
  Node& node = nodes_.at(id);
  std::vector<uint32_t> key(tail.begin(), tail.end());
  if (const auto known = node.snapshots.find(key);
      known != node.snapshots.end()) {
    Pin(known->second);  // it is as good as new
    Unpin(known->second);
    return false;
  }
  const Id snapshot = ++last_id_;
  node.snapshots.emplace(key, snapshot);
  SnapshotEntry& entry = snapshots_[snapshot];
  entry.snapshot = {snapshot,
                    node.depth * block_size_ + static_cast<int64_t>(key.size()),
                    std::move(units)};
  entry.node = id;
  entry.tail = std::move(key);
  entry.last_used = clock_;
  evictable_.insert(OrderOf(snapshot, entry));
  return true;
}

std::optional<std::vector<uint32_t>> PrefixIndex::Evict() {
  if (evictable_.empty()) return std::nullopt;
  return Remove(std::get<2>(*evictable_.begin()));
}

bool PrefixIndex::MarkSound(Id id) {
  const auto it = nodes_.find(id);
  return it != nodes_.end() && !std::exchange(it->second.sound, true);
}

std::vector<uint32_t> PrefixIndex::Remove(Id id) {
  std::vector<uint32_t> units;
  if (const auto it = snapshots_.find(id); it != snapshots_.end()) {
    const Id node = it->second.node;
    RemoveSnapshot(id, &units);
    Prune(node);
    return units;
  }
  const Id parent = nodes_.at(id).parent;
  RemoveSubtree(id, &units);
  Prune(parent);
  return units;
}

void PrefixIndex::RemoveSnapshot(Id id, std::vector<uint32_t>* units) {
  const auto it = snapshots_.find(id);
  SnapshotEntry& entry = it->second;
  if (entry.num_pins == 0) evictable_.erase(OrderOf(id, entry));
  nodes_.at(entry.node).snapshots.erase(entry.tail);
  Append(units, entry.snapshot.units);
  snapshots_.erase(it);
}

void PrefixIndex::RemoveSubtree(Id id, std::vector<uint32_t>* units) {
  std::vector<Id> below = {id};
  for (size_t i = 0; i < below.size(); ++i) {  // parents before children
    const Node& node = nodes_.at(below[i]);
    below.insert(below.end(), node.children.begin(), node.children.end());
  }
  for (auto it = below.rbegin(); it != below.rend(); ++it) {
    Node& node = nodes_.at(*it);
    while (!node.snapshots.empty()) {
      RemoveSnapshot(node.snapshots.begin()->second, units);
    }
    if (CanEvict(node)) evictable_.erase(OrderOf(*it, node));
    Append(units, node.units);
    const auto [begin, end] = by_hash_.equal_range(node.hash);
    for (auto entry = begin; entry != end; ++entry) {
      if (entry->second != *it) continue;
      by_hash_.erase(entry);
      break;
    }
    nodes_.at(node.parent).children.erase(*it);
    nodes_.erase(*it);
  }
}

void PrefixIndex::Prune(Id id) {
  while (id != 0) {
    const auto it = nodes_.find(id);
    if (it == nodes_.end()) return;
    const Node& node = it->second;
    if (!node.units.empty() || node.num_users > 0 || !node.children.empty() ||
        !node.snapshots.empty()) {
      return;
    }
    const Id parent = node.parent;
    if (parent == 0) {
      roots_.erase(*node.placement);
      nodes_.erase(it);
      return;
    }
    std::vector<uint32_t> none;
    RemoveSubtree(id, &none);
    id = parent;
  }
}

std::vector<uint32_t> PrefixIndex::AllUnits() const {
  std::vector<uint32_t> units;
  for (const auto& [id, node] : nodes_) Append(&units, node.units);
  for (const auto& [id, entry] : snapshots_) {
    Append(&units, entry.snapshot.units);
  }
  return units;
}

absl::Status PrefixIndex::CheckIntegrity() const {
  const auto wrong = [](Id id, absl::string_view what) {
    return absl::InternalError(
        absl::StrCat("prefix index: entry ", id, " ", what));
  };
  size_t num_evictable = 0;
  size_t num_children = 0;
  size_t num_snapshots = 0;
  for (const auto& [id, node] : nodes_) {
    num_children += node.children.size();
    num_snapshots += node.snapshots.size();
    for (const auto& [tail, snapshot] : node.snapshots) {
      const auto it = snapshots_.find(snapshot);
      if (it == snapshots_.end() || it->second.node != id ||
          it->second.tail != tail) {
        return wrong(id, "has a snapshot that is not its own");
      }
    }
    if (CanEvict(node)) {
      ++num_evictable;
      if (evictable_.count(OrderOf(id, node)) == 0) {
        return wrong(id, "could be evicted, but is not listed");
      }
    }
    if (node.parent == 0) {
      if (!node.placement.has_value() || !roots_.contains(*node.placement)) {
        return wrong(id, "has no parent, but is no root");
      }
      continue;
    }
    const auto parent = nodes_.find(node.parent);
    if (parent == nodes_.end() || !parent->second.children.contains(id) ||
        parent->second.depth + 1 != node.depth) {
      return wrong(id, "is not a child of its parent");
    }
    if (parent->second.last_used < node.last_used) {
      return wrong(id, "was used later than its parent");
    }
    if (node.units.empty() && node.num_users == 0 && node.children.empty() &&
        node.snapshots.empty()) {
      return wrong(id, "serves nobody");
    }
  }
  for (const auto& [id, entry] : snapshots_) {
    if (entry.num_pins > 0) continue;
    ++num_evictable;
    if (evictable_.count(OrderOf(id, entry)) == 0) {
      return wrong(id, "is a snapshot that is not listed for eviction");
    }
  }
  if (num_evictable != evictable_.size() ||
      num_children + roots_.size() != nodes_.size() ||
      by_hash_.size() != num_children || num_snapshots != snapshots_.size()) {
    return absl::InternalError(
        absl::StrCat("prefix index: ", nodes_.size(), " nodes, ", num_children,
                     " children, ", by_hash_.size(), " hashes, ", num_snapshots,
                     " of ", snapshots_.size(), " snapshots, ", num_evictable,
                     " of ", evictable_.size(), " that can be evicted"));
  }
  return absl::OkStatus();
}

}  // namespace switchyard
