// GraphCache: recorded graphs by key, the most recently used ones, bounded in
// number and in memory.
//
// What is evicted depends on the calls alone, so ranks that make the same calls
// keep the same graphs. Not thread-safe.
#ifndef SWITCHYARD_WORKER_GRAPH_CACHE_H_
#define SWITCHYARD_WORKER_GRAPH_CACHE_H_

#include <cstdint>
#include <list>
#include <map>
#include <utility>

namespace switchyard {

struct GraphCacheLimits {
  int64_t max_graphs = 0;
  int64_t max_bytes = 0;
};

template <typename Key, typename Graph>
class GraphCache {
 public:
  explicit GraphCache(const GraphCacheLimits& limits) : limits_(limits) {}

  // Null if there is none. Counts as a use. Valid until the next Insert or
  // Clear.
  Graph* Find(const Key& key) {
    const auto it = entries_.find(key);
    if (it == entries_.end()) return nullptr;
    order_.splice(order_.begin(), order_, it->second.place);
    return &it->second.graph;
  }

  // Keeps the graph, and lets go of the least recently used ones until it fits;
  // one that is larger than all the memory stays alone. REQUIRES: Find(key) is
  // null.
  void Insert(const Key& key, Graph graph, int64_t bytes) {
    while (!order_.empty() &&
           (static_cast<int64_t>(order_.size()) >= limits_.max_graphs ||
            bytes_ + bytes > limits_.max_bytes)) {
      const auto last = entries_.find(*order_.back());
      bytes_ -= last->second.bytes;
      order_.pop_back();
      entries_.erase(last);
      ++num_evicted_;
    }
    const auto it = entries_.emplace(key, Entry{std::move(graph), bytes}).first;
    order_.push_front(&it->first);
    it->second.place = order_.begin();
    bytes_ += bytes;
  }

  void Clear() {
    order_.clear();
    entries_.clear();
    bytes_ = 0;
  }

  int64_t size() const { return static_cast<int64_t>(order_.size()); }
  int64_t bytes() const { return bytes_; }
  int64_t num_evicted() const { return num_evicted_; }

 private:
  struct Entry {
    Entry(Graph graph, int64_t bytes) : graph(std::move(graph)), bytes(bytes) {}
    Graph graph;
    int64_t bytes = 0;
    typename std::list<const Key*>::iterator place;
  };

  const GraphCacheLimits limits_;
  std::map<Key, Entry> entries_;
  std::list<const Key*> order_;  // most recently used first
  int64_t bytes_ = 0;
  int64_t num_evicted_ = 0;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_GRAPH_CACHE_H_
