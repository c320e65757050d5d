// Loops of the CPU backend over rows, heads and sequences.
#ifndef SWITCHYARD_KERNELS_CPU_PARALLEL_H_
#define SWITCHYARD_KERNELS_CPU_PARALLEL_H_

#include <cstdint>

namespace switchyard::internal {

// Below this many element operations a loop is cheaper on one thread than
// waking a second one (a few microseconds).
constexpr int64_t kMinParallelWork = 1 << 15;

// Calls body(i) for i in [0, count), in parallel where the work is worth it.
// Items are independent of one another, so results do not depend on the number
// of threads. `work_per_item`: element operations, roughly.
template <typename Body>
void ParallelFor(int64_t count, int64_t work_per_item, const Body& body) {
  if (count <= 1 || count * work_per_item < kMinParallelWork) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < count; ++i) body(i);
}

// The same for items of very different cost.
template <typename Body>
void ParallelForUneven(int64_t count, int64_t work_per_item, const Body& body) {
  if (count <= 1 || count * work_per_item < kMinParallelWork) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
#pragma omp parallel for schedule(dynamic, 1)
  for (int64_t i = 0; i < count; ++i) body(i);
}

}  // namespace switchyard::internal

#endif  // SWITCHYARD_KERNELS_CPU_PARALLEL_H_
