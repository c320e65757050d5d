#include "cli/bench_work.h"

#include <cstdint>
#include <map>
#include <string>

#include "absl/strings/string_view.h"
#include "gtest/gtest.h"
#include "model/cache_spec.h"
#include "model/config.h"
#include "model/placement.h"
#include "model/random_init.h"

namespace switchyard {
namespace {

// The 15-billion-parameter shape, by hand.
constexpr int64_t kLayers = 48;
constexpr int64_t kHidden = 5120;
constexpr int64_t kAttention =  // q, k, v and o: 32 heads, 8 KV heads of 128
    kHidden * (4096 + 1024 + 1024) + 4096 * kHidden;
constexpr int64_t kMlp = 3 * kHidden * 14336;
constexpr int64_t kHead = 131072 * kHidden;
constexpr int64_t kNorms = (2 * kLayers + 1) * kHidden;

class BenchWorkTest : public ::testing::Test {
 protected:
  CacheSpec Cache(int32_t world_size) const {
    return *CacheSpec::Create(
        config_, {world_size, /*block_size=*/16, /*kv_element_bytes=*/2,
                  /*conv_element_bytes=*/2});
  }
  Placement Parse(absl::string_view text) const {
    return *ParseBenchPlacement(config_, text);
  }
  StepTraffic Traffic(absl::string_view placement, int32_t batch,
                      int32_t context, int32_t world_size = 1) const {
    return TrafficOfStep(config_, Cache(world_size),
                         /*matrix_element_bytes=*/2, Parse(placement), batch,
                         context);
  }

  const ModelConfig config_ = *NamedShape("apriel2-15b");
};

TEST_F(BenchWorkTest, ReadsCountsSpreadOverTheDepth) {
  const Placement placement = Parse("3/25/4/16");
  std::map<std::string, int> layers;
  for (const std::string& name : placement.Names(config_)) ++layers[name];
  EXPECT_EQ(
      layers,
      (std::map<std::string, int>{
          {"attention", 3}, {"sliding_window", 25}, {"kda", 4}, {"gdn", 16}}));
  // No third of the stack has more than one of the three.
  const std::vector<std::string> names = placement.Names(config_);
  for (int third = 0; third < 3; ++third) {
    int here = 0;
    for (int i = 0; i < 16; ++i) here += names[third * 16 + i] == "attention";
    EXPECT_EQ(here, 1) << third;
  }
}

TEST_F(BenchWorkTest, RefusesCountsThatAreNotTheLayers) {
  EXPECT_EQ(ParseBenchPlacement(config_, "1/2/3/4").status().message(),
            "placement 1/2/3/4 should be the numbers of layers with attention, "
            "sliding-window attention, kda and gdn, 48 in all");
  EXPECT_FALSE(ParseBenchPlacement(config_, "48/0/0").ok());
  EXPECT_FALSE(ParseBenchPlacement(config_, "49/0/0/-1").ok());
  EXPECT_FALSE(ParseBenchPlacement(config_, "all-nothing").ok());
}

TEST_F(BenchWorkTest, CountsWhatADecodeStepReads) {
  const StepTraffic traffic = Traffic("all-attention", 16, 2048);
  EXPECT_EQ(traffic.weight_bytes,
            2 * (kLayers * (kAttention + kMlp) + kHead) + 4 * kNorms);
  EXPECT_EQ(traffic.kv_bytes, 16 * 2048 * kLayers * 2 * 8 * 128 * 2);
  EXPECT_EQ(traffic.state_bytes, 0);
  EXPECT_EQ(Traffic("all-attention", 16, 2048, 2).kv_bytes,
            traffic.kv_bytes / 2);
}

TEST_F(BenchWorkTest, AWindowBoundsWhatIsRead) {
  EXPECT_EQ(Traffic("all-sliding_window", 8, 32768).kv_bytes,
            Traffic("all-attention", 8, 4096).kv_bytes);
  EXPECT_EQ(Traffic("all-sliding_window", 8, 512).kv_bytes,
            Traffic("all-attention", 8, 512).kv_bytes);
}

TEST_F(BenchWorkTest, RecurrentStatesAreReadAndWritten) {
  const StepTraffic traffic = Traffic("all-gdn", 4, 2048);
  constexpr int64_t kConv = (2 * 8 * 128 + 32 * 128) * 3 * 2;
  constexpr int64_t kState = 32 * 128 * 128 * 4;
  EXPECT_EQ(traffic.kv_bytes, 0);
  EXPECT_EQ(traffic.state_bytes, 4 * kLayers * (kConv + kState));
  EXPECT_EQ(Traffic("all-gdn", 4, 99).state_bytes, traffic.state_bytes);

  StepTraffic tenth;  // of a second each at the rates below
  tenth.weight_bytes = 300'000'000;
  tenth.kv_bytes = 100'000'000;
  tenth.state_bytes = 100'000'000;
  EXPECT_DOUBLE_EQ(tenth.FloorMs(/*read_gbps=*/4, /*copy_gbps=*/2), 200);
}

TEST_F(BenchWorkTest, CountsWhatAPrefillComputes) {
  const double per_token = 2.0 * kLayers * (kAttention + kMlp);
  const double pair = 4.0 * kLayers * 32 * 128;
  // Three queries see 1 + 2 + 3 positions; one row has logits.
  EXPECT_DOUBLE_EQ(PrefillFlops(config_, 1, Parse("all-attention"), 3),
                   3 * per_token + 2.0 * kHead + 6 * pair);
  // The last query no longer sees the first position.
  EXPECT_DOUBLE_EQ(
      PrefillFlops(config_, 1, Parse("all-sliding_window"), 4097),
      4097 * per_token + 2.0 * kHead + (4096 * 4097 / 2 + 4096) * pair);
  EXPECT_DOUBLE_EQ(PrefillFlops(config_, 2, Parse("all-attention"), 3),
                   PrefillFlops(config_, 1, Parse("all-attention"), 3) / 2);
}

}  // namespace
}  // namespace switchyard
