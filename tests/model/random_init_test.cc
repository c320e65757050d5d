#include "model/random_init.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"

namespace switchyard {
namespace {

TEST(RandomInitTest, NamedShapesAreWhatTheySay) {
  const ModelConfig big = NamedShape("apriel2-15b").value();
  EXPECT_EQ(big.num_layers(), 48);
  EXPECT_EQ(big.layers[0].mixers.size(), 4);
  EXPECT_EQ(big.layers[0].mixers[1].As<AttentionConfig>()->window_size, 4096);
  EXPECT_NEAR(NumParameters(big) / 1e9, 24.6, 0.2);
  for (const std::string& name : NamedShapes()) {
    const ModelConfig config = NamedShape(name).value();
    for (const int32_t world_size : {1, 2, 4}) {
      EXPECT_TRUE(ValidateTensorParallel(config, world_size).ok());
    }
  }
  const absl::Status status = NamedShape("gpt").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(absl::StrContains(status.message(), "apriel2-0.5b"));
}

TEST(RandomInitTest, NamedShapesMayHaveFewerMixers) {
  const ModelConfig config = NamedShape("apriel2-15b:gdn,attention").value();
  ASSERT_EQ(config.layers[47].mixers.size(), 2);
  EXPECT_EQ(config.layers[47].mixers[0].name, "gdn");
  EXPECT_EQ(config.layers[47].mixers[1].name, "attention");
  const absl::Status unknown = NamedShape("apriel2-15b:mamba").status();
  EXPECT_EQ(unknown.code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(absl::StrContains(unknown.message(), "sliding_window"));
  EXPECT_FALSE(NamedShape("apriel2-15b:gdn,gdn").ok());
  EXPECT_FALSE(NamedShape("apriel2-15b:").ok());
}

TEST(RandomInitTest, RowsAndTensorsDiffer) {
  const ModelConfig config = NamedShape("apriel2-0.5b").value();
  const RandomWeights weights(config);
  std::set<std::vector<std::byte>> rows;
  int64_t num_rows = 0;
  for (const TensorSpec& spec : EnumerateTensors(config)) {
    if (spec.layer != 3 || spec.role != TensorRole::kMlpUp) continue;
    const HostTensor tensor = weights.Read(spec, 0, 1, DType::kBF16).value();
    const int64_t row_bytes = 2 * tensor.cols;
    for (; num_rows < tensor.rows; ++num_rows) {
      const auto begin = tensor.bytes.begin() + num_rows * row_bytes;
      rows.emplace(begin, begin + row_bytes);
    }
  }
  EXPECT_EQ(num_rows, 4096);
  EXPECT_EQ(rows.size(), 4096);
}

TEST(RandomInitTest, SlicesBelongToOneModel) {
  const ModelConfig config =
      LoadModelConfig("tests/testdata/zoo-stochastic5").value();
  const RandomWeights weights(config, 5);
  for (const TensorSpec& spec : EnumerateTensors(config)) {
    const HostTensor whole = weights.Read(spec, 0, 1, DType::kF32).value();
    for (int32_t rank = 0; rank < 4; ++rank) {
      const HostTensor slice = weights.Read(spec, rank, 4, DType::kF32).value();
      int64_t row = 0, first_column = 0;
      if (spec.shard.axis != ShardAxis::kNone) {
        const auto ranges = LocalRanges(spec, rank, 4);
        (spec.shard.axis == ShardAxis::kRows ? row : first_column) =
            ranges.front().first;
      }
      EXPECT_EQ(slice.floats()[0],
                whole.floats()[row * whole.cols + first_column])
          << spec.name;
    }
  }
}

TEST(RandomInitTest, EveryReadTypeHoldsTheSameModel) {
  const ModelConfig config =
      LoadModelConfig("tests/testdata/zoo-stochastic5").value();
  const RandomWeights weights(config);
  const TensorSpec spec = EnumerateTensors(config)[0];
  const HostTensor bf16 = weights.Read(spec, 1, 2, DType::kBF16).value();
  const HostTensor fp32 = weights.Read(spec, 1, 2, DType::kF32).value();
  for (int64_t i = 0; i < fp32.rows * fp32.cols; ++i) {
    uint16_t bits;
    std::memcpy(&bits, bf16.bytes.data() + 2 * i, 2);
    ASSERT_EQ(BF16ToFloat(bits), fp32.floats()[i]);
  }
}

TEST(RandomInitTest, ValuesArePlausible) {
  const ModelConfig config =
      LoadModelConfig("tests/testdata/apriel2-tiny").value();
  const RandomWeights weights(config);
  for (const TensorSpec& spec : EnumerateTensors(config)) {
    const HostTensor tensor = weights.Read(spec, 0, 1, DType::kF32).value();
    const int64_t num = spec.num_elements();
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < num; ++i) {
      ASSERT_TRUE(std::isfinite(tensor.floats()[i])) << spec.name;
      sum += tensor.floats()[i];
      squares += double{tensor.floats()[i]} * tensor.floats()[i];
    }
    if (spec.role == TensorRole::kQProj) {
      EXPECT_NEAR(sum / num, 0, 0.002);
      EXPECT_NEAR(squares / num * spec.cols(), 1, 0.05);
    }
  }
}

}  // namespace
}  // namespace switchyard
