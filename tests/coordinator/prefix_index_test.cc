#include "coordinator/prefix_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "tests/coordinator/supernet.h"

namespace switchyard {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::UnorderedElementsAre;
using Id = PrefixIndex::Id;
using Tokens = std::vector<uint32_t>;

// Blocks of two tokens.
class PrefixIndexTest : public testing::Test {
 protected:
  PrefixIndexTest()
      : config_(MakeSupernet(2)),
        a_(MakePlacement(config_, {kAttention, kAttention})),
        b_(MakePlacement(config_, {kAttention, kGdn})) {}

  // Inserts what is missing of the path, a unit each from *next_unit on.
  static std::vector<Id> Insert(PrefixIndex* index, const Placement& placement,
                                const Tokens& tokens, uint32_t* next_unit) {
    std::vector<Id> path;
    Id node = index->Root(placement);
    for (size_t i = 0; i + 2 <= tokens.size(); i += 2) {
      const auto block = PrefixIndex::Tokens(tokens).subspan(i, 2);
      const auto known = index->FindChild(node, block);
      node = known.has_value() ? *known
                               : index->Insert(node, block, {(*next_unit)++});
      path.push_back(node);
    }
    return path;
  }

  ModelConfig config_;
  Placement a_;
  Placement b_;
  uint32_t next_unit_ = 1;
};

TEST_F(PrefixIndexTest, FindsTheLongestPathUnderThePlacement) {
  PrefixIndex index(2);
  const std::vector<Id> path = Insert(&index, a_, {1, 2, 3, 4}, &next_unit_);
  EXPECT_EQ(index.FindPath(a_, Tokens{1, 2, 3, 4, 5, 6}), path);
  EXPECT_THAT(index.FindPath(a_, Tokens{1, 2, 3, 9}), ElementsAre(path[0]));
  EXPECT_THAT(index.FindPath(a_, Tokens{1, 2, 3}), ElementsAre(path[0]));
  EXPECT_THAT(index.FindPath(a_, Tokens{3, 4}), IsEmpty());
  EXPECT_THAT(index.FindPath(b_, Tokens{1, 2}), IsEmpty());
  EXPECT_THAT(index.UnitsOf(path[1]), ElementsAre(2));
  EXPECT_TRUE(index.CheckIntegrity().ok());
}

TEST_F(PrefixIndexTest, EqualHashesAreNotEqualTokens) {
  PrefixIndex index(2, [](uint64_t, PrefixIndex::Tokens) { return 7; });
  const std::vector<Id> one = Insert(&index, a_, {1, 2, 1, 2}, &next_unit_);
  const std::vector<Id> two = Insert(&index, a_, {3, 4, 1, 2}, &next_unit_);
  const std::vector<Id> three = Insert(&index, b_, {1, 2, 1, 2}, &next_unit_);
  EXPECT_EQ(index.FindPath(a_, Tokens{1, 2, 1, 2}), one);
  EXPECT_EQ(index.FindPath(a_, Tokens{3, 4, 1, 2}), two);
  EXPECT_EQ(index.FindPath(b_, Tokens{1, 2, 1, 2}), three);
  EXPECT_EQ(index.AllUnits().size(), 6u);
  EXPECT_THAT(index.FindPath(a_, Tokens{5, 6}), IsEmpty());
  EXPECT_TRUE(index.CheckIntegrity().ok()) << index.CheckIntegrity();
}

TEST_F(PrefixIndexTest, FindsTheLongestSnapshotOfAPrefix) {
  PrefixIndex index(2);
  const std::vector<Id> path = Insert(&index, b_, {1, 2, 3, 4}, &next_unit_);
  ASSERT_TRUE(index.InsertSnapshot(index.Root(b_), Tokens{1}, {70}));
  ASSERT_TRUE(index.InsertSnapshot(path[0], Tokens{}, {71}));
  ASSERT_TRUE(index.InsertSnapshot(path[0], Tokens{9}, {72}));
  ASSERT_TRUE(index.InsertSnapshot(path[1], Tokens{5}, {73}));
  EXPECT_FALSE(index.InsertSnapshot(path[1], Tokens{5}, {74}));
  const auto length = [&](const Tokens& tokens) -> int64_t {
    const auto* found =
        index.FindSnapshot(b_, index.FindPath(b_, tokens), tokens);
    return found == nullptr ? 0 : found->num_tokens;
  };
  EXPECT_EQ(length({1, 2, 3, 4, 5}), 5);
  EXPECT_EQ(length({1, 2, 3, 4, 6}), 2);
  EXPECT_EQ(length({1, 2, 9, 4}), 3);
  EXPECT_EQ(length({1, 3}), 1);
  EXPECT_EQ(length({2}), 0);
  EXPECT_TRUE(index.CheckIntegrity().ok()) << index.CheckIntegrity();
}

TEST_F(PrefixIndexTest, EvictsTheLeastRecentlyUsedAndOfAPathTheDeepest) {
  PrefixIndex index(2);
  const auto old = Insert(&index, a_, {1, 2, 3, 4}, &next_unit_);    // 1, 2
  const auto newer = Insert(&index, a_, {1, 2, 5, 6}, &next_unit_);  // 1, 3
  index.Touch(old[1]);
  EXPECT_THAT(*index.Evict(), ElementsAre(3));
  EXPECT_FALSE(index.Has(newer[1]));
  EXPECT_THAT(*index.Evict(), ElementsAre(2));
  EXPECT_THAT(*index.Evict(), ElementsAre(1));
  EXPECT_FALSE(index.Evict().has_value());
  EXPECT_EQ(index.num_nodes(), 0);  // no root is left either
}

TEST_F(PrefixIndexTest, WhatIsInUseStaysAndLeavesTheIndexWithWhatItHangsOn) {
  PrefixIndex index(2);
  const auto path = Insert(&index, a_, {1, 2, 3, 4}, &next_unit_);
  index.Use(path[0]);
  index.Use(path[1]);
  EXPECT_FALSE(index.Evict().has_value());
  index.Unuse(path[0]);
  EXPECT_THAT(*index.Evict(), UnorderedElementsAre(1, 2));
  index.Unuse(path[1]);  // gone, and no error
  EXPECT_EQ(index.num_nodes(), 0);
  EXPECT_TRUE(index.CheckIntegrity().ok());
}

TEST_F(PrefixIndexTest, PinnedSnapshotsStay) {
  PrefixIndex index(2);
  ASSERT_TRUE(index.InsertSnapshot(index.Root(b_), Tokens{1}, {70}));
  const Id id = index.FindSnapshot(b_, {}, Tokens{1})->id;
  index.Pin(id);
  EXPECT_FALSE(index.Evict().has_value());
  index.Unpin(id);
  EXPECT_THAT(*index.Evict(), ElementsAre(70));
  EXPECT_EQ(index.num_nodes(), 0);
}

TEST_F(PrefixIndexTest, NodesWithoutUnitsLastAsLongAsTheyServe) {
  PrefixIndex index(2);
  const Id node = index.Insert(index.Root(b_), Tokens{1, 2}, {});
  index.Use(node);
  const Id below = index.Insert(node, Tokens{3, 4}, {});
  index.Use(below);
  ASSERT_TRUE(index.InsertSnapshot(below, Tokens{}, {70}));
  index.Unuse(below);
  index.Unuse(node);
  EXPECT_EQ(index.FindPath(b_, Tokens{1, 2, 3, 4}).size(), 2u);
  EXPECT_THAT(*index.Evict(), ElementsAre(70));
  EXPECT_EQ(index.num_nodes(), 0);
}

TEST_F(PrefixIndexTest, WhatIsRemovedTakesAllBelowAndMayBeInUse) {
  PrefixIndex index(2);
  const auto path = Insert(&index, a_, {1, 2, 3, 4, 5, 6}, &next_unit_);
  ASSERT_TRUE(index.InsertSnapshot(path[2], Tokens{7}, {70}));
  ASSERT_TRUE(index.InsertSnapshot(path[0], Tokens{3}, {71}));
  index.Use(path[1]);
  EXPECT_THAT(index.Remove(path[1]), UnorderedElementsAre(2, 3, 70));
  index.Unuse(path[1]);
  EXPECT_THAT(index.FindPath(a_, Tokens{1, 2, 3, 4}), ElementsAre(path[0]));
  const Id snapshot = index.FindSnapshot(a_, {path[0]}, Tokens{1, 2, 3})->id;
  EXPECT_THAT(index.Remove(snapshot), ElementsAre(71));
  EXPECT_TRUE(index.CheckIntegrity().ok()) << index.CheckIntegrity();
  EXPECT_THAT(index.Remove(path[0]), ElementsAre(1));
  EXPECT_EQ(index.num_nodes(), 0);
}

TEST_F(PrefixIndexTest, UnitsAreSoundUntilTheyAreReplaced) {
  PrefixIndex index(2);
  const auto path = Insert(&index, a_, {1, 2}, &next_unit_);
  EXPECT_FALSE(index.IsSound(path[0]));
  EXPECT_TRUE(index.MarkSound(path[0]));
  EXPECT_FALSE(index.MarkSound(path[0]));  // it was already
  EXPECT_TRUE(index.IsSound(path[0]));
  index.Replace(path[0], {70});
  EXPECT_FALSE(index.IsSound(path[0]));
  index.Remove(path[0]);
  EXPECT_FALSE(index.MarkSound(path[0]));
}

// Random publishing, use and eviction against a list of what was published.
TEST_F(PrefixIndexTest, AgreesWithANaiveModel) {
  for (const bool weak : {false, true}) {
    std::mt19937 random(weak);
    const auto hash = [](uint64_t parent,
                         PrefixIndex::Tokens block) -> uint64_t {
      return (parent + (block.empty() ? 0 : block[0])) % 3;
    };
    PrefixIndex index = weak ? PrefixIndex(2, hash) : PrefixIndex(2);
    // Prefixes of full blocks, with the unit of the last, by placement.
    std::map<std::pair<bool, Tokens>, uint32_t> known;
    uint32_t next_unit = 1;
    for (int step = 0; step < 4000; ++step) {
      const bool second = random() % 2;
      const Placement& placement = second ? b_ : a_;
      Tokens tokens(2 * (1 + random() % 5));
      for (uint32_t& token : tokens) token = random() % 2;
      size_t expected = 0;
      for (size_t n = 2; n <= tokens.size(); n += 2) {
        if (!known.count({second, {tokens.begin(), tokens.begin() + n}})) break;
        ++expected;
      }
      const std::vector<Id> path = index.FindPath(placement, tokens);
      ASSERT_EQ(path.size(), expected);
      for (size_t i = 0; i < path.size(); ++i) {
        const Tokens prefix(tokens.begin(), tokens.begin() + 2 * (i + 1));
        ASSERT_THAT(index.UnitsOf(path[i]),
                    ElementsAre(known.at({second, prefix})));
      }
      if (random() % 3 == 0) {
        const auto units = index.Evict();
        ASSERT_EQ(units.has_value(), !known.empty());
        for (const uint32_t unit : units.value_or(std::vector<uint32_t>{})) {
          const auto it = std::find_if(
              known.begin(), known.end(),
              [unit](const auto& entry) { return entry.second == unit; });
          ASSERT_NE(it, known.end());
          known.erase(it);
        }
      } else {
        uint32_t unit = next_unit;
        Insert(&index, placement, tokens, &next_unit);
        for (size_t n = 2 * (expected + 1); n <= tokens.size(); n += 2) {
          known[{second, {tokens.begin(), tokens.begin() + n}}] = unit++;
        }
      }
      ASSERT_TRUE(index.CheckIntegrity().ok()) << index.CheckIntegrity();
    }
  }
}

}  // namespace
}  // namespace switchyard
