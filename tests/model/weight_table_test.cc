#include "model/weight_table.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "tests/model/random_config.h"

namespace switchyard {
namespace {

using Ranges = std::vector<std::pair<int64_t, int64_t>>;

ModelConfig Load(const std::string& name) {
  return LoadModelConfig("tests/testdata/" + name).value();
}

TensorSpec Find(const ModelConfig& config, const std::string& name) {
  for (TensorSpec& spec : EnumerateTensors(config)) {
    if (spec.name == name) return spec;
  }
  ADD_FAILURE() << name;
  return {};
}

constexpr char kMixers[] = "model.decoder.blocks.1.mixer.mixers.";

TEST(WeightTableTest, CutsEachSegmentOfGdnByItsOwnHeads) {
  const ModelConfig config = Load("zoo-stochastic5");
  // Q, K: 4 heads of 16; V, Z: 8 heads of 32.
  const TensorSpec qkvz =
      Find(config, std::string(kMixers) + "gdn.in_proj_qkvz.weight");
  EXPECT_EQ(qkvz.role, TensorRole::kQkvzProj);
  EXPECT_EQ(qkvz.layer, 1);
  EXPECT_EQ(qkvz.mixer, 1);
  EXPECT_EQ(LocalRanges(qkvz, 1, 2),
            (Ranges{{32, 64}, {96, 128}, {256, 384}, {512, 640}}));
  EXPECT_EQ(LocalShape(qkvz, 2).rows, 320);
  const TensorSpec ba =
      Find(config, std::string(kMixers) + "gdn.in_proj_ba.weight");
  EXPECT_EQ(LocalRanges(ba, 3, 4), (Ranges{{6, 8}, {14, 16}}));
  const TensorSpec conv =
      Find(config, std::string(kMixers) + "gdn.convolution.weight");
  EXPECT_FALSE(conv.is_matrix);
  EXPECT_EQ(conv.cols(), 4);
  EXPECT_EQ(LocalRanges(conv, 0, 2), (Ranges{{0, 32}, {64, 96}, {128, 256}}));
  const TensorSpec out =
      Find(config, std::string(kMixers) + "gdn.out_proj.weight");
  EXPECT_EQ(out.shard.axis, ShardAxis::kCols);
  EXPECT_EQ(LocalRanges(out, 1, 4), (Ranges{{64, 128}}));
  EXPECT_EQ(LocalShape(out, 4).rows, 128);
  EXPECT_EQ(LocalShape(out, 4).cols, 64);
}

TEST(WeightTableTest, CutsMambaByHeadGroups) {
  const ModelConfig config = Load("zoo-stochastic5");
  // z, C: 8 heads of 16; x, B: 4, each for two of z and C.
  const TensorSpec in =
      Find(config, std::string(kMixers) + "mamba.in_proj.weight");
  EXPECT_EQ(LocalRanges(in, 1, 4),
            (Ranges{{32, 64}, {144, 160}, {208, 224}, {288, 320}}));
  EXPECT_EQ(
      Find(config, std::string(kMixers) + "mamba.dt_in_proj.weight").shard.axis,
      ShardAxis::kNone);
  const TensorSpec a_log = Find(config, std::string(kMixers) + "mamba.A_log");
  EXPECT_FALSE(a_log.is_matrix);  // [d_inner, state_size], but no GEMM operand
  EXPECT_EQ(LocalRanges(a_log, 1, 2), (Ranges{{64, 128}}));
  EXPECT_EQ(
      Find(Load("zoo-pattern"), "model.decoder.blocks.3.mixer.conv1d.weight")
          .rows(),
      32);  // convolved before the repeat
}

TEST(WeightTableTest, ReplicatesKvHeads) {
  ModelConfig config = Load("zoo-stochastic5");
  std::get<AttentionConfig>(config.layers[1].mixers[0].params).num_kv_heads = 2;
  const TensorSpec k =
      Find(config, std::string(kMixers) + "attention.k_proj.weight");
  const Ranges first = {{0, 16}}, second = {{16, 32}};
  EXPECT_EQ(LocalRanges(k, 0, 4), first);
  EXPECT_EQ(LocalRanges(k, 1, 4), first);
  EXPECT_EQ(LocalRanges(k, 2, 4), second);
  EXPECT_EQ(LocalRanges(k, 3, 4), second);
  EXPECT_EQ(LocalShape(k, 4).rows, 16);
}

TEST(WeightTableTest, ReplicatesTheKeyHeadsOfGdn) {
  // Q, K: 2 heads of 64; V, Z: 4 heads of 64. Value heads 0 and 1 use key head
  // 0, so ranks 0 and 1 of four hold it.
  const TensorSpec qkvz =
      Find(Load("apriel2-tiny"),
           "model.decoder.blocks.1.mixer.mixers.gdn.in_proj_qkvz.weight");
  EXPECT_EQ(LocalShape(qkvz, 4).rows, 4 * 64);
  EXPECT_EQ(LocalRanges(qkvz, 1, 4),
            (Ranges{{0, 64}, {128, 192}, {320, 384}, {576, 640}}));
  EXPECT_EQ(LocalRanges(qkvz, 2, 4),
            (Ranges{{64, 128}, {192, 256}, {384, 448}, {640, 704}}));
}

TEST(WeightTableTest, PadsTheVocabulary) {
  const ModelConfig config = Load("zoo-pattern");  // 257 words, tied
  const TensorSpec embedding = Find(config, "model.embed_tokens.weight");
  EXPECT_EQ(LocalShape(embedding, 4).rows, 65);
  EXPECT_EQ(LocalRanges(embedding, 0, 4), (Ranges{{0, 65}}));
  EXPECT_EQ(LocalRanges(embedding, 3, 4), (Ranges{{195, 257}}));
  const VocabShard last = VocabRows(257, 3, 4);
  EXPECT_EQ(last.begin, 195);
  EXPECT_EQ(last.end, 257);
  EXPECT_EQ(last.num_rows_local, 65);
  // More ranks than words can fill.
  EXPECT_EQ(VocabRows(5, 3, 4).begin, 5);
  EXPECT_EQ(VocabRows(5, 3, 4).end, 5);
  for (const TensorSpec& spec : EnumerateTensors(config)) {
    EXPECT_NE(spec.role, TensorRole::kLmHead);
  }
}

TEST(WeightTableTest, CountsParameters) {
  const ModelConfig config = Load("apriel2-tiny");
  EXPECT_EQ(NumParameters(config), 9360968);
  int64_t floats = 0, matrices = 0;
  for (const TensorSpec& spec : EnumerateTensors(config)) {
    (spec.is_matrix ? matrices : floats) += spec.num_elements();
  }
  EXPECT_EQ(WeightBytesPerRank(config, 1, 2), 2 * matrices + 4 * floats);
  const int64_t half = WeightBytesPerRank(config, 2, 2);
  EXPECT_GT(half, WeightBytesPerRank(config, 1, 2) / 2);
  EXPECT_LT(half, WeightBytesPerRank(config, 1, 2) * 6 / 10);
}

// Over all ranks, every row (or column) of a segment is held: exactly once, or
// by equally many neighbours where KV or key heads are replicated.
TEST(WeightTableTest, RanksCoverEveryTensorEvenly) {
  std::mt19937 random(11);
  for (int i = 0; i < 200; ++i) {
    const ModelConfig config =
        ParseModelConfig(RandomConfigJson(random).dump(), "").value();
    std::set<std::string> names;
    for (const TensorSpec& spec : EnumerateTensors(config)) {
      EXPECT_TRUE(names.insert(spec.name).second) << spec.name;
      if (spec.shard.axis == ShardAxis::kNone) continue;
      const bool by_rows = spec.shard.axis == ShardAxis::kRows;
      const int64_t extent = by_rows ? spec.rows() : spec.cols();
      for (const int32_t world_size : {1, 2, 4}) {
        std::vector<int> held(extent, 0);
        const SliceShape local = LocalShape(spec, world_size);
        for (int32_t rank = 0; rank < world_size; ++rank) {
          int64_t total = 0;
          for (const auto& [begin, end] : LocalRanges(spec, rank, world_size)) {
            ASSERT_LT(begin, end);
            ASSERT_LE(end, extent);
            for (int64_t at = begin; at < end; ++at) ++held[at];
            total += end - begin;
          }
          const int64_t slice = by_rows ? local.rows : local.cols;
          if (spec.shard.padded) {
            EXPECT_LE(total, slice);
          } else {
            EXPECT_EQ(total, slice);
          }
        }
        for (const ShardSegment& segment : spec.shard.segments) {
          const int times =
              spec.shard.padded || segment.num_groups >= world_size
                  ? 1
                  : world_size / static_cast<int>(segment.num_groups);
          const int64_t end =
              segment.begin + segment.num_groups * segment.group_size;
          for (int64_t at = segment.begin; at < end; ++at) {
            EXPECT_EQ(held[at], times) << spec.name << " " << at;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace switchyard
