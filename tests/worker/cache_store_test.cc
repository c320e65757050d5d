#include "worker/cache_store.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/device.h"
#include "model/config.h"

namespace switchyard {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kArenaBytes = 4 << 20;

class CacheStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    config_ = LoadModelConfig("tests/testdata/apriel2-tiny").value();
    spec_.emplace(CacheSpec::Create(config_, CacheSpecOptions()).value());
    CacheStoreOptions options;
    options.arena_bytes = kArenaBytes;
    options.max_context_tokens = 100;  // seven blocks
    options.poison_freed = true;
    store_ = CacheStore::Create(device_.get(), &*spec_, options).value();
  }

  SequenceCache Sequence(const std::string& mixer) {
    const std::vector<std::string> names(config_.num_layers(), mixer);
    return SequenceCache(Placement::FromNames(config_, names).value());
  }
  // Ids that the unit at `id` spans.
  uint32_t Span(const SequenceCache& cache) const {
    return static_cast<uint32_t>(spec_->At(0, cache.placement()[0]).unit_bytes /
                                 kCacheUnitBytes);
  }
  float* At(uint32_t id) const {
    return reinterpret_cast<float*>(store_->arena() + id * kCacheUnitBytes);
  }

  const std::unique_ptr<Device> device_ = MakeCpuDevice(1);
  ModelConfig config_;
  std::optional<CacheSpec> spec_;
  std::unique_ptr<CacheStore> store_;
};

TEST_F(CacheStoreTest, HandsOutBlocksInOrderAndTakesThemBack) {
  SequenceCache cache = Sequence("attention");
  const uint32_t span = Span(cache);
  ASSERT_TRUE(store_->Append(cache, 0, 3 * span).ok());
  ASSERT_TRUE(store_->Append(cache, 0, 0).ok());
  ASSERT_TRUE(store_->Append(cache, 5, 2 * span).ok());
  EXPECT_THAT(cache.ids(0), ElementsAre(3 * span, 0));
  EXPECT_THAT(cache.ids(5), ElementsAre(2 * span));
  EXPECT_EQ(store_->num_units_held(), 3);
  EXPECT_TRUE(store_->Release(cache).ok());
  EXPECT_EQ(store_->num_units_held(), 0);
  EXPECT_TRUE(cache.ids(0).empty());
}

TEST_F(CacheStoreTest, ZeroesSlotsAndPoisonsWhatIsFree) {
  EXPECT_TRUE(std::isnan(*At(0)));
  SequenceCache slots = Sequence("gdn");
  const uint32_t span = Span(slots);
  ASSERT_TRUE(store_->Append(slots, 0, span).ok());
  const int64_t num_floats = span * kCacheUnitBytes / sizeof(float);
  const auto is_zero = [](float x) { return x == 0; };
  EXPECT_TRUE(std::all_of(At(span), At(span) + num_floats, is_zero));
  EXPECT_TRUE(std::isnan(At(span)[-1]));
  EXPECT_TRUE(std::isnan(*At(2 * span)));
  ASSERT_TRUE(store_->Release(slots).ok());
  EXPECT_TRUE(std::all_of(At(span), At(span) + num_floats,
                          [](float x) { return std::isnan(x); }));
}

TEST_F(CacheStoreTest, RefusesWhatTheLedgerCannotMean) {
  SequenceCache cache = Sequence("attention");
  SequenceCache other = Sequence("kda");
  const uint32_t span = Span(cache);
  const auto problem = [&](SequenceCache& of, int64_t layer, uint32_t id) {
    const absl::Status status = store_->Append(of, layer, id);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  ASSERT_TRUE(store_->Append(cache, 0, span).ok());
  EXPECT_THAT(problem(cache, 6, 0), HasSubstr("cache for layer 6"));
  // The same unit, its tail, its head; and a larger unit around it.
  EXPECT_THAT(problem(cache, 1, span), HasSubstr("overlaps"));
  EXPECT_THAT(problem(cache, 1, span + 1), HasSubstr("overlaps"));
  EXPECT_THAT(problem(cache, 1, 1), HasSubstr("overlaps"));
  EXPECT_THAT(problem(other, 1, 0), HasSubstr("slot 0 for layer 1 overlaps"));
  const uint32_t last = kArenaBytes / kCacheUnitBytes;
  EXPECT_THAT(problem(cache, 1, last - 1), HasSubstr("of an arena of"));
  EXPECT_THAT(problem(cache, 1, 0xffffffff), HasSubstr("of an arena of"));
  // 100 positions need seven blocks, a window of 64 four, a slot is one.
  for (uint32_t i = 2; i < 8; ++i) {
    ASSERT_TRUE(store_->Append(cache, 0, i * span).ok());
  }
  EXPECT_THAT(problem(cache, 0, 8 * span), HasSubstr("at most 7"));
  SequenceCache window = Sequence("sliding_window");
  for (uint32_t i = 8; i < 12; ++i) {
    ASSERT_TRUE(store_->Append(window, 0, i * span).ok());
  }
  EXPECT_THAT(problem(window, 0, 12 * span), HasSubstr("at most 4"));
  ASSERT_TRUE(store_->Append(other, 0, 20 * span).ok());
  EXPECT_THAT(problem(other, 0, 60 * span), HasSubstr("at most 1"));
  // A refused unit is not held.
  EXPECT_EQ(store_->num_units_held(), 7 + 4 + 1);
}

TEST_F(CacheStoreTest, ChecksThatPositionsAreCovered) {
  SequenceCache cache = Sequence("attention");
  const uint32_t span = Span(cache);
  for (int32_t layer = 0; layer < config_.num_layers(); ++layer) {
    ASSERT_TRUE(store_->Append(cache, layer, layer * span).ok());
  }
  EXPECT_TRUE(store_->CheckCovers(cache, 16).ok());
  EXPECT_EQ(store_->CheckCovers(cache, 17).message(),
            "layer 0 holds 1 blocks, 17 positions need 2");
}

TEST_F(CacheStoreTest, TablesHoldWhatTheirSequencesTouch) {
  const Placement ring = Sequence("sliding_window").placement();
  const Placement full = Sequence("attention").placement();
  const Placement slot = Sequence("gdn").placement();
  EXPECT_EQ(store_->NumEntries(0, ring[0], 17), 2);
  EXPECT_EQ(store_->NumEntries(0, ring[0], 100), 4);
  EXPECT_EQ(store_->NumEntries(0, full[0], 33), 3);
  EXPECT_TRUE(store_->HasTable(0, ring[0]));
  EXPECT_TRUE(store_->HasTable(0, full[0]));
  EXPECT_FALSE(store_->HasTable(0, slot[0]));
}

TEST_F(CacheStoreTest, RefusesImpossibleArenas) {
  for (const int64_t bytes : {int64_t{0}, int64_t{1} << 41}) {
    CacheStoreOptions options;
    options.arena_bytes = bytes;
    EXPECT_EQ(
        CacheStore::Create(device_.get(), &*spec_, options).status().code(),
        absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(CacheStoreTest, KeptUnitsOutliveTheirSequences) {
  SequenceCache first = Sequence("attention");
  const uint32_t span = Span(first);
  ASSERT_TRUE(store_->Append(first, 0, 0).ok());
  ASSERT_TRUE(store_->Append(first, 0, span).ok());
  *At(0) = 3;
  SequenceCache second = Sequence("attention");
  EXPECT_THAT(std::string(store_->Share(second, 0, 0).message()),
              HasSubstr("not a kept block"));
  ASSERT_TRUE(store_->Keep(0).ok());
  EXPECT_FALSE(store_->Keep(0).ok());
  EXPECT_FALSE(store_->Keep(7 * span).ok());
  ASSERT_TRUE(store_->Share(second, 0, 0).ok());
  ASSERT_TRUE(store_->Release(first).ok());
  EXPECT_EQ(store_->num_units_held(), 1);
  EXPECT_TRUE(std::isnan(*At(span)));
  ASSERT_TRUE(store_->Drop(0).ok());
  EXPECT_FALSE(store_->Drop(0).ok());
  EXPECT_EQ(*At(0), 3);  // the second still reads it
  ASSERT_TRUE(store_->Release(second).ok());
  EXPECT_EQ(store_->num_units_held(), 0);
  EXPECT_TRUE(std::isnan(*At(0)));
}

TEST_F(CacheStoreTest, SharesNoSlotsAndNoRings) {
  for (const char* mixer : {"gdn", "sliding_window"}) {
    SequenceCache first = Sequence(mixer);
    ASSERT_TRUE(store_->Append(first, 0, 0).ok());
    ASSERT_TRUE(store_->Keep(0).ok());
    SequenceCache second = Sequence(mixer);
    EXPECT_FALSE(store_->Share(second, 0, 0).ok()) << mixer;
    ASSERT_TRUE(store_->Release(first).ok());
    ASSERT_TRUE(store_->Drop(0).ok());
  }
}

TEST_F(CacheStoreTest, CopiesWholeUnits) {
  SequenceCache from = Sequence("gdn");
  SequenceCache to = Sequence("gdn");
  const uint32_t span = Span(from);
  for (int32_t layer : {0, 1}) {
    ASSERT_TRUE(store_->Append(from, layer, layer * span).ok());
    ASSERT_TRUE(store_->Append(to, layer, (4 + layer) * span).ok());
    *At(layer * span) = 1 + layer;
  }
  ASSERT_TRUE(store_->Copy({{0, 4 * span}, {span, 5 * span}}).ok());
  EXPECT_EQ(*At(4 * span), 1);
  EXPECT_EQ(*At(5 * span), 2);
  ASSERT_TRUE(store_->Copy({{span, 8 * span, /*keep=*/true}}).ok());
  EXPECT_EQ(*At(8 * span), 2);
  EXPECT_EQ(store_->num_units_held(), 5);

  EXPECT_THAT(
      std::string(store_->Copy({{0, span}, {span, 4 * span}}).message()),
      HasSubstr("the target of a copy and the source of another"));
  EXPECT_THAT(
      std::string(store_->Copy({{0, 4 * span}, {span, 4 * span}}).message()),
      HasSubstr("the target of a copy and the target of another"));
  EXPECT_FALSE(store_->Copy({{9 * span, span}}).ok());         // from nothing
  EXPECT_FALSE(store_->Copy({{0, 9 * span}}).ok());            // to nothing
  EXPECT_FALSE(store_->Copy({{0, 8 * span}}).ok());            // to a kept one
  EXPECT_FALSE(store_->Copy({{0, 8 * span + 1, true}}).ok());  // overlaps
  SequenceCache other = Sequence("attention");
  ASSERT_TRUE(store_->Append(other, 0, 12 * span).ok());
  EXPECT_FALSE(store_->Copy({{0, 12 * span}}).ok());  // of another size
}

}  // namespace
}  // namespace switchyard
