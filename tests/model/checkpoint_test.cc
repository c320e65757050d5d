#include "model/checkpoint.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "model/safetensors_writer.h"

namespace switchyard {
namespace {

std::string Dir(const std::string& name) { return "tests/testdata/" + name; }

// The whole tensor as fp32, straight from the file.
std::vector<float> Whole(const Checkpoint& checkpoint, const TensorSpec& spec) {
  const TensorView& view = checkpoint.files().Find(spec.name)->view;
  std::vector<float> values(spec.num_elements());
  for (size_t i = 0; i < values.size(); ++i) {
    if (view.dtype == DType::kF32) {
      std::memcpy(&values[i], view.bytes.data() + 4 * i, 4);
    } else {
      uint16_t bits;
      std::memcpy(&bits, view.bytes.data() + 2 * i, 2);
      values[i] = BF16ToFloat(bits);
    }
  }
  return values;
}

class SliceTest
    : public testing::TestWithParam<std::tuple<const char*, int32_t>> {};

// The slices of all ranks, put back where LocalRanges says, are the tensor.
TEST_P(SliceTest, SlicesOfAllRanksMakeTheTensor) {
  const auto [name, world_size] = GetParam();
  const ModelConfig config = LoadModelConfig(Dir(name)).value();
  if (!ValidateTensorParallel(config, world_size).ok()) {
    GTEST_SKIP() << "the heads do not divide";
  }
  const auto checkpoint = Checkpoint::Open(Dir(name), config);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  for (const TensorSpec& spec : EnumerateTensors(config)) {
    const std::vector<float> whole = Whole(**checkpoint, spec);
    std::vector<float> again(whole.size(), NAN);
    for (int32_t rank = 0; rank < world_size; ++rank) {
      const auto slice =
          (*checkpoint)->Read(spec, rank, world_size, DType::kF32);
      ASSERT_TRUE(slice.ok()) << slice.status();
      const bool by_rows = spec.shard.axis == ShardAxis::kRows;
      const bool by_columns = spec.shard.axis == ShardAxis::kCols;
      std::vector<std::pair<int64_t, int64_t>> all_rows = {{0, spec.rows()}};
      std::vector<std::pair<int64_t, int64_t>> all_cols = {{0, spec.cols()}};
      if (by_rows) all_rows = LocalRanges(spec, rank, world_size);
      if (by_columns) all_cols = LocalRanges(spec, rank, world_size);
      int64_t r = 0;
      for (const auto& [row_begin, row_end] : all_rows) {
        for (int64_t row = row_begin; row < row_end; ++row, ++r) {
          int64_t c = 0;
          for (const auto& [begin, end] : all_cols) {
            for (int64_t col = begin; col < end; ++col, ++c) {
              again[row * spec.cols() + col] =
                  slice->floats()[r * slice->cols + c];
            }
          }
        }
      }
      for (; r < slice->rows; ++r) {
        EXPECT_TRUE(spec.shard.padded);
        EXPECT_EQ(slice->floats()[r * slice->cols], 0);
      }
    }
    EXPECT_EQ(again, whole) << spec.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, SliceTest,
                         testing::Combine(testing::Values("apriel2-tiny",
                                                          "zoo-stochastic5",
                                                          "zoo-pattern"),
                                          testing::Values(1, 2, 4)));

TEST(CheckpointTest, ReadsBf16UnchangedAndIntoAView) {
  const ModelConfig config = LoadModelConfig(Dir("zoo-pattern")).value();
  const auto checkpoint = Checkpoint::Open(Dir("zoo-pattern"), config).value();
  const TensorSpec spec = EnumerateTensors(config)[0];
  EXPECT_EQ(checkpoint->StoredType(spec), DType::kBF16);
  const HostTensor tensor = checkpoint->Read(spec, 0, 1, DType::kBF16).value();
  const TensorView& view = checkpoint->files().Find(spec.name)->view;
  ASSERT_EQ(tensor.bytes.size(), view.bytes.size());
  EXPECT_EQ(
      std::memcmp(tensor.bytes.data(), view.bytes.data(), view.bytes.size()),
      0);
  // A view with room between its rows, as a part of a fused weight has.
  std::vector<float> wide(spec.rows() * (spec.cols() + 3), -7);
  MatrixView out{wide.data(), DType::kF32, spec.rows(), spec.cols(),
                 spec.cols() + 3};
  ASSERT_TRUE(checkpoint->ReadInto(spec, 0, 1, out).ok());
  EXPECT_EQ(wide[spec.cols()], -7);
  EXPECT_EQ(wide[spec.cols() + 3], Whole(*checkpoint, spec)[spec.cols()]);
  EXPECT_EQ(checkpoint->ReadInto(spec, 0, 2, out).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(checkpoint->ReadInto(spec, 2, 2, out).code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(ConvertElementsTest, RoundsBetweenTheFloatTypes) {
  const float values[] = {1.0f, -2.5f, 1.00390625f, 65504.0f, 1e-7f};
  uint16_t half[5], brain[5];
  float back[5];
  ConvertElements(DType::kF32, values, DType::kF16, half, 5);
  ConvertElements(DType::kF16, half, DType::kF32, back, 5);
  EXPECT_EQ(back[1], -2.5f);
  EXPECT_EQ(back[3], 65504.0f);
  EXPECT_NEAR(back[4], 1e-7f, 3e-8f);
  ConvertElements(DType::kF16, half, DType::kBF16, brain, 5);
  ConvertElements(DType::kBF16, brain, DType::kF32, back, 5);
  EXPECT_EQ(back[0], 1.0f);
  EXPECT_EQ(back[2], 1.0f);  // halfway, to even
}

// A copy of zoo-pattern's weights that a test may change.
class DamagedCheckpointTest : public testing::Test {
 protected:
  DamagedCheckpointTest()
      : config_(LoadModelConfig(Dir("zoo-pattern")).value()),
        files_(SafetensorsModel::Open(Dir("zoo-pattern")).value()) {
    std::string pattern = absl::StrCat(testing::TempDir(), "/weightsXXXXXX");
    dir_ = mkdtemp(&pattern[0]);
    for (const auto& [name, entry] : files_.tensors()) {
      tensors_.emplace(name, entry.view);
    }
  }

  absl::StatusOr<std::unique_ptr<Checkpoint>> Open() {
    const absl::Status status =
        WriteSafetensors(dir_ + "/model.safetensors", tensors_);
    EXPECT_TRUE(status.ok()) << status;
    return Checkpoint::Open(dir_, config_);
  }

  ModelConfig config_;
  SafetensorsModel files_;
  TensorMap tensors_;
  std::string dir_;
};

constexpr char kName[] = "model.decoder.blocks.0.mixer.k_proj.weight";

TEST_F(DamagedCheckpointTest, WhatWasWrittenIsRead) {
  EXPECT_TRUE(Open().ok());
}

TEST_F(DamagedCheckpointTest, NamesAMissingTensor) {
  tensors_.erase(kName);
  EXPECT_EQ(Open().status().message(),
            absl::StrCat(dir_, ": tensor ", kName,
                         " [32, 96], which config.json implies, is in no "
                         "safetensors file"));
}

TEST_F(DamagedCheckpointTest, NamesAnExtraTensor) {
  tensors_["model.decoder.blocks.0.mixer.k_norm.weight"] =
      tensors_["model.norm.weight"];
  EXPECT_EQ(Open().status().message(),
            absl::StrCat(dir_,
                         "/model.safetensors: tensor "
                         "model.decoder.blocks.0.mixer.k_norm.weight [96] has "
                         "no place in the model that config.json describes"));
}

TEST_F(DamagedCheckpointTest, NamesAWrongShape) {
  tensors_[kName].shape = {96, 32};
  EXPECT_EQ(Open().status().message(),
            absl::StrCat(dir_, "/model.safetensors: tensor ", kName,
                         " has the shape [96, 32]; by config.json it must be "
                         "[32, 96]"));
}

TEST_F(DamagedCheckpointTest, NamesAWrongType) {
  tensors_[kName].dtype_name = "I16";
  EXPECT_TRUE(absl::StrContains(
      Open().status().message(),
      "k_proj.weight is stored as I16; it must be F32, BF16 or F16"));
}

TEST_F(DamagedCheckpointTest, SkipsTheVisionEncoderOfAMultimodalModelOnly) {
  tensors_["model.vision_encoder.adapter.linear_1.bias"] =
      tensors_["model.norm.weight"];
  EXPECT_FALSE(Open().ok());
  config_.model_type = "apriel2";
  const auto checkpoint = Open();
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  ASSERT_EQ((*checkpoint)->notices().size(), 1);
  EXPECT_TRUE(absl::StrContains((*checkpoint)->notices()[0], "1 tensors"));
}

}  // namespace
}  // namespace switchyard
