#include "kernels/dtype.h"

#include <cmath>
#include <limits>

#include "gtest/gtest.h"

namespace switchyard {
namespace {

TEST(F16Test, EveryPatternSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = F16ToFloat(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(F16ToFloat(FloatToF16(value))));
    } else {
      ASSERT_EQ(FloatToF16(value), bits) << value;
    }
  }
}

TEST(F16Test, KnownValues) {
  EXPECT_EQ(F16ToFloat(0x3c00), 1.0f);
  EXPECT_EQ(F16ToFloat(0xc000), -2.0f);
  EXPECT_EQ(F16ToFloat(0x7bff), 65504.0f);
  EXPECT_EQ(F16ToFloat(0x0400), 0x1p-14f);
  EXPECT_EQ(F16ToFloat(0x0001), 0x1p-24f);
  EXPECT_EQ(F16ToFloat(0x7c00), std::numeric_limits<float>::infinity());
  EXPECT_EQ(FloatToF16(65519.0f), 0x7bff);
  EXPECT_EQ(FloatToF16(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToF16(-1e10f), 0xfc00);
  EXPECT_EQ(FloatToF16(0x1p-25f), 0x0000);  // half way: to even
  EXPECT_EQ(FloatToF16(0x1.8p-25f), 0x0001);
  EXPECT_EQ(FloatToF16(-0.0f), 0x8000);
}

// Against the definition: the nearest representable number, even on ties.
TEST(F16Test, RoundsToNearestEven) {
  for (uint16_t bits = 0; bits < 0x7bff; ++bits) {
    const double low = F16ToFloat(bits), high = F16ToFloat(bits + 1);
    const float middle = static_cast<float>((low + high) / 2);
    ASSERT_EQ(FloatToF16(middle), bits % 2 == 0 ? bits : bits + 1);
    ASSERT_EQ(FloatToF16(std::nextafter(middle, 0.0f)), bits);
    ASSERT_EQ(FloatToF16(std::nextafter(middle, 1e9f)), bits + 1);
  }
}

TEST(BF16Test, RoundsToNearestEvenAndKeepsNan) {
  EXPECT_EQ(FloatToBF16(1.0f), 0x3f80);
  EXPECT_EQ(FloatToBF16(1.0f + 0x1p-8f), 0x3f80);
  EXPECT_EQ(FloatToBF16(1.0f + 0x1.8p-7f), 0x3f82);
  EXPECT_EQ(FloatToBF16(3.4e38f), 0x7f80);
  EXPECT_TRUE(std::isnan(BF16ToFloat(FloatToBF16(NAN))));
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = BF16ToFloat(static_cast<uint16_t>(bits));
    if (!std::isnan(value)) {
      ASSERT_EQ(FloatToBF16(value), bits);
    }
  }
}

}  // namespace
}  // namespace switchyard
