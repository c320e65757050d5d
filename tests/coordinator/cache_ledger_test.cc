#include "coordinator/cache_ledger.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "tests/coordinator/supernet.h"

namespace switchyard {
namespace {

class CacheLedgerTest : public testing::Test {
 protected:
  CacheLedgerTest() : config_(MakeSupernet(4)), spec_(MakeSpec(config_)) {}

  Placement All(int32_t mixer) const {
    return MakePlacement(config_, {mixer, mixer, mixer, mixer});
  }
  int64_t UnitBytes(int32_t mixer) const {
    return spec_.At(0, mixer).unit_bytes;
  }

  ModelConfig config_;
  CacheSpec spec_;  // blocks of 4 positions; the window's ring has 3
};

std::map<int32_t, int> CountByLayer(
    const std::vector<CacheLedger::NewUnit>& units) {
  std::map<int32_t, int> counts;
  for (const CacheLedger::NewUnit& unit : units) ++counts[unit.layer];
  return counts;
}

TEST_F(CacheLedgerTest, EachLayerHoldsWhatItsMixerNeeds) {
  CacheLedger ledger(spec_, 1 << 20);
  const Placement placement =
      MakePlacement(config_, {kAttention, kWindow, kGdn, kMamba});
  auto units = ledger.Reserve(1, placement, 5);
  ASSERT_TRUE(units.ok()) << units.status();
  EXPECT_EQ(CountByLayer(*units),
            (std::map<int32_t, int>{{0, 2}, {1, 2}, {2, 1}, {3, 1}}));
  EXPECT_EQ(ledger.num_blocks_held(), 4);
  EXPECT_EQ(ledger.num_slots_held(), 2);
  EXPECT_EQ(ledger.held_bytes(), 2 * UnitBytes(kAttention) +
                                     2 * UnitBytes(kWindow) + UnitBytes(kGdn) +
                                     UnitBytes(kMamba));
  EXPECT_EQ(ledger.NumTokensOf(1), 5);

  // Within the last block: nothing new. Then a block, then a full ring.
  EXPECT_TRUE(ledger.Reserve(1, placement, 8)->empty());
  units = ledger.Reserve(1, placement, 9);
  EXPECT_EQ(CountByLayer(*units), (std::map<int32_t, int>{{0, 1}, {1, 1}}));
  units = ledger.Reserve(1, placement, 100);
  EXPECT_EQ(CountByLayer(*units), (std::map<int32_t, int>{{0, 22}}));
  EXPECT_TRUE(ledger.CheckIntegrity().ok()) << ledger.CheckIntegrity();
}

TEST_F(CacheLedgerTest, RecurrentPlacementsDoNotGrow) {
  CacheLedger ledger(spec_, 1 << 20);
  EXPECT_EQ(ledger.Reserve(1, All(kKda), 1)->size(), 4u);
  EXPECT_TRUE(ledger.Reserve(1, All(kKda), 100000)->empty());
  EXPECT_EQ(ledger.held_bytes(), 4 * UnitBytes(kKda));
  EXPECT_EQ(ledger.num_blocks_held(), 0);
  EXPECT_EQ(ledger.growth_bytes(), 0);
}

TEST_F(CacheLedgerTest, FailureChangesNothing) {
  const int64_t arena_bytes =
      8 * UnitBytes(kAttention) + 2 * UnitBytes(kAttention);
  CacheLedger ledger(spec_, arena_bytes);
  ASSERT_TRUE(ledger.Reserve(1, All(kAttention), 8).ok());
  const auto failed = ledger.Reserve(1, All(kAttention), 9);
  EXPECT_EQ(failed.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ledger.NumTokensOf(1), 8);
  EXPECT_EQ(ledger.num_blocks_held(), 8);
  EXPECT_EQ(ledger.Reserve(2, All(kAttention), 1).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ledger.num_holders(), 1);
  EXPECT_TRUE(ledger.CheckIntegrity().ok()) << ledger.CheckIntegrity();
}

TEST_F(CacheLedgerTest, ReleaseGivesEverythingBackAndMayBeRepeated) {
  CacheLedger ledger(spec_, 1 << 20);
  ASSERT_TRUE(ledger.Reserve(1, All(kGdn), 3).ok());
  ASSERT_TRUE(ledger.Reserve(2, All(kAttention), 30).ok());
  EXPECT_EQ(ledger.growth_bytes(), 4 * UnitBytes(kAttention));
  ledger.Release(1);
  ledger.Release(2);
  ledger.Release(2);
  ledger.Release(77);
  EXPECT_EQ(ledger.held_bytes(), 0);
  EXPECT_EQ(ledger.num_blocks_held(), 0);
  EXPECT_EQ(ledger.num_slots_held(), 0);
  EXPECT_EQ(ledger.growth_bytes(), 0);
  EXPECT_TRUE(ledger.CheckIntegrity().ok()) << ledger.CheckIntegrity();
}

TEST_F(CacheLedgerTest, MaxTokensIsTheLastThatFitsAlone) {
  const int64_t arena_bytes = 4 * 7 * UnitBytes(kAttention) + 1000;
  CacheLedger ledger(spec_, arena_bytes);
  EXPECT_EQ(ledger.MaxTokens(All(kAttention), 10000), 28);
  EXPECT_EQ(ledger.MaxTokens(All(kAttention), 10), 10);
  EXPECT_EQ(ledger.MaxTokens(All(kWindow), 10000), 10000);
  CacheLedger small(spec_, UnitBytes(kAttention));
  EXPECT_EQ(small.MaxTokens(All(kAttention), 10000), 0);
}

TEST_F(CacheLedgerTest, ASequenceAloneFillsTheArenaToTheLastByte) {
  std::mt19937 random(7);
  for (int i = 0; i < 200; ++i) {
    std::vector<int32_t> mixers(4);
    for (int32_t& mixer : mixers) mixer = random() % kNumSupernetMixers;
    const Placement placement = MakePlacement(config_, mixers);
    const int64_t num_tokens = 1 + random() % 100;
    CacheLedger ledger(spec_, spec_.SequenceBytes(placement, num_tokens));
    int64_t reserved = 0;
    while (reserved < num_tokens) {
      reserved = std::min<int64_t>(num_tokens, reserved + 1 + random() % 9);
      ASSERT_TRUE(ledger.Reserve(1, placement, reserved).ok());
    }
    EXPECT_EQ(ledger.free_bytes(), 0);
  }
}

// Sequences of random placements come, grow and go. At every moment the bytes
// held are the sum of what the live placements need: neither padding nor units
// of mixers that nobody uses, whatever the mix and the history.
TEST_F(CacheLedgerTest, HoldsExactlyWhatThePlacementsNeed) {
  for (int seed = 0; seed < 10; ++seed) {
    std::mt19937 random(seed);
    CacheLedger ledger(spec_, 200'000 + random() % 2'000'000);
    std::map<uint64_t, std::pair<Placement, int64_t>> live;
    uint64_t next_id = 1;
    int num_refused = 0;
    for (int i = 0; i < 3000; ++i) {
      const int what = random() % 10;
      if (live.empty() || what < 3) {
        std::vector<int32_t> mixers(4);
        for (int32_t& mixer : mixers) mixer = random() % kNumSupernetMixers;
        const Placement placement = MakePlacement(config_, mixers);
        const int64_t num_tokens = 1 + random() % 200;
        if (ledger.Reserve(next_id, placement, num_tokens).ok()) {
          live.emplace(next_id, std::make_pair(placement, num_tokens));
          ++next_id;
        } else {
          ++num_refused;
        }
      } else {
        auto it = std::next(live.begin(), random() % live.size());
        auto& [placement, num_tokens] = it->second;
        if (what < 8) {
          const int64_t grown = num_tokens + 1 + random() % 20;
          if (ledger.Reserve(it->first, placement, grown).ok()) {
            num_tokens = grown;
          }
        } else {
          ledger.Release(it->first);
          live.erase(it);
        }
      }
      int64_t needed = 0;
      for (const auto& [id, sequence] : live) {
        needed += spec_.SequenceBytes(sequence.first, sequence.second);
      }
      ASSERT_EQ(ledger.held_bytes(), needed);
      if (i % 50 == 0) {
        ASSERT_TRUE(ledger.CheckIntegrity().ok()) << ledger.CheckIntegrity();
      }
    }
    EXPECT_GT(num_refused, 0) << "the arena was never full";
    for (const auto& [id, sequence] : live) ledger.Release(id);
    EXPECT_EQ(ledger.held_bytes(), 0);
    EXPECT_TRUE(ledger.CheckIntegrity().ok()) << ledger.CheckIntegrity();
  }
}

}  // namespace
}  // namespace switchyard
