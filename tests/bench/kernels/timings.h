// The timings of those families whose checks fill a file of their own.
// REQUIRES, of all: times are wanted.
#ifndef SWITCHYARD_TESTS_BENCH_KERNELS_TIMINGS_H_
#define SWITCHYARD_TESTS_BENCH_KERNELS_TIMINGS_H_

#include "tests/bench/kernels/harness.h"

namespace switchyard::bench {

void TimeAttention(Harness* harness);
// Delta rule and causal convolution.
void TimeRecurrent(Harness* harness);

}  // namespace switchyard::bench

#endif  // SWITCHYARD_TESTS_BENCH_KERNELS_TIMINGS_H_
