// The table of cosines and sines that attention rotates by, made independently
// of the product's own (kernels/rope.h).
#ifndef SWITCHYARD_TESTS_BENCH_KERNELS_ROPE_TABLE_H_
#define SWITCHYARD_TESTS_BENCH_KERNELS_ROPE_TABLE_H_

#include <cmath>
#include <cstdint>
#include <vector>

namespace switchyard::bench {

// [positions, head_size]: cosines of half a head, then its sines; theta 1e6.
inline std::vector<float> RopeTable(int64_t positions, int32_t head_size) {
  std::vector<float> table(positions * head_size);
  const int32_t half = head_size / 2;
  for (int64_t p = 0; p < positions; ++p) {
    for (int32_t i = 0; i < half; ++i) {
      const double angle = p * std::pow(1e6, -2.0 * i / head_size);
      table[p * head_size + i] = static_cast<float>(std::cos(angle));
      table[p * head_size + half + i] = static_cast<float>(std::sin(angle));
    }
  }
  return table;
}

}  // namespace switchyard::bench

#endif  // SWITCHYARD_TESTS_BENCH_KERNELS_ROPE_TABLE_H_
