// Arithmetic of the CPU backend. Reductions name their lanes, so that their
// order, and with it every bit of the result, depends on the length alone:
// never on alignment, threads or the compiler's choice.
#ifndef SWITCHYARD_KERNELS_CPU_MATH_H_
#define SWITCHYARD_KERNELS_CPU_MATH_H_

#include <cmath>
#include <cstdint>
#include <cstring>

namespace switchyard::internal {

// Eight floats, as GCC's portable vector type.
using F8 = float __attribute__((vector_size(32)));
constexpr int64_t kLanes = 8;

inline F8 Load8(const float* p) {
  F8 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline void Store8(float* p, F8 v) { std::memcpy(p, &v, sizeof(v)); }
inline F8 Splat8(float x) { return F8{x, x, x, x, x, x, x, x}; }
inline float Sum8(F8 v) {
  return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

inline float Dot(const float* a, const float* b, int64_t n) {
  F8 acc0 = {}, acc1 = {}, acc2 = {}, acc3 = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    acc0 += Load8(a + i) * Load8(b + i);
    acc1 += Load8(a + i + 8) * Load8(b + i + 8);
    acc2 += Load8(a + i + 16) * Load8(b + i + 16);
    acc3 += Load8(a + i + 24) * Load8(b + i + 24);
  }
  for (; i + kLanes <= n; i += kLanes) acc0 += Load8(a + i) * Load8(b + i);
  float tail = 0;
  for (; i < n; ++i) tail = std::fma(a[i], b[i], tail);
  return Sum8((acc0 + acc1) + (acc2 + acc3)) + tail;
}

// acc[i] = acc[i] * scale + sum_j weights[j] * row(j)[i] for i in [0, n), in
// order of j.
template <typename RowOf>
void AddWeightedRows(const RowOf& row, const float* weights, int64_t count,
                     float scale, int64_t n, float* acc) {
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    F8 a0 = Load8(acc + i) * scale, a1 = Load8(acc + i + 8) * scale,
       a2 = Load8(acc + i + 16) * scale, a3 = Load8(acc + i + 24) * scale;
    for (int64_t j = 0; j < count; ++j) {
      const float* x = row(j) + i;
      const F8 w = Splat8(weights[j]);
      a0 += w * Load8(x);
      a1 += w * Load8(x + 8);
      a2 += w * Load8(x + 16);
      a3 += w * Load8(x + 24);
    }
    Store8(acc + i, a0);
    Store8(acc + i + 8, a1);
    Store8(acc + i + 16, a2);
    Store8(acc + i + 24, a3);
  }
  for (; i + kLanes <= n; i += kLanes) {
    F8 a = Load8(acc + i) * scale;
    for (int64_t j = 0; j < count; ++j) {
      a += Splat8(weights[j]) * Load8(row(j) + i);
    }
    Store8(acc + i, a);
  }
  for (; i < n; ++i) {
    float a = acc[i] * scale;
    for (int64_t j = 0; j < count; ++j) a = std::fma(weights[j], row(j)[i], a);
    acc[i] = a;
  }
}

// e^x to about one unit in the last place (the polynomial of Cephes' expf),
// free of branches so that loops over it vectorise. NaN stays NaN; results
// below the smallest normal number are 0, above the largest infinity.
inline float Exp(float x) {
  constexpr float kLowest = -87.33654f, kHighest = 88.72283f;
  const float clamped = x < kLowest ? kLowest : x > kHighest ? kHighest : x;
  // Adding 1.5 * 2^23 rounds to an integer, which is left in the low bits.
  const float shifted = std::fma(clamped, 1.44269504088896341f, 12582912.0f);
  const float n = shifted - 12582912.0f;
  float r = std::fma(n, -0.693359375f, clamped);
  r = std::fma(n, 2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = std::fma(p, r, 1.3981999507e-3f);
  p = std::fma(p, r, 8.3334519073e-3f);
  p = std::fma(p, r, 4.1665795894e-2f);
  p = std::fma(p, r, 1.6666665459e-1f);
  p = std::fma(p, r, 5.0000001201e-1f);
  p = std::fma(p, r * r, r) + 1.0f;
  // p * 2^n as p * 2^(n/2) * 2^(n - n/2): 2^128 has no float of its own.
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  const int32_t exponent = bits - 0x4b400000;
  const int32_t half = exponent >> 1;
  const int32_t bits1 =
      static_cast<int32_t>(static_cast<uint32_t>(half + 127) << 23);
  const int32_t bits2 =
      static_cast<int32_t>(static_cast<uint32_t>(exponent - half + 127) << 23);
  float scale1, scale2;
  std::memcpy(&scale1, &bits1, sizeof(scale1));
  std::memcpy(&scale2, &bits2, sizeof(scale2));
  const float result = p * scale1 * scale2;
  return x < kLowest ? 0.0f : x > kHighest ? HUGE_VALF : result;
}

inline float Sigmoid(float x) { return 1.0f / (1.0f + Exp(-x)); }
inline float Silu(float x) { return x / (1.0f + Exp(-x)); }
// log(1 + e^x), without overflow.
inline float Softplus(float x) {
  return (x > 0 ? x : 0.0f) + std::log1p(Exp(-std::fabs(x)));
}

}  // namespace switchyard::internal

#endif  // SWITCHYARD_KERNELS_CPU_MATH_H_
