#include "worker/batch_packer.h"

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/device.h"
#include "model/config.h"

namespace switchyard {
namespace {

constexpr int32_t kBlockSize = 16;
constexpr int32_t kLong = 4000;        // positions
constexpr int64_t kPaddingBytes = 16;  // before an array, at most

class BatchPackerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    config_ = LoadModelConfig("tests/testdata/apriel2-tiny").value();
    CacheSpecOptions cache;
    cache.block_size = kBlockSize;
    spec_.emplace(CacheSpec::Create(config_, cache).value());
    CacheStoreOptions options;
    options.arena_bytes = int64_t{128} << 20;
    options.max_context_tokens = 2 * kLong;
    store_ = CacheStore::Create(device_.get(), &*spec_, options).value();
  }

  // A sequence that holds the cache for its positions.
  SequenceCache Sequence(const std::string& mixer, int64_t num_tokens) {
    const std::vector<std::string> names(config_.num_layers(), mixer);
    SequenceCache cache(Placement::FromNames(config_, names).value());
    for (int32_t layer = 0; layer < config_.num_layers(); ++layer) {
      const int32_t index = cache.placement()[layer];
      const int64_t span = spec_->At(layer, index).unit_bytes / kCacheUnitBytes;
      for (int64_t i = 0; i < spec_->NumUnits(layer, index, num_tokens); ++i) {
        EXPECT_TRUE(store_->Append(cache, layer, next_id_).ok());
        next_id_ += static_cast<uint32_t>(span);
      }
    }
    return cache;
  }

  // Steps with one new token each, or with `num_new`, at the ends of sequences
  // of these lengths.
  BatchPlan Plan(const std::vector<SequenceCache>& caches,
                 const std::vector<int32_t>& lengths, int32_t num_new = 1) {
    tokens_.assign(num_new, 7);
    std::vector<BatchEntry> entries;
    for (size_t i = 0; i < caches.size(); ++i) {
      entries.push_back({&caches[i].placement(), tokens_,
                         lengths[i] - static_cast<int32_t>(tokens_.size())});
    }
    return PlanBatch(entries);
  }

  static std::vector<const SequenceCache*> Pointers(
      const std::vector<SequenceCache>& caches) {
    std::vector<const SequenceCache*> pointers;
    for (const SequenceCache& cache : caches) pointers.push_back(&cache);
    return pointers;
  }

  // Every sequence finds in every layer the ids that it holds, and no more than
  // its positions need.
  void ExpectCaches(const ForwardBatch& batch, const BatchPlan& plan,
                    const std::vector<SequenceCache>& caches,
                    const std::vector<int32_t>& lengths) {
    ASSERT_EQ(batch.layers.size(), plan.layers.size());
    for (int32_t layer = 0; layer < config_.num_layers(); ++layer) {
      const PlannedGrouping& grouping =
          plan.groupings[plan.layers[layer].grouping];
      for (size_t s = 0; s < grouping.segments.size(); ++s) {
        const PlannedSegment& segment = grouping.segments[s];
        const MixerRun& run = batch.layers[layer].runs[s];
        const bool blocks =
            spec_->At(layer, run.mixer).kind == CacheKind::kBlocks;
        ASSERT_EQ(run.table_begins != nullptr, blocks);
        for (int32_t q = 0; q < segment.num_seqs; ++q) {
          const int32_t entry = grouping.entries[segment.first_seq + q];
          std::vector<uint32_t> got = {run.cache_ids[q]};
          if (blocks) {
            EXPECT_EQ(run.host_table_begins[q], run.table_begins[q]);
            got.assign(run.cache_ids + run.table_begins[q],
                       run.cache_ids + run.table_begins[q + 1]);
          }
          const auto held = caches[entry].ids(layer);
          const std::vector<uint32_t> want(
              held.begin(),
              held.begin() + spec_->NumUnits(layer, run.mixer, lengths[entry]));
          ASSERT_EQ(got, want) << "layer " << layer << ", entry " << entry;
        }
      }
    }
  }

  const std::unique_ptr<Device> device_ = MakeCpuDevice(1);
  ModelConfig config_;
  std::optional<CacheSpec> spec_;
  std::unique_ptr<CacheStore> store_;
  std::vector<int32_t> tokens_;
  uint32_t next_id_ = 0;
};

TEST_F(BatchPackerTest, EverySequenceFindsItsOwnCache) {
  std::vector<SequenceCache> caches;
  std::vector<int32_t> lengths;
  for (const auto& [mixer, length] :
       {std::pair("attention", 5), std::pair("gdn", 700),
        std::pair("attention", kLong), std::pair("sliding_window", 3),
        std::pair("sliding_window", 900), std::pair("kda", 17),
        std::pair("attention", 33)}) {
    caches.push_back(Sequence(mixer, length + 2 * kBlockSize));
    lengths.push_back(length);
  }
  for (const int32_t num_new : {1, 3}) {
    const BatchPlan plan = Plan(caches, lengths, num_new);
    StepBuffer buffer(device_.get());
    buffer.Clear();
    BatchPacker packer(&plan);
    packer.Pack(Pointers(caches), *store_, buffer);
    ASSERT_TRUE(buffer.Upload().ok());
    ExpectCaches(packer.Resolve(*store_, buffer), plan, caches, lengths);
  }
}

// One long sequence among many short ones: what is uploaded is what they hold,
// not the longest table for each of them.
TEST_F(BatchPackerTest, BytesAreThoseOfTheIdsThereAre) {
  constexpr int32_t kShort = 40, kNumShort = 100;
  std::vector<SequenceCache> caches;
  std::vector<int32_t> lengths;
  int64_t num_ids = 0;
  for (int32_t i = 0; i <= kNumShort; ++i) {
    lengths.push_back(i == kNumShort / 2 ? kLong : kShort);
    caches.push_back(Sequence("attention", lengths.back()));
    for (int32_t layer = 0; layer < config_.num_layers(); ++layer) {
      num_ids += static_cast<int64_t>(caches.back().ids(layer).size());
    }
  }
  const BatchPlan plan = Plan(caches, lengths);
  StepBuffer buffer(device_.get());
  buffer.Clear();
  BatchPacker packer(&plan);
  packer.Pack(Pointers(caches), *store_, buffer);
  EXPECT_EQ(buffer.used() - packer.tables_offset(), 4 * num_ids);
  // Per layer a begin for each, beside tokens, sources, lengths, offsets and
  // positions.
  const int64_t num_arrays = config_.num_layers() + 7;
  EXPECT_LE(packer.tables_offset(),
            num_arrays * (4 * (kNumShort + 2) + kPaddingBytes));
}

// What a recorded graph has the addresses of: whatever the lengths, steps of
// one shape have everything in the same place.
TEST_F(BatchPackerTest, LengthsMoveNothingButTheTables) {
  const std::vector<std::string> mixers = {"attention", "gdn", "attention",
                                           "sliding_window"};
  std::vector<SequenceCache> caches;
  for (const std::string& mixer : mixers) {
    caches.push_back(Sequence(mixer, kLong));
  }
  StepBuffer buffer(device_.get());
  ASSERT_TRUE(buffer.Reserve(int64_t{1} << 20).ok());
  std::vector<std::vector<const void*>> places;
  for (const std::vector<int32_t>& lengths :
       {std::vector<int32_t>{1, 1, 1, 1}, std::vector<int32_t>{30, 9, 999, 200},
        std::vector<int32_t>{kLong, kLong, 16, kLong}}) {
    const BatchPlan plan = Plan(caches, lengths);
    buffer.Clear();
    BatchPacker packer(&plan);
    packer.Pack(Pointers(caches), *store_, buffer);
    ASSERT_TRUE(buffer.Upload().ok());
    const ForwardBatch batch = packer.Resolve(*store_, buffer);
    ExpectCaches(batch, plan, caches, lengths);
    std::vector<const void*> here = {batch.token_ids};
    for (const Grouping& grouping : batch.groupings) {
      here.push_back(grouping.rows);
      here.push_back(grouping.inverse);
      for (const Segment& segment : grouping.segments) {
        here.push_back(segment.batch.token_offsets);
        here.push_back(segment.batch.context_lens);
        here.push_back(segment.batch.positions);
      }
    }
    for (const LayerPlan& layer : batch.layers) {
      for (const MixerRun& run : layer.runs) {
        here.push_back(run.cache_ids);
        here.push_back(run.table_begins);
      }
    }
    places.push_back(std::move(here));
  }
  EXPECT_EQ(places[1], places[0]);
  EXPECT_EQ(places[2], places[0]);
}

}  // namespace
}  // namespace switchyard
