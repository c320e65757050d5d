// Random fills on a GPU, and the kernels whose rates are the ceilings of memory
// traffic. Ordered on `stream`, a cudaStream_t.
#ifndef SWITCHYARD_TESTS_BENCH_KERNELS_DEVICE_FILL_H_
#define SWITCHYARD_TESTS_BENCH_KERNELS_DEVICE_FILL_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/dtype.h"

namespace switchyard::bench {

// Nearly normal values times `scale`, kF32 or kBF16.
absl::Status FillRandom(void* data, DType dtype, int64_t count, float scale,
                        uint64_t seed, void* stream);
// Reads every byte. `sink`: one float, written if the data should happen to
// have a certain sum.
absl::Status ReadAll(const void* data, int64_t bytes, float* sink,
                     void* stream);
absl::Status CopyAll(void* to, const void* from, int64_t bytes, void* stream);

}  // namespace switchyard::bench

#endif  // SWITCHYARD_TESTS_BENCH_KERNELS_DEVICE_FILL_H_
