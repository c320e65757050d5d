#include "worker/batch_planner.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "kernels/check.h"

namespace switchyard {
namespace {

int32_t NumTokens(const BatchEntry& entry) { return entry.num_tokens(); }

// Rows that the kernels of matrix products take at a time.
constexpr int32_t kTileRows = 128;

// How many of an entry's rows come before a cut after `wanted` of them, such
// that no piece of an entry of several is one row.
int32_t CutEntry(int32_t num_rows, int32_t wanted) {
  if (num_rows > 1 && wanted == 1) return 0;
  if (num_rows > 1 && wanted == num_rows - 1) return num_rows;
  return std::clamp(wanted, 0, num_rows);
}

// Entry indices in batch order.
std::vector<int32_t> BatchOrder(absl::Span<const BatchEntry> entries) {
  std::vector<int32_t> order(entries.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_partition(order.begin(), order.end(),
                        [&](int32_t i) { return NumTokens(entries[i]) == 1; });
  return order;
}

// The different placements of a batch, and which one each entry has.
struct UniquePlacements {
  explicit UniquePlacements(absl::Span<const BatchEntry> entries) {
    for (const BatchEntry& entry : entries) {
      // They are few, and neighbours are mostly alike.
      size_t i = of_entry.empty() ? 0 : of_entry.back();
      if (placements.empty() || *placements[i] != *entry.placement) {
        i = 0;
        while (i < placements.size() && *placements[i] != *entry.placement) ++i;
        if (i == placements.size()) placements.push_back(entry.placement);
      }
      of_entry.push_back(static_cast<int32_t>(i));
    }
  }

  std::vector<const Placement*> placements;
  std::vector<int32_t> of_entry;
};

// Appends one segment: the entries of `order` whose placement has the label.
void AppendSegment(absl::Span<const BatchEntry> entries,
                   const std::vector<int32_t>& order,
                   const std::vector<bool>& belongs, int32_t min_total_tokens,
                   PlannedGrouping& grouping) {
  PlannedSegment segment;
  segment.max_total_tokens = min_total_tokens;
  segment.first_seq = static_cast<int32_t>(grouping.entries.size());
  segment.first_row = static_cast<int32_t>(grouping.positions.size());
  segment.first_offset = static_cast<int32_t>(grouping.token_offsets.size());
  for (int32_t i : order) {
    if (!belongs[i]) continue;
    const BatchEntry& entry = entries[i];
    const int32_t num_tokens = NumTokens(entry);
    grouping.entries.push_back(i);
    grouping.context_lens.push_back(entry.start);
    grouping.token_offsets.push_back(segment.num_tokens);
    for (int32_t t = 0; t < num_tokens; ++t) {
      grouping.positions.push_back(entry.start + t);
    }
    segment.num_seqs += 1;
    segment.num_decodes += num_tokens == 1 ? 1 : 0;
    segment.num_tokens += num_tokens;
    segment.max_new_tokens = std::max(segment.max_new_tokens, num_tokens);
    segment.max_total_tokens =
        std::max(segment.max_total_tokens, entry.start + num_tokens);
  }
  grouping.token_offsets.push_back(segment.num_tokens);
  grouping.segments.push_back(segment);
}

// `labels`: the segment of each of the batch's placements.
PlannedGrouping MakeGrouping(absl::Span<const BatchEntry> entries,
                             const std::vector<int32_t>& order,
                             const std::vector<int32_t>& first_rows,
                             const UniquePlacements& unique,
                             const std::vector<int32_t>& labels,
                             int32_t num_segments, int32_t min_total_tokens) {
  PlannedGrouping grouping;
  for (int32_t segment = 0; segment < num_segments; ++segment) {
    std::vector<bool> belongs(entries.size());
    for (size_t i = 0; i < entries.size(); ++i) {
      belongs[i] = labels[unique.of_entry[i]] == segment;
    }
    AppendSegment(entries, order, belongs, min_total_tokens, grouping);
  }
  if (grouping.entries == order) return grouping;
  grouping.inverse.resize(grouping.positions.size());
  for (int32_t i : grouping.entries) {
    for (int32_t t = 0; t < NumTokens(entries[i]); ++t) {
      const int32_t row = first_rows[i] + t;
      grouping.inverse[row] = static_cast<int32_t>(grouping.rows.size());
      grouping.rows.push_back(row);
    }
  }
  return grouping;
}

}  // namespace

std::vector<BatchPart> CutBatch(absl::Span<const BatchEntry> entries,
                                int32_t min_tokens) {
  int32_t num_tokens = 0;
  for (const BatchEntry& entry : entries) num_tokens += NumTokens(entry);
  int32_t middle = num_tokens;
  if (min_tokens > 0 && num_tokens / 2 >= min_tokens) {
    middle = num_tokens / 2;
    if (middle > kTileRows) {
      middle = (middle + kTileRows / 2) / kTileRows * kTileRows;
    }
  }

  std::vector<BatchPart> parts(2);
  int32_t row = 0;
  for (const int32_t i : BatchOrder(entries)) {
    const BatchEntry& entry = entries[i];
    const int32_t num = NumTokens(entry);
    const int32_t num_first = CutEntry(num, middle - row);
    row += num;
    if (num_first == 0 || num_first == num) {
      parts[num_first == num ? 0 : 1].push_back({i, entry});
      continue;
    }
    BatchEntry first = entry;
    first.token_ids = entry.token_ids.subspan(0, num_first);
    first.token_slot = -1;
    parts[0].push_back({i, first});
    BatchEntry rest = entry;
    rest.token_ids = entry.token_ids.subspan(num_first);
    rest.start = entry.start + num_first;
    parts[1].push_back({i, rest});
  }
  parts.erase(
      std::remove_if(parts.begin(), parts.end(),
                     [](const BatchPart& part) { return part.empty(); }),
      parts.end());
  return parts;
}

BatchPlan PlanBatch(absl::Span<const BatchEntry> entries,
                    int32_t min_total_tokens) {
  SY_CHECK(!entries.empty());
  BatchPlan plan;
  plan.num_seqs = static_cast<int32_t>(entries.size());
  plan.first_rows.resize(entries.size());
  const std::vector<int32_t> order = BatchOrder(entries);
  for (int32_t i : order) {
    plan.first_rows[i] = plan.num_tokens;
    plan.num_tokens += NumTokens(entries[i]);
    plan.token_ids.insert(plan.token_ids.end(), entries[i].token_ids.begin(),
                          entries[i].token_ids.end());
    plan.token_sources.resize(plan.token_ids.size(), -1);
    if (entries[i].token_slot >= 0) {
      plan.token_ids.push_back(0);
      plan.token_sources.push_back(entries[i].token_slot);
    }
  }

  const UniquePlacements unique(entries);
  const int32_t num_layers = entries[0].placement->num_layers();
  // Labels number the mixers of a layer in the order in which the batch's
  // placements name them, so equal splits have equal labels.
  std::map<std::vector<int32_t>, int32_t> known;
  std::vector<int32_t> labels(unique.placements.size());
  for (int32_t layer = 0; layer < num_layers; ++layer) {
    PlannedLayer planned;
    for (size_t p = 0; p < labels.size(); ++p) {
      const int32_t mixer = (*unique.placements[p])[layer];
      const auto it =
          std::find(planned.mixers.begin(), planned.mixers.end(), mixer);
      labels[p] = static_cast<int32_t>(it - planned.mixers.begin());
      if (it == planned.mixers.end()) planned.mixers.push_back(mixer);
    }
    const auto [it, is_new] =
        known.emplace(labels, static_cast<int32_t>(plan.groupings.size()));
    if (is_new) {
      plan.groupings.push_back(MakeGrouping(
          entries, order, plan.first_rows, unique, labels,
          static_cast<int32_t>(planned.mixers.size()), min_total_tokens));
    }
    planned.grouping = it->second;
    plan.layers.push_back(std::move(planned));
  }
  return plan;
}

}  // namespace switchyard
