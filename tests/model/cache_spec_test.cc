#include "model/cache_spec.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "tests/model/random_config.h"

namespace switchyard {
namespace {

ModelConfig Load(const std::string& name) {
  return LoadModelConfig("tests/testdata/" + name).value();
}

CacheSpec Spec(const ModelConfig& config, int32_t world_size,
               int32_t block_size = 16) {
  CacheSpecOptions options;
  options.world_size = world_size;
  options.block_size = block_size;
  return CacheSpec::Create(config, options).value();
}

TEST(CacheSpecTest, SizesOfTheFiveMixers) {
  const ModelConfig config = Load("zoo-stochastic5");
  const CacheSpec one = Spec(config, 1), four = Spec(config, 4);
  // attention: 4 KV heads of 16.
  EXPECT_EQ(one.At(0, 0).kind, CacheKind::kBlocks);
  EXPECT_EQ(one.At(0, 0).value_offset, 4 * 16 * 16 * 4);
  EXPECT_EQ(one.At(0, 0).unit_bytes, 2 * 4 * 16 * 16 * 4);
  EXPECT_EQ(four.At(0, 0).num_kv_heads_local, 1);
  EXPECT_EQ(four.At(0, 0).unit_bytes, 2 * 1 * 16 * 16 * 4);
  // gdn: 4 key heads of 16, 8 value heads of 32, kernel 4.
  const MixerCacheSpec& gdn = one.At(1, 1);
  EXPECT_EQ(gdn.kind, CacheKind::kSlot);
  EXPECT_EQ(gdn.conv_channels_local, 2 * 64 + 256);
  EXPECT_EQ(gdn.conv_state_length, 3);
  EXPECT_EQ(gdn.conv_bytes, 384 * 3 * 4);
  EXPECT_EQ(gdn.state_offset, 4608);  // a multiple of 256
  EXPECT_EQ(gdn.state_bytes, 8 * 16 * 32 * 4);
  EXPECT_EQ(four.At(1, 1).state_heads_local, 2);
  // kda: 4 heads of 32.
  EXPECT_EQ(one.At(2, 2).conv_channels_local, 3 * 128);
  EXPECT_EQ(one.At(2, 2).state_bytes, 4 * 32 * 32 * 4);
  // mamba: d_inner 128, repeated before the convolution.
  EXPECT_EQ(one.At(0, 3).conv_channels_local, 128);
  EXPECT_EQ(one.At(0, 3).state_rows, 128);
  EXPECT_EQ(one.At(0, 3).state_cols, 16);
  EXPECT_EQ(four.At(0, 3).state_rows, 32);
  // swa: window 16.
  EXPECT_EQ(one.At(0, 4).window, 16);
  EXPECT_EQ(one.At(0, 4).ring_blocks, 1);
}

TEST(CacheSpecTest, MambaThatRepeatsLaterConvolvesLess) {
  const ModelConfig config = Load("zoo-pattern");
  EXPECT_EQ(Spec(config, 1).At(3, 0).conv_channels_local, 32);
  EXPECT_EQ(Spec(config, 2).At(3, 0).conv_channels_local, 16);
}

TEST(CacheSpecTest, KvHeadsAreReplicatedWhenRanksOutnumberThem) {
  ModelConfig config = Load("zoo-stochastic5");
  for (LayerConfig& layer : config.layers) {
    std::get<AttentionConfig>(layer.mixers[0].params).num_kv_heads = 2;
  }
  EXPECT_EQ(Spec(config, 2).At(0, 0).num_kv_heads_local, 1);
  EXPECT_EQ(Spec(config, 4).At(0, 0).num_kv_heads_local, 1);
}

TEST(CacheSpecTest, UnitsGrowWithTheSequenceOrDoNot) {
  const ModelConfig config = Load("apriel2-tiny");
  const CacheSpec spec = Spec(config, 1);
  const int attention = 0, gdn = 1, sliding_window = 3;
  EXPECT_EQ(spec.NumUnits(0, attention, 0), 0);
  EXPECT_EQ(spec.NumUnits(0, attention, 1), 1);
  EXPECT_EQ(spec.NumUnits(0, attention, 16), 1);
  EXPECT_EQ(spec.NumUnits(0, attention, 17), 2);
  EXPECT_EQ(spec.NumUnits(0, attention, 1000), 63);
  EXPECT_EQ(spec.NumUnits(0, sliding_window, 17), 2);
  EXPECT_EQ(spec.NumUnits(0, sliding_window, 1000), 4);  // 64 / 16
  EXPECT_EQ(spec.NumUnits(0, gdn, 0), 0);
  EXPECT_EQ(spec.NumUnits(0, gdn, 1000), 1);
  // A window of whole blocks or not.
  EXPECT_EQ(Spec(config, 1, 32).At(0, sliding_window).ring_blocks, 2);
  EXPECT_EQ(Spec(config, 1, 128).At(0, sliding_window).ring_blocks, 1);
}

TEST(CacheSpecTest, ASequencePaysForItsPlacementAlone) {
  const ModelConfig config = Load("apriel2-tiny");
  const CacheSpec spec = Spec(config, 1);
  const std::vector<int32_t> gdn(6, 1), mixed = {0, 1, 2, 3, 0, 0};
  const auto all_gdn = *Placement::FromIndices(config, gdn);
  EXPECT_EQ(spec.SequenceBytes(all_gdn, 5), spec.SequenceBytes(all_gdn, 4000));
  EXPECT_EQ(spec.SequenceBytes(all_gdn, 5), 6 * spec.At(0, 1).unit_bytes);
  EXPECT_EQ(spec.SequenceBytes(*Placement::FromIndices(config, mixed), 100),
            3 * 7 * spec.At(0, 0).unit_bytes + spec.At(0, 1).unit_bytes +
                spec.At(0, 2).unit_bytes + 4 * spec.At(0, 3).unit_bytes);
}

TEST(CacheSpecTest, RefusesBadOptions) {
  const ModelConfig config = Load("apriel2-tiny");
  CacheSpecOptions options;
  options.block_size = 0;
  EXPECT_EQ(CacheSpec::Create(config, options).status().message(),
            "block_size must be a power of two from 1 to 1024, is 0");
  options.block_size = 48;  // no kernel divides by it
  EXPECT_EQ(CacheSpec::Create(config, options).status().message(),
            "block_size must be a power of two from 1 to 1024, is 48");
  options.block_size = 2048;
  EXPECT_FALSE(CacheSpec::Create(config, options).ok());
  options.block_size = 16;
  options.world_size = 3;
  EXPECT_EQ(CacheSpec::Create(config, options).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(CacheSpecTest, PropertiesOfGeneratedConfigs) {
  std::mt19937 random(99);
  for (int i = 0; i < 300; ++i) {
    const ModelConfig config =
        ParseModelConfig(RandomConfigJson(random).dump(), "").value();
    for (const int32_t world_size : {1, 2, 4}) {
      const CacheSpec spec = Spec(config, world_size);
      const CacheSpec whole = Spec(config, 1);
      for (int32_t layer = 0; layer < spec.num_layers(); ++layer) {
        for (int32_t m = 0; m < spec.num_mixers(layer); ++m) {
          const MixerCacheSpec& s = spec.At(layer, m);
          const MixerCacheSpec& w = whole.At(layer, m);
          EXPECT_GT(s.unit_bytes, 0);
          EXPECT_EQ(s.unit_bytes % kCacheUnitBytes, 0);
          EXPECT_EQ(s.state_offset % kCacheUnitBytes, 0);
          EXPECT_LE(s.unit_bytes, w.unit_bytes);
          EXPECT_GE(s.unit_bytes, s.state_offset + s.state_bytes);
          EXPECT_EQ(s.state_bytes * world_size, w.state_bytes);
          // More where gdn's key heads are replicated.
          EXPECT_GE(s.conv_bytes * world_size, w.conv_bytes);
          int64_t last = 0;
          for (int64_t tokens = 0; tokens < 200; tokens += 7) {
            const int64_t units = spec.NumUnits(layer, m, tokens);
            EXPECT_GE(units, last);
            last = units;
            if (s.window > 0) {
              EXPECT_LE(units, s.ring_blocks);
              EXPECT_GE(s.ring_blocks * spec.block_size(), s.window);
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace switchyard
