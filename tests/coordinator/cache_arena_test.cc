#include "coordinator/cache_arena.h"

#include <gtest/gtest.h>

#include <iterator>
#include <map>
#include <random>
#include <vector>

#include "model/cache_spec.h"

namespace switchyard {
namespace {

using End = CacheArena::End;

constexpr int64_t kUnit = kCacheUnitBytes;

TEST(CacheArenaTest, StartsAsOneExtentOfWholeGranules) {
  CacheArena arena(10 * kUnit + 17);
  EXPECT_EQ(arena.capacity_bytes(), 10 * kUnit);
  EXPECT_EQ(arena.free_bytes(), 10 * kUnit);
  EXPECT_EQ(arena.largest_free_bytes(), 10 * kUnit);
  EXPECT_TRUE(arena.CheckIntegrity().ok());
}

TEST(CacheArenaTest, AnEmptyArenaGivesNothing) {
  CacheArena arena(kUnit - 1);
  EXPECT_EQ(arena.capacity_bytes(), 0);
  EXPECT_EQ(arena.largest_free_bytes(), 0);
  EXPECT_FALSE(arena.Allocate(kUnit, End::kLow).has_value());
  EXPECT_TRUE(arena.CheckIntegrity().ok());
}

TEST(CacheArenaTest, GrowsFromBothEnds) {
  CacheArena arena(10 * kUnit);
  EXPECT_EQ(arena.Allocate(2 * kUnit, End::kLow), 0u);
  EXPECT_EQ(arena.Allocate(3 * kUnit, End::kHigh), 7u);
  EXPECT_EQ(arena.Allocate(2 * kUnit, End::kLow), 2u);
  EXPECT_EQ(arena.Allocate(3 * kUnit, End::kHigh), 4u);
  EXPECT_EQ(arena.free_bytes(), 0);
  EXPECT_FALSE(arena.Allocate(kUnit, End::kLow).has_value());
  EXPECT_TRUE(arena.CheckIntegrity().ok());
}

TEST(CacheArenaTest, PrefersTheSmallestExtentThatFits) {
  CacheArena arena(20 * kUnit);
  for (int i = 0; i < 5; ++i) arena.Allocate(2 * kUnit, End::kLow);
  arena.Free(2, 2 * kUnit);  // a hole of 2 beside the open 10
  arena.Free(6, 2 * kUnit);
  EXPECT_EQ(arena.Allocate(2 * kUnit, End::kLow), 2u);
  EXPECT_EQ(arena.Allocate(2 * kUnit, End::kHigh), 6u);
  EXPECT_EQ(arena.Allocate(2 * kUnit, End::kHigh), 18u);
  EXPECT_TRUE(arena.CheckIntegrity().ok());
}

TEST(CacheArenaTest, OfEqualHolesTakesTheOneNearestItsEnd) {
  CacheArena arena(6 * kUnit);
  for (int i = 0; i < 6; ++i) arena.Allocate(kUnit, End::kLow);
  for (const uint32_t id : {1u, 3u, 5u}) arena.Free(id, kUnit);
  EXPECT_EQ(arena.Allocate(kUnit, End::kHigh), 5u);
  EXPECT_EQ(arena.Allocate(kUnit, End::kLow), 1u);
}

TEST(CacheArenaTest, FreedNeighboursMerge) {
  CacheArena arena(6 * kUnit);
  for (int i = 0; i < 3; ++i) arena.Allocate(2 * kUnit, End::kLow);
  arena.Free(0, 2 * kUnit);
  arena.Free(4, 2 * kUnit);
  EXPECT_EQ(arena.largest_free_bytes(), 2 * kUnit);
  arena.Free(2, 2 * kUnit);
  EXPECT_EQ(arena.largest_free_bytes(), 6 * kUnit);
  EXPECT_EQ(arena.free_extents().size(), 1u);
  EXPECT_TRUE(arena.CheckIntegrity().ok());
}

TEST(CacheArenaDeathTest, FreeingWhatIsFreeIsFatal) {
  CacheArena arena(4 * kUnit);
  arena.Allocate(2 * kUnit, End::kLow);
  EXPECT_DEATH(arena.Free(2, kUnit), "invariant");
  EXPECT_DEATH(arena.Free(1, 2 * kUnit), "invariant");
  EXPECT_DEATH(arena.Free(3, 2 * kUnit), "invariant");
}

// Against a map of what is held: units never overlap, bytes always add up, and
// a refusal is always true.
TEST(CacheArenaTest, RandomUseKeepsUnitsApart) {
  for (int seed = 0; seed < 20; ++seed) {
    std::mt19937 random(seed);
    CacheArena arena((50 + random() % 200) * kUnit);
    std::map<int64_t, int64_t> held;  // offset -> bytes
    int64_t held_bytes = 0;
    for (int i = 0; i < 2000; ++i) {
      if (random() % 2 == 0 || held.empty()) {
        const int64_t num_bytes = (1 + random() % 12) * kUnit;
        const auto id =
            arena.Allocate(num_bytes, random() % 2 ? End::kHigh : End::kLow);
        if (!id.has_value()) {
          ASSERT_LT(arena.largest_free_bytes(), num_bytes);
          continue;
        }
        const int64_t offset = *id * kUnit;
        ASSERT_LE(offset + num_bytes, arena.capacity_bytes());
        const auto next = held.lower_bound(offset);
        if (next != held.end()) {
          ASSERT_LE(offset + num_bytes, next->first);
        }
        if (next != held.begin()) {
          const auto previous = std::prev(next);
          ASSERT_LE(previous->first + previous->second, offset);
        }
        held.emplace(offset, num_bytes);
        held_bytes += num_bytes;
      } else {
        auto it = std::next(held.begin(), random() % held.size());
        arena.Free(static_cast<uint32_t>(it->first / kUnit), it->second);
        held_bytes -= it->second;
        held.erase(it);
      }
      ASSERT_EQ(arena.capacity_bytes() - arena.free_bytes(), held_bytes);
      ASSERT_TRUE(arena.CheckIntegrity().ok()) << arena.CheckIntegrity();
    }
    for (const auto& [offset, num_bytes] : held) {
      arena.Free(static_cast<uint32_t>(offset / kUnit), num_bytes);
    }
    EXPECT_EQ(arena.largest_free_bytes(), arena.capacity_bytes());
  }
}

}  // namespace
}  // namespace switchyard
