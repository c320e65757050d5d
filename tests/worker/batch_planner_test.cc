#include "worker/batch_planner.h"

#include <algorithm>
#include <random>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/config.h"

namespace switchyard {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Layers of three mixers each; a placement needs nothing else of a config.
ModelConfig ThreeMixers(int32_t num_layers) {
  ModelConfig config;
  for (int32_t i = 0; i < num_layers; ++i) {
    LayerConfig layer;
    layer.mixers = {
        {"a", AttentionConfig()}, {"b", GdnConfig()}, {"c", KdaConfig()}};
    config.layers.push_back(layer);
  }
  return config;
}

Placement Make(const ModelConfig& config, std::vector<int32_t> mixers) {
  return Placement::FromIndices(config, mixers).value();
}

TEST(BatchPlannerTest, OnePlacementIsBatchOrder) {
  const ModelConfig config = ThreeMixers(2);
  const Placement placement = Make(config, {0, 1});
  const std::vector<int32_t> prompt = {5, 6, 7};
  const std::vector<int32_t> last = {9};
  const BatchPlan plan =
      PlanBatch({{&placement, prompt, 4}, {&placement, last, 30}});

  // The decode comes first.
  EXPECT_THAT(plan.token_ids, ElementsAre(9, 5, 6, 7));
  EXPECT_THAT(plan.first_rows, ElementsAre(1, 0));
  ASSERT_EQ(plan.groupings.size(), 1u);
  const PlannedGrouping& grouping = plan.groupings[0];
  EXPECT_THAT(grouping.rows, IsEmpty());
  EXPECT_THAT(grouping.inverse, IsEmpty());
  EXPECT_THAT(grouping.entries, ElementsAre(1, 0));
  EXPECT_THAT(grouping.context_lens, ElementsAre(30, 4));
  EXPECT_THAT(grouping.positions, ElementsAre(30, 4, 5, 6));
  EXPECT_THAT(grouping.token_offsets, ElementsAre(0, 1, 4));
  ASSERT_EQ(grouping.segments.size(), 1u);
  const PlannedSegment& segment = grouping.segments[0];
  EXPECT_EQ(segment.num_seqs, 2);
  EXPECT_EQ(segment.num_decodes, 1);
  EXPECT_EQ(segment.num_tokens, 4);
  EXPECT_EQ(segment.max_new_tokens, 3);
  EXPECT_EQ(segment.max_total_tokens, 31);
  // The layers run different mixers and still share the grouping.
  EXPECT_THAT(plan.layers[0].mixers, ElementsAre(0));
  EXPECT_THAT(plan.layers[1].mixers, ElementsAre(1));
  EXPECT_EQ(plan.layers[1].grouping, 0);
}

TEST(BatchPlannerTest, MixedPlacementsGetSegmentsAndMaps) {
  const ModelConfig config = ThreeMixers(3);
  const Placement x = Make(config, {0, 2, 1});
  const Placement y = Make(config, {1, 2, 0});
  const std::vector<int32_t> two = {1, 2};
  const std::vector<int32_t> one = {3};
  // Batch order: entries 1 (x), 3 (y), 0 (y), 2 (x); rows 0, 1, 2-3, 4-5.
  const BatchPlan plan =
      PlanBatch({{&y, two, 0}, {&x, one, 8}, {&x, two, 3}, {&y, one, 6}});
  EXPECT_THAT(plan.first_rows, ElementsAre(2, 0, 4, 1));

  // Layers 0 and 2 split alike, layer 1 not at all.
  ASSERT_EQ(plan.groupings.size(), 2u);
  EXPECT_EQ(plan.layers[0].grouping, plan.layers[2].grouping);
  EXPECT_NE(plan.layers[0].grouping, plan.layers[1].grouping);
  // Segments come in the order of the entries' placements: y, then x.
  EXPECT_THAT(plan.layers[0].mixers, ElementsAre(1, 0));
  EXPECT_THAT(plan.layers[1].mixers, ElementsAre(2));
  EXPECT_THAT(plan.layers[2].mixers, ElementsAre(0, 1));

  const PlannedGrouping& split = plan.groupings[plan.layers[0].grouping];
  EXPECT_THAT(split.entries, ElementsAre(3, 0, 1, 2));
  EXPECT_THAT(split.rows, ElementsAre(1, 2, 3, 0, 4, 5));
  EXPECT_THAT(split.inverse, ElementsAre(3, 0, 1, 2, 4, 5));
  EXPECT_THAT(split.context_lens, ElementsAre(6, 0, 8, 3));
  EXPECT_THAT(split.positions, ElementsAre(6, 0, 1, 8, 3, 4));
  EXPECT_THAT(split.token_offsets, ElementsAre(0, 1, 3, 0, 1, 3));
  ASSERT_EQ(split.segments.size(), 2u);
  EXPECT_EQ(split.segments[1].first_seq, 2);
  EXPECT_EQ(split.segments[1].first_row, 3);
  EXPECT_EQ(split.segments[1].first_offset, 3);
  EXPECT_EQ(split.segments[1].num_decodes, 1);
}

// Whatever the batch: the maps are permutations and each other's inverse,
// segments are adjacent, and decodes come first in each.
TEST(BatchPlannerTest, PropertiesOfRandomBatches) {
  std::mt19937 random(1);
  const auto below = [&random](int32_t n) {
    return static_cast<int32_t>(random() % n);
  };
  const ModelConfig config = ThreeMixers(4);
  for (int round = 0; round < 200; ++round) {
    std::vector<Placement> placements;
    for (int i = 0; i < 5; ++i) {
      placements.push_back(
          Make(config, {below(3), below(3), below(3), below(3)}));
    }
    std::vector<std::vector<int32_t>> tokens(1 + below(9));
    std::vector<BatchEntry> entries;
    for (auto& some : tokens) {
      some.assign(below(2) == 0 ? 1 : 1 + below(5), below(100));
      entries.push_back({&placements[below(5)], some, below(50)});
    }
    const BatchPlan plan = PlanBatch(entries);
    ASSERT_EQ(plan.token_ids.size(), static_cast<size_t>(plan.num_tokens));
    for (size_t layer = 0; layer < plan.layers.size(); ++layer) {
      const PlannedLayer& planned = plan.layers[layer];
      const PlannedGrouping& grouping = plan.groupings[planned.grouping];
      ASSERT_EQ(planned.mixers.size(), grouping.segments.size());
      for (size_t i = 0; i < grouping.rows.size(); ++i) {
        ASSERT_EQ(grouping.inverse[grouping.rows[i]], static_cast<int32_t>(i));
      }
      int32_t row = 0;
      int32_t seq = 0;
      for (size_t s = 0; s < grouping.segments.size(); ++s) {
        const PlannedSegment& segment = grouping.segments[s];
        ASSERT_EQ(segment.first_row, row);
        ASSERT_EQ(segment.first_seq, seq);
        for (int32_t q = 0; q < segment.num_seqs; ++q) {
          const int32_t entry = grouping.entries[seq + q];
          ASSERT_EQ((*entries[entry].placement)[layer], planned.mixers[s]);
          ASSERT_EQ(entries[entry].token_ids.size() == 1,
                    q < segment.num_decodes);
          const int32_t in_segment =
              grouping.token_offsets[segment.first_offset + q];
          ASSERT_EQ(grouping.positions[row + in_segment], entries[entry].start);
          ASSERT_EQ(grouping.rows.empty() ? row + in_segment
                                          : grouping.rows[row + in_segment],
                    plan.first_rows[entry]);
        }
        row += segment.num_tokens;
        seq += segment.num_seqs;
      }
      ASSERT_EQ(row, plan.num_tokens);
      ASSERT_EQ(seq, plan.num_seqs);
    }
  }
}

// Rows in order, as (entry, position) pairs.
std::vector<std::pair<int32_t, int32_t>> RowsOf(const BatchPlan& plan,
                                                const BatchPart& part) {
  std::vector<std::pair<int32_t, int32_t>> rows(plan.num_tokens);
  for (size_t i = 0; i < part.size(); ++i) {
    for (int32_t t = 0; t < part[i].entry.num_tokens(); ++t) {
      rows[plan.first_rows[i] + t] = {part[i].index, part[i].entry.start + t};
    }
  }
  return rows;
}

BatchPlan PlanOf(const BatchPart& part) {
  std::vector<BatchEntry> entries;
  for (const BatchPiece& piece : part) entries.push_back(piece.entry);
  return PlanBatch(entries);
}

TEST(CutBatchTest, SmallBatchesStayWhole) {
  const ModelConfig config = ThreeMixers(1);
  const Placement placement = Make(config, {0});
  const std::vector<int32_t> prompt(9, 1);
  const std::vector<BatchEntry> entries = {{&placement, prompt, 0}};
  EXPECT_EQ(CutBatch(entries, 0).size(), 1u);
  EXPECT_EQ(CutBatch(entries, 5).size(), 1u);
  EXPECT_EQ(CutBatch(entries, 4).size(), 2u);
}

TEST(CutBatchTest, PartsAreWholeTilesOfRows) {
  const ModelConfig config = ThreeMixers(1);
  const Placement placement = Make(config, {0});
  const std::vector<int32_t> prompt(1000, 1);
  const std::vector<BatchPart> parts =
      CutBatch({{&placement, prompt, 30}}, 100);
  ASSERT_EQ(parts.size(), 2u);
  ASSERT_EQ(parts[0].size(), 1u);
  ASSERT_EQ(parts[1].size(), 1u);
  EXPECT_EQ(parts[0][0].entry.start, 30);
  EXPECT_EQ(parts[0][0].entry.num_tokens(), 512);
  EXPECT_EQ(parts[1][0].entry.start, 542);
  EXPECT_EQ(parts[1][0].entry.num_tokens(), 488);
}

// Whatever is cut, wherever the cut falls: the parts' rows after each other are
// the whole batch's, tokens included, and pieces are no single tokens.
TEST(CutBatchTest, PartsHaveTheRowsOfTheWhole) {
  std::mt19937 random(7);
  const auto draw = [&](int32_t most) {
    return std::uniform_int_distribution<int32_t>(0, most)(random);
  };
  const ModelConfig config = ThreeMixers(3);
  int num_cut = 0;
  for (int round = 0; round < 2000; ++round) {
    std::vector<Placement> placements;
    std::vector<std::vector<int32_t>> tokens;
    const int32_t num_seqs = 1 + draw(5);
    for (int32_t i = 0; i < num_seqs; ++i) {
      placements.push_back(Make(config, {draw(2), draw(2), draw(2)}));
      std::vector<int32_t>& ids =
          tokens.emplace_back(1 + draw(draw(round % 10 == 0 ? 600 : 20)));
      for (int32_t& id : ids) id = draw(1000);
    }
    std::vector<BatchEntry> entries;
    for (int32_t i = 0; i < num_seqs; ++i) {
      entries.push_back({&placements[i], tokens[i], draw(50)});
      if (draw(3) == 0) entries.back().token_slot = i;
    }
    const BatchPlan whole = PlanBatch(entries);
    std::vector<std::pair<int32_t, int32_t>> want(whole.num_tokens);
    for (size_t i = 0; i < entries.size(); ++i) {
      for (int32_t t = 0; t < entries[i].num_tokens(); ++t) {
        want[whole.first_rows[i] + t] = {static_cast<int32_t>(i),
                                         entries[i].start + t};
      }
    }

    const std::vector<BatchPart> parts = CutBatch(entries, 1 + draw(4));
    ASSERT_GE(parts.size(), 1u);
    ASSERT_LE(parts.size(), 2u);
    if (parts.size() == 2) {
      const int32_t num_first = PlanOf(parts[0]).num_tokens;
      EXPECT_NEAR(num_first, whole.num_tokens / 2, num_first > 100 ? 65 : 1);
    }
    std::vector<std::pair<int32_t, int32_t>> got;
    std::vector<int32_t> token_ids, token_sources;
    for (const BatchPart& part : parts) {
      ASSERT_FALSE(part.empty());
      const BatchPlan plan = PlanOf(part);
      for (const auto& row : RowsOf(plan, part)) got.push_back(row);
      token_ids.insert(token_ids.end(), plan.token_ids.begin(),
                       plan.token_ids.end());
      token_sources.insert(token_sources.end(), plan.token_sources.begin(),
                           plan.token_sources.end());
      for (const BatchPiece& piece : part) {
        const bool whole_entry =
            piece.entry.num_tokens() == entries[piece.index].num_tokens();
        EXPECT_TRUE(whole_entry || piece.entry.num_tokens() > 1);
        num_cut += whole_entry ? 0 : 1;
      }
    }
    EXPECT_EQ(got, want);
    EXPECT_EQ(token_ids, whole.token_ids);
    EXPECT_EQ(token_sources, whole.token_sources);
  }
  EXPECT_GT(num_cut, 1000);
}

}  // namespace
}  // namespace switchyard
