#include "kernels/cpu_math.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu_parallel.h"

namespace switchyard::internal {
namespace {

TEST(ExpTest, IsWithinTwoUnitsInTheLastPlace) {
  for (double x = -87.3; x < 88.7; x += 0.000371) {
    const float in = static_cast<float>(x);
    const double expected = std::exp(double{in});
    ASSERT_NEAR(Exp(in) / expected, 1.0, 2 * 0x1p-23) << in;
  }
}

TEST(ExpTest, Extremes) {
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(Exp(0), 1.0f);
  EXPECT_EQ(Exp(-inf), 0.0f);
  EXPECT_EQ(Exp(-1e30f), 0.0f);
  EXPECT_EQ(Exp(inf), inf);
  EXPECT_EQ(Exp(89.0f), inf);
  EXPECT_LT(Exp(88.72f), inf);
  EXPECT_TRUE(std::isnan(Exp(NAN)));
}

// The compiler turns loops over Exp into vectors with a scalar tail: a value
// must not depend on where in the loop it falls.
TEST(ExpTest, AVectorsLanesAgreeWithAScalar) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(-30, 30);
  std::vector<float> in(1003), out(1003);
  for (float& v : in) v = uniform(random);
#pragma omp simd
  for (size_t i = 0; i < in.size(); ++i) out[i] = Exp(in[i]);
  for (size_t i = 0; i < in.size(); ++i) {
    volatile float alone = in[i];
    ASSERT_EQ(Exp(alone), out[i]);
  }
}

TEST(GatesTest, MatchTheirFormulas) {
  for (float x = -100; x < 100; x += 0.037f) {
    const double e = std::exp(-double{x});
    EXPECT_NEAR(Sigmoid(x), 1 / (1 + e), 3e-7);
    EXPECT_NEAR(Silu(x), x / (1 + e), 3e-7 * std::max(1.0f, std::fabs(x)));
    const double softplus = std::log1p(std::exp(double{x}));
    // Below the smallest normal number, 0.
    EXPECT_NEAR(Softplus(x), softplus, 1e-6 * softplus + 0x1p-126) << x;
  }
}

TEST(DotTest, SumsEveryLengthWhateverTheAlignment) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> a(300), b(300);
  for (float& v : a) v = normal(random);
  for (float& v : b) v = normal(random);
  for (int n = 0; n <= 260; ++n) {
    double expected = 0;
    for (int i = 0; i < n; ++i) expected += double{a[i]} * b[i];
    const float sum = Dot(a.data(), b.data(), n);
    EXPECT_NEAR(sum, expected, 1e-5);
    for (int shift : {1, 3, 8}) {
      std::vector<float> shifted(shift + n);
      std::copy_n(a.begin(), n, shifted.begin() + shift);
      EXPECT_EQ(Dot(shifted.data() + shift, b.data(), n), sum);
    }
  }
}

// Rows taken eight together have the bits of rows taken one by one.
TEST(DotRowsTest, GroupingDoesNotMatter) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (int n : {5, 8, 16, 64, 70, 128}) {
    std::vector<float> a(n), rows(40 * n);
    for (float& v : a) v = normal(random);
    for (float& v : rows) v = normal(random);
    const auto row = [&](int64_t j) { return &rows[j * n]; };
    std::vector<float> alone(40);
    for (int j = 0; j < 40; ++j) {
      DotRows(
          a.data(), [&](int64_t) { return row(j); }, 1, n, &alone[j]);
      double expected = 0;
      for (int i = 0; i < n; ++i) expected += double{a[i]} * row(j)[i];
      EXPECT_NEAR(alone[j], expected, 1e-5);
    }
    for (int begin : {0, 1, 5}) {
      for (int count : {1, 7, 8, 9, 31}) {
        std::vector<float> out(count);
        DotRows(
            a.data(), [&](int64_t j) { return row(begin + j); }, count, n,
            out.data());
        for (int j = 0; j < count; ++j) EXPECT_EQ(out[j], alone[begin + j]);
      }
    }
  }
}

TEST(AddWeightedRowsTest, AddsRowsInOrder) {
  for (int n : {1, 7, 8, 31, 32, 45, 128}) {
    std::vector<float> rows(5 * n), acc(n), weights = {1, -2, 0.5f, 3, 0.25f};
    for (int i = 0; i < 5 * n; ++i) rows[i] = static_cast<float>(i % 13);
    for (int i = 0; i < n; ++i) acc[i] = static_cast<float>(i);
    AddWeightedRows([&](int64_t j) { return &rows[j * n]; }, weights.data(), 5,
                    2.0f, n, acc.data());
    for (int i = 0; i < n; ++i) {
      float expected = 2.0f * i;
      for (int j = 0; j < 5; ++j) expected += weights[j] * rows[j * n + i];
      EXPECT_EQ(acc[i], expected);
    }
  }
}

TEST(ParallelForTest, VisitsEveryItemOnce) {
  for (int64_t count : {0, 1, 2, 1000}) {
    for (int64_t work : {1, 1 << 20}) {
      std::vector<int> visits(count), uneven(count);
      ParallelFor(count, work, [&](int64_t i) { ++visits[i]; });
      ParallelForUneven(count, work, [&](int64_t i) { ++uneven[i]; });
      EXPECT_EQ(visits, std::vector<int>(count, 1));
      EXPECT_EQ(uneven, std::vector<int>(count, 1));
    }
  }
}

}  // namespace
}  // namespace switchyard::internal
