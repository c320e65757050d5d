#include "worker/graph_planner.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "kernels/check.h"

namespace switchyard {
namespace {

constexpr int32_t kMinBiasBucket = 64;

// The largest power of two up to n.
int32_t PowerBelow(int32_t n) {
  int32_t power = 1;
  while (power <= n / 2) power *= 2;
  return power;
}

}  // namespace

int32_t GraphKey::num_rows() const {
  int32_t rows = 0;
  for (const GraphGroup& group : groups) rows += group.num_rows;
  return rows;
}

bool operator<(const GraphKey& a, const GraphKey& b) {
  return std::tie(a.num_biases, a.logprobs, a.groups) <
         std::tie(b.num_biases, b.logprobs, b.groups);
}

bool operator==(const GraphKey& a, const GraphKey& b) {
  return std::tie(a.num_biases, a.logprobs, a.groups) ==
         std::tie(b.num_biases, b.logprobs, b.groups);
}

int32_t BatchBucket(int32_t n) {
  SY_CHECK(n >= 1);
  const int32_t power = PowerBelow(n);
  if (n == power) return n;
  // Halfway steps pay where rows are few enough to cost little and many enough
  // to matter.
  const int32_t halfway = power + power / 2;
  return power >= 16 && n <= halfway ? halfway : 2 * power;
}

int32_t BiasBucket(int32_t n) {
  int32_t bucket = kMinBiasBucket;
  while (bucket < n) bucket *= 2;
  return bucket;
}

std::optional<GraphPlan> PlanGraph(absl::Span<const GraphEntry> entries,
                                   const GraphLimits& limits) {
  if (entries.empty()) return std::nullopt;
  std::vector<int32_t> order(entries.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  const auto same = [&](int32_t a, int32_t b) {
    return *entries[a].placement == *entries[b].placement;
  };
  bool uniform = true;
  for (size_t i = 1; i < order.size(); ++i) uniform = uniform && same(0, i);
  if (!uniform) {
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return *entries[a].placement < *entries[b].placement;
    });
  }

  GraphPlan plan;
  int32_t num_biases = 0;
  for (size_t begin = 0; begin < order.size();) {
    size_t end = begin;
    while (end < order.size() && same(order[begin], order[end])) ++end;
    const int32_t num_rows = BatchBucket(static_cast<int32_t>(end - begin));
    for (size_t i = begin; i < end; ++i) {
      const GraphEntry& entry = entries[order[i]];
      plan.entries.push_back(order[i]);
      num_biases += entry.num_biases;
      plan.key.logprobs = plan.key.logprobs || entry.logprobs;
    }
    plan.entries.resize(plan.entries.size() + num_rows - (end - begin), -1);
    plan.key.groups.push_back({*entries[order[begin]].placement, num_rows});
    begin = end;
  }
  if (static_cast<int32_t>(plan.key.groups.size()) > limits.max_placements ||
      static_cast<int32_t>(plan.entries.size()) > limits.max_rows) {
    return std::nullopt;
  }
  plan.key.num_biases = BiasBucket(num_biases);
  return plan;
}

}  // namespace switchyard
