#include "worker/graph_planner.h"

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/config.h"
#include "worker/graph_cache.h"

namespace switchyard {
namespace {

using ::testing::ElementsAre;

class GraphPlannerTest : public ::testing::Test {
 protected:
  GraphPlannerTest() {
    LayerConfig layer;
    layer.stochastic = true;
    layer.mixers.resize(2);
    layer.mixers[0].name = "a";
    layer.mixers[1].name = "b";
    config_.layers.assign(2, layer);
    first_ = Placement::FromIndices(config_, {0, 1}).value();
    second_ = Placement::FromIndices(config_, {1, 1}).value();
  }

  ModelConfig config_;
  Placement first_, second_;
  GraphLimits limits_{/*max_rows=*/64};
};

TEST_F(GraphPlannerTest, BatchBucketsAreFewAndClose) {
  std::vector<int32_t> buckets;
  for (int32_t n = 1; n <= 300; ++n) {
    const int32_t bucket = BatchBucket(n);
    EXPECT_GE(bucket, n);
    EXPECT_LE(bucket, std::max(2 * n - 1, 1));
    EXPECT_EQ(BatchBucket(bucket), bucket);
    if (buckets.empty() || buckets.back() != bucket) buckets.push_back(bucket);
  }
  EXPECT_THAT(buckets, ElementsAre(1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192,
                                   256, 384));
}

TEST_F(GraphPlannerTest, PadsEveryPlacementAndKeepsTheBatchsOrderWithin) {
  const std::vector<GraphEntry> entries = {{&second_, 0, false},
                                           {&first_, 3, false},
                                           {&second_, 70, true},
                                           {&second_, 0, false}};
  const auto plan = PlanGraph(entries, limits_);
  ASSERT_TRUE(plan.has_value());
  EXPECT_THAT(plan->entries, ElementsAre(1, 0, 2, 3, -1));
  EXPECT_THAT(plan->key.groups,
              ElementsAre(GraphGroup{first_, 1}, GraphGroup{second_, 4}));
  EXPECT_EQ(plan->key.num_rows(), 5);
  EXPECT_EQ(plan->key.num_biases, 128);
  EXPECT_TRUE(plan->key.logprobs);
}

TEST_F(GraphPlannerTest, LeavesWhatHasNoRoomOrTooManyShapes) {
  EXPECT_FALSE(PlanGraph({}, limits_).has_value());
  std::vector<GraphEntry> entries(64, {&first_, 0, false});
  EXPECT_TRUE(PlanGraph(entries, limits_).has_value());
  entries.push_back({&first_, 0, false});
  EXPECT_FALSE(PlanGraph(entries, limits_).has_value());
  limits_.max_placements = 1;
  const std::vector<GraphEntry> two = {{&first_, 0, false},
                                       {&second_, 0, false}};
  EXPECT_FALSE(PlanGraph(two, limits_).has_value());
}

TEST(GraphCacheTest, EvictsWhatWasUsedLeastRecently) {
  GraphCache<std::string, std::unique_ptr<int>> cache({3, 100});
  cache.Insert("a", std::make_unique<int>(1), 10);
  cache.Insert("b", std::make_unique<int>(2), 10);
  cache.Insert("c", std::make_unique<int>(3), 10);
  ASSERT_NE(cache.Find("a"), nullptr);
  cache.Insert("d", std::make_unique<int>(4), 10);
  EXPECT_EQ(cache.Find("b"), nullptr);
  EXPECT_EQ(**cache.Find("a"), 1);
  EXPECT_EQ(**cache.Find("d"), 4);
  EXPECT_EQ(cache.size(), 3);
  EXPECT_EQ(cache.bytes(), 30);
  EXPECT_EQ(cache.num_evicted(), 1);
}

TEST(GraphCacheTest, KeepsToItsMemory) {
  GraphCache<std::string, int> cache({10, 100});
  cache.Insert("a", 1, 40);
  cache.Insert("b", 2, 40);
  cache.Insert("c", 3, 60);
  EXPECT_EQ(cache.Find("a"), nullptr);
  EXPECT_EQ(cache.bytes(), 100);
  cache.Insert("large", 4, 500);
  EXPECT_EQ(cache.size(), 1);
  EXPECT_EQ(*cache.Find("large"), 4);
  cache.Insert("d", 5, 1);
  EXPECT_EQ(cache.Find("large"), nullptr);
  EXPECT_EQ(cache.bytes(), 1);
  cache.Clear();
  EXPECT_EQ(cache.Find("d"), nullptr);
  EXPECT_EQ(cache.bytes(), 0);
}

}  // namespace
}  // namespace switchyard
