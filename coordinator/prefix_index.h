// Which prefixes are in the cache: a tree of full blocks of tokens under each
// placement, and the snapshots of what a sequence keeps beside full blocks.
//
// A node is one full block of tokens that follows its parent's, with the cache
// ids of that block in every layer whose block table only grows (none, if the
// placement has no such layer). A snapshot belongs to an exact number of
// tokens: those of its node's path, and up to a block less one behind them (its
// tail). It has the cache ids of what cannot be shared by reference: slots,
// rings, the partly filled last block.
//
// Nodes are found by a hash of the whole path, and their token ids and parents
// are compared, so that equal hashes are never taken for equal tokens.
//
// What is evicted is the least recently used first, of one path the deepest.
// A node in use (a live sequence holds its units) or a pinned snapshot is
// never chosen; should a node be evicted that has others below it, they leave
// the index with it, and whoever holds their units keeps them.
//
// Pure bookkeeping: it names cache ids and frees nothing itself. Owned and used
// by one thread.
//
// Invariants:
//  1. An id is in one node or snapshot at most.
//  2. A node was used no earlier than those below it.
//  3. A node without units is there only for something below it: a node, a
//     snapshot, a user.
//  4. Exactly the nodes with units and without users, and the snapshots without
//     pins, can be evicted.
#ifndef SWITCHYARD_COORDINATOR_PREFIX_INDEX_H_
#define SWITCHYARD_COORDINATOR_PREFIX_INDEX_H_

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "model/placement.h"

namespace switchyard {

class PrefixIndex {
 public:
  // Of a node or a snapshot. Never used twice; one that is gone is no error.
  using Id = uint64_t;
  using Tokens = absl::Span<const uint32_t>;
  // Of a block of tokens behind a path with the hash `parent`.
  using Hash = std::function<uint64_t(uint64_t parent, Tokens block)>;

  struct Snapshot {
    Id id = 0;
    int64_t num_tokens = 0;
    std::vector<uint32_t> units;
  };

  explicit PrefixIndex(int32_t block_size);
  // For tests: with a hash of their own.
  PrefixIndex(int32_t block_size, Hash hash);

  // ---- Finding. Nothing here changes what is evicted first.

  // The nodes of the full blocks that `tokens` begins with, as far as they are
  // known, from the first on.
  std::vector<Id> FindPath(const Placement& placement, Tokens tokens) const;
  // The longest snapshot of a prefix of `tokens`, which has the path `path`.
  const Snapshot* FindSnapshot(const Placement& placement,
                               absl::Span<const Id> path, Tokens tokens) const;
  // REQUIRES: the node is there.
  const std::vector<uint32_t>& UnitsOf(Id node) const;
  bool HasUsers(Id node) const { return nodes_.at(node).num_users > 0; }
  bool Has(Id node) const { return nodes_.count(node) > 0; }
  // The node of the path of no tokens.
  Id Root(const Placement& placement);

  // ---- Use.

  // One more live sequence holds the node's units. REQUIRES: it is there.
  void Use(Id node);
  // One less, if the node still is there.
  void Unuse(Id node);
  // The node and all above it were used now.
  void Touch(Id node);
  void Pin(Id snapshot);
  void Unpin(Id snapshot);
  // Marks a node for whom a snapshot is being made: false if it is already.
  bool Claim(Id node);
  void Unclaim(Id node);

  // ---- Publishing.

  // The child of `parent` with these tokens; nothing if it is not known.
  std::optional<Id> FindChild(Id parent, Tokens block) const;
  // A new child, as recently used as its parent. REQUIRES: FindChild finds
  // none.
  Id Insert(Id parent, Tokens block, std::vector<uint32_t> units);
  // Gives a node units of the same contents; returns the old ones. REQUIRES: it
  // has no users.
  std::vector<uint32_t> Replace(Id node, std::vector<uint32_t> units);
  // Used now, as its node is. False, inserting nothing, if there is one of the
  // same tokens.
  bool InsertSnapshot(Id node, Tokens tail, std::vector<uint32_t> units);

  // ---- Soundness: logits computed from a node's units were finite numbers.

  // False if the node is gone, or known to be sound already.
  bool MarkSound(Id node);
  bool IsSound(Id node) const { return nodes_.at(node).sound; }
  // Removes a node or snapshot and all that depends on it, in use or not;
  // returns their units. REQUIRES: it is there.
  std::vector<uint32_t> Remove(Id id);

  // ---- Eviction.

  // Removes the least recently used, and all that depends on it. Returns their
  // units; nothing if there is nothing to evict.
  std::optional<std::vector<uint32_t>> Evict();

  int64_t num_nodes() const { return nodes_.size(); }  // roots included
  int64_t num_snapshots() const { return snapshots_.size(); }
  // Every id that is in the index.
  std::vector<uint32_t> AllUnits() const;

  // Internal names the first contradiction. Linear in the size of the index.
  absl::Status CheckIntegrity() const;

 private:
  struct Node {
    Id parent = 0;  // 0: a root
    uint64_t hash = 0;
    int64_t depth = 0;  // blocks from the root
    std::vector<uint32_t> tokens;
    std::vector<uint32_t> units;
    int32_t num_users = 0;
    bool claimed = false;
    bool sound = false;
    uint64_t last_used = 0;
    absl::btree_set<Id> children;  // what is freed in which order is fixed
    std::map<std::vector<uint32_t>, Id> snapshots;  // by tail
    std::optional<Placement> placement;             // of a root
  };
  struct SnapshotEntry {
    Snapshot snapshot;
    Id node = 0;
    std::vector<uint32_t> tail;
    int32_t num_pins = 0;
    uint64_t last_used = 0;
  };
  // Last used, deepest first, id.
  using Order = std::tuple<uint64_t, int64_t, Id>;

  static bool CanEvict(const Node& node) {
    return node.num_users == 0 && !node.units.empty();
  }
  Order OrderOf(Id id, const Node& node) const {
    return {node.last_used, -2 * node.depth, id};
  }
  Order OrderOf(Id id, const SnapshotEntry& entry) const {
    return {entry.last_used, -2 * nodes_.at(entry.node).depth - 1, id};
  }
  void RemoveSnapshot(Id id, std::vector<uint32_t>* units);
  void RemoveSubtree(Id id, std::vector<uint32_t>* units);
  // Removes a node that nobody needs any more, and then perhaps its parent.
  void Prune(Id id);

  const int32_t block_size_;
  const Hash hash_;
  Id last_id_ = 0;
  uint64_t clock_ = 0;
  std::unordered_map<Id, Node> nodes_;
  std::unordered_map<Id, SnapshotEntry> snapshots_;
  absl::flat_hash_map<Placement, Id> roots_;
  std::unordered_multimap<uint64_t, Id> by_hash_;
  std::set<Order> evictable_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_PREFIX_INDEX_H_
