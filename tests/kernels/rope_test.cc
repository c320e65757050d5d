#include "kernels/rope.h"

#include <cmath>

#include "tests/kernels/device_fixture.h"

namespace switchyard {
namespace {

class RopeTest : public OpTest {};

TEST(RopeTableTest, HoldsCosinesThenSines) {
  const std::vector<float> table = MakeRopeTable(3000, 8, 10000.0);
  ASSERT_EQ(table.size(), 3000u * 8);
  for (int p : {0, 1, 77, 2999}) {
    for (int i = 0; i < 4; ++i) {
      const double angle = p * std::pow(10000.0, -2.0 * i / 8);
      EXPECT_FLOAT_EQ(table[p * 8 + i], std::cos(angle));
      EXPECT_FLOAT_EQ(table[p * 8 + 4 + i], std::sin(angle));
    }
  }
}

// Frequency 1/10 is no bf16 number; its neighbour is 0.10009765625.
TEST(RopeTableTest, RoundsFrequenciesToBf16WhenAsked) {
  const std::vector<float> table =
      MakeRopeTable(1000, 4, 100.0, /*bf16_frequencies=*/true);
  EXPECT_FLOAT_EQ(table[999 * 4 + 0], std::cos(999.0));
  EXPECT_FLOAT_EQ(table[999 * 4 + 1], std::cos(999 * 0.10009765625));
  EXPECT_FLOAT_EQ(table[999 * 4 + 3], std::sin(999 * 0.10009765625));
}

// Position 0 leaves every row as it is; a row beyond the others is at 1.
TEST_P(RopeTest, TakesMoreRowsThanAGridIsHigh) {
  constexpr int64_t kTokens = 70000;
  const HostMatrix x = RandomMatrix(kTokens, 2, activation());
  std::vector<int32_t> positions(kTokens);
  positions.back() = 1;
  RopeArgs args;
  args.x = Upload(x);
  args.head_size = 2;
  args.positions = UploadArray(positions);
  args.table = UploadArray(MakeRopeTable(2, 2, 100.0));
  args.num_positions = 2;
  SY_ASSERT_OK(Rope(context(), args));
  std::vector<double> expected(x.values.begin(), x.values.end());
  double* last = &expected[2 * (kTokens - 1)];
  const double a = last[0], b = last[1];
  last[0] = a * std::cos(1.0) - b * std::sin(1.0);
  last[1] = b * std::cos(1.0) + a * std::sin(1.0);
  ExpectNear(Download(args.x), expected, 2e-6, "70000 tokens");
}

TEST_P(RopeTest, RotatesHalves) {
  for (int32_t head_size : {2, 16, 64, 128, 256}) {
    constexpr int64_t kTokens = 11, kHeads = 3, kPositions = 500;
    const HostMatrix x =
        RandomMatrix(kTokens, kHeads * head_size, activation());
    std::vector<int32_t> positions(kTokens);
    for (int32_t& p : positions) p = RandomInt(0, kPositions - 1);
    RopeArgs args;
    args.x = Upload(x, x.cols + 32);
    args.head_size = head_size;
    args.positions = UploadArray(positions);
    args.table = UploadArray(MakeRopeTable(kPositions, head_size, 1000000.0));
    args.num_positions = kPositions;
    SY_ASSERT_OK(Rope(context(), args));
    std::vector<double> expected(x.values.begin(), x.values.end());
    const int32_t half = head_size / 2;
    for (int64_t t = 0; t < kTokens; ++t) {
      for (int64_t h = 0; h < kHeads; ++h) {
        double* head = &expected[t * x.cols + h * head_size];
        for (int32_t i = 0; i < half; ++i) {
          const double angle =
              positions[t] * std::pow(1000000.0, -2.0 * i / head_size);
          const double a = head[i], b = head[half + i];
          head[i] = a * std::cos(angle) - b * std::sin(angle);
          head[half + i] = b * std::cos(angle) + a * std::sin(angle);
        }
      }
    }
    ExpectNear(Download(args.x), expected, 1e-6,
               "head size " + std::to_string(head_size));
  }
}

TEST_P(RopeTest, RejectsOddHeads) {
  RopeArgs args;
  args.x = Poisoned(1, 30, activation());
  args.head_size = 15;
  args.positions = UploadArray(std::vector<int32_t>{0});
  args.table = UploadArray(std::vector<float>(15));
  args.num_positions = 1;
  EXPECT_TRUE(absl::IsInvalidArgument(Rope(context(), args)));
}

SY_INSTANTIATE_OP_TEST(RopeTest);

}  // namespace
}  // namespace switchyard
