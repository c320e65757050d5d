#include "coordinator/placement_ids.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "tests/coordinator/supernet.h"

namespace switchyard {
namespace {

class PlacementIdsTest : public testing::Test {
 protected:
  // One of 125 placements.
  Placement Numbered(int i) const {
    return MakePlacement(config_, {i % 5, i / 5 % 5, i / 25 % 5});
  }

  ModelConfig config_ = MakeSupernet(3);
};

TEST_F(PlacementIdsTest, SpelledOutOnceThenNamed) {
  PlacementIds ids(8);
  const auto first = ids.Acquire(Numbered(0));
  EXPECT_TRUE(first.is_new);
  const auto again = ids.Acquire(Numbered(0));
  EXPECT_EQ(again.value, first.value);
  EXPECT_FALSE(again.is_new);
  const auto other = ids.Acquire(Numbered(1));
  EXPECT_NE(other.value, first.value);
  EXPECT_TRUE(other.is_new);
  // Out of use, but the table has room: still known.
  ids.Release(Numbered(1));
  EXPECT_FALSE(ids.Acquire(Numbered(1)).is_new);
}

TEST_F(PlacementIdsTest, AFullTableReusesTheEarliestUnusedId) {
  PlacementIds ids(2);
  const auto a = ids.Acquire(Numbered(0));
  const auto b = ids.Acquire(Numbered(1));
  ids.Release(Numbered(1));
  ids.Release(Numbered(0));
  const auto c = ids.Acquire(Numbered(2));
  EXPECT_TRUE(c.is_new);
  EXPECT_EQ(c.value, b.value);
  EXPECT_EQ(ids.Acquire(Numbered(0)).value, a.value);
  // Everything is in use: the table grows.
  EXPECT_EQ(ids.Acquire(Numbered(1)).value, 2u);
  EXPECT_EQ(ids.num_ids(), 3);
  EXPECT_EQ(ids.num_in_use(), 3);
}

// Whoever follows the announcements always knows what an id means.
TEST_F(PlacementIdsTest, RandomUseStaysBoundedAndUnambiguous) {
  std::mt19937 random(1);
  PlacementIds ids(16);
  std::map<uint32_t, Placement> known;
  std::multiset<Placement> users;
  for (int i = 0; i < 20000; ++i) {
    if (users.size() < 12 && random() % 2 == 0) {
      const Placement placement = Numbered(random() % 125);
      const auto id = ids.Acquire(placement);
      if (id.is_new) known[id.value] = placement;
      ASSERT_EQ(known.at(id.value), placement);
      users.insert(placement);
    } else if (!users.empty()) {
      const auto it = std::next(users.begin(), random() % users.size());
      ids.Release(*it);
      users.erase(it);
    }
    ASSERT_EQ(ids.num_in_use(),
              static_cast<int64_t>(
                  std::set<Placement>(users.begin(), users.end()).size()));
  }
  EXPECT_LE(ids.num_ids(), 16);
}

}  // namespace
}  // namespace switchyard
