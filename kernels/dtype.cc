#include "kernels/dtype.h"

namespace switchyard {
namespace {

uint32_t BitsOf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

float FloatOf(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

constexpr uint32_t kF32Infinity = 0x7f800000u;
constexpr uint16_t kF16Infinity = 0x7c00u;

}  // namespace

float F16ToFloat(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 0x1fu;
  const uint32_t fraction = bits & 0x3ffu;
  if (exponent == 0x1f) return FloatOf(sign | kF32Infinity | fraction << 13);
  if (exponent == 0) {
    // Zero or subnormal: fraction * 2^-24, exact in fp32.
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return FloatOf(sign | BitsOf(magnitude));
  }
  return FloatOf(sign | (exponent + 127 - 15) << 23 | fraction << 13);
}

uint16_t FloatToF16(float value) {
  const uint32_t bits = BitsOf(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > kF32Infinity) {  // NaN: keep the high payload, make it quiet
    return sign | kF16Infinity | 0x200u | ((magnitude >> 13) & 0x3ffu);
  }
  // 65520 is half way between the largest half and the next power of two.
  if (magnitude >= BitsOf(65520.0f)) return sign | kF16Infinity;
  if (magnitude < BitsOf(0x1p-14f)) {
    // Subnormal: adding 0.5 leaves round(|value| * 2^24) in the low bits of the
    // sum, rounded to nearest even by the addition itself.
    return sign | static_cast<uint16_t>(BitsOf(FloatOf(magnitude) + 0.5f) -
                                        BitsOf(0.5f));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return sign | static_cast<uint16_t>((rounded - ((127u - 15u) << 23)) >> 13);
}

}  // namespace switchyard
