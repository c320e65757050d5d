// Which steps may run as a recorded graph, and as which one. Pure.
//
// A graph fixes every launch of a step: how many rows each mixer of each layer
// has, and what sampling does; how long the contexts are, kernels read on the
// device. A step in which every sequence decodes is padded until it is one of
// few such shapes: the sequences are put in the order of their placements, and
// the number of each placement is rounded up to a bucket.
#ifndef SWITCHYARD_WORKER_GRAPH_PLANNER_H_
#define SWITCHYARD_WORKER_GRAPH_PLANNER_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "model/placement.h"

namespace switchyard {

// Rows of one placement.
struct GraphGroup {
  Placement placement;
  int32_t num_rows = 0;

  friend bool operator<(const GraphGroup& a, const GraphGroup& b) {
    if (a.num_rows != b.num_rows) return a.num_rows < b.num_rows;
    return a.placement < b.placement;
  }
  friend bool operator==(const GraphGroup& a, const GraphGroup& b) {
    return a.num_rows == b.num_rows && a.placement == b.placement;
  }
};

// Steps with equal keys do the same launches on the same addresses.
struct GraphKey {
  std::vector<GraphGroup> groups;  // in the order of their placements
  int32_t num_biases = 0;          // room for biased tokens
  bool logprobs = false;           // of the sampled tokens

  int32_t num_rows() const;

  friend bool operator<(const GraphKey& a, const GraphKey& b);
  friend bool operator==(const GraphKey& a, const GraphKey& b);
};

struct GraphLimits {
  int32_t max_rows = 0;  // that the step's buffers have room for
  // A batch of more placements has too many shapes to record them all.
  int32_t max_placements = 4;
};

// A sequence that decodes. Borrows for the call.
struct GraphEntry {
  const Placement* placement = nullptr;
  int32_t num_biases = 0;
  bool logprobs = false;
};

struct GraphPlan {
  GraphKey key;
  // [num_rows] the entry of each row of the batch; -1: padding.
  std::vector<int32_t> entries;
};

// Nothing where the step cannot be a graph.
std::optional<GraphPlan> PlanGraph(absl::Span<const GraphEntry> entries,
                                   const GraphLimits& limits);

// The smallest bucket of at least n: 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128,
// 192, ...
int32_t BatchBucket(int32_t n);
// The same for biased tokens: powers of two from 64 on.
int32_t BiasBucket(int32_t n);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_GRAPH_PLANNER_H_
