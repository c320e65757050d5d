// Arithmetic of the CPU backend. Reductions name their lanes, so that their
// order, and with it every bit of the result, depends on the length alone:
// never on alignment, threads or the compiler's choice.
#ifndef SWITCHYARD_KERNELS_CPU_MATH_H_
#define SWITCHYARD_KERNELS_CPU_MATH_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

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

// {Sum8(v[0]), ..., Sum8(v[7])}: the same additions, eight at a time.
inline F8 Sum8Each(const F8* v) {
  using I8 = int32_t __attribute__((vector_size(32)));
  // Lanes i and i + 4 of two vectors: four sums each.
  constexpr I8 kLow = {0, 1, 2, 3, 8, 9, 10, 11};
  constexpr I8 kHigh = {4, 5, 6, 7, 12, 13, 14, 15};
  F8 four[4];
  for (int i = 0; i < 4; ++i) {
    four[i] = __builtin_shuffle(v[i], v[i + 4], kLow) +
              __builtin_shuffle(v[i], v[i + 4], kHigh);
  }
  // Then lanes i and i + 2, then i and i + 1, of each half.
  constexpr I8 kEven = {0, 1, 8, 9, 4, 5, 12, 13};
  constexpr I8 kOdd = {2, 3, 10, 11, 6, 7, 14, 15};
  F8 two[2];
  for (int i = 0; i < 2; ++i) {
    two[i] = __builtin_shuffle(four[i], four[i + 2], kEven) +
             __builtin_shuffle(four[i], four[i + 2], kOdd);
  }
  constexpr I8 kFirst = {0, 8, 2, 10, 4, 12, 6, 14};
  constexpr I8 kSecond = {1, 9, 3, 11, 5, 13, 7, 15};
  return __builtin_shuffle(two[0], two[1], kFirst) +
         __builtin_shuffle(two[0], two[1], kSecond);
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

// out[j] = <a, row(j)> for j in [0, count). Every product is one chain of eight
// lanes, added up as Sum8 does, however many rows are taken together.
template <typename RowOf>
void DotRows(const float* a, const RowOf& row, int64_t count, int64_t n,
             float* out) {
  const int64_t whole = n / kLanes * kLanes;
  int64_t j = 0;
  for (; j + 8 <= count; j += 8) {
    F8 acc[8] = {};
    const float* rows[8];
    for (int r = 0; r < 8; ++r) rows[r] = row(j + r);
    for (int64_t i = 0; i < whole; i += kLanes) {
      const F8 x = Load8(a + i);
      for (int r = 0; r < 8; ++r) acc[r] += x * Load8(rows[r] + i);
    }
    Store8(out + j, Sum8Each(acc));
  }
  for (int64_t r = j; r < count; ++r) {
    F8 acc = {};
    for (int64_t i = 0; i < whole; i += kLanes) {
      acc += Load8(a + i) * Load8(row(r) + i);
    }
    out[r] = Sum8(acc);
  }
  if (whole == n) return;
  for (int64_t r = 0; r < count; ++r) {
    float tail = 0;
    for (int64_t i = whole; i < n; ++i) tail = std::fma(a[i], row(r)[i], tail);
    out[r] += tail;
  }
}

// acc[i] = acc[i] * scale + sum_j weights[j] * row(j)[i] for i in [0, n), in
// order of j.
template <typename RowOf>
void AddWeightedRows(const RowOf& row, const float* weights, int64_t count,
                     float scale, int64_t n, float* acc) {
  int64_t i = 0;
  const auto add_columns = [&](auto num_vectors) {
    constexpr int kVectors = decltype(num_vectors)::value;
    for (; i + kVectors * kLanes <= n; i += kVectors * kLanes) {
      F8 sums[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        sums[v] = Load8(acc + i + v * kLanes) * scale;
      }
      for (int64_t j = 0; j < count; ++j) {
        const float* x = row(j) + i;
        const F8 weight = Splat8(weights[j]);
        for (int v = 0; v < kVectors; ++v) {
          sums[v] += weight * Load8(x + v * kLanes);
        }
      }
      for (int v = 0; v < kVectors; ++v) {
        Store8(acc + i + v * kLanes, sums[v]);
      }
    }
  };
  // Eight sums at a time hide the latency of their additions.
  add_columns(std::integral_constant<int, 8>());
  add_columns(std::integral_constant<int, 1>());
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
// log(1 + e^x), without overflow; vectorises like Exp.
inline float Softplus(float x) {
  const float e = Exp(-std::fabs(x));  // in [0, 1]
  // log(1 + e) = 2 atanh(s) with s = e / (2 + e) in [0, 1/3].
  const float s = e / (2.0f + e);
  const float s2 = s * s;
  float p = 1.0f / 15;
  p = std::fma(p, s2, 1.0f / 13);
  p = std::fma(p, s2, 1.0f / 11);
  p = std::fma(p, s2, 1.0f / 9);
  p = std::fma(p, s2, 1.0f / 7);
  p = std::fma(p, s2, 1.0f / 5);
  p = std::fma(p, s2, 1.0f / 3);
  p = std::fma(p, s2, 1.0f);
  return std::fma(2.0f * s, p, x < 0 ? 0.0f : x);
}

}  // namespace switchyard::internal

#endif  // SWITCHYARD_KERNELS_CPU_MATH_H_
