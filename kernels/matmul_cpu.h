// The two ways the CPU multiplies with a packed weight. Either adds up the
// products of an output element in an order that depends on the weight's shape
// alone, so a row's bits depend on that row and nothing else: not on the number
// of rows, its place among them, or the number of threads.
#ifndef SWITCHYARD_KERNELS_MATMUL_CPU_H_
#define SWITCHYARD_KERNELS_MATMUL_CPU_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/matmul.h"

namespace switchyard::internal {

struct CpuWeight : WeightMatrix::Storage {
  // x [num_tokens, in], out [num_tokens, out], fp32.
  virtual absl::Status Multiply(const MatrixView& x, const float* bias,
                                const MatrixView& out) const = 0;
};

// oneDNN's batch-reduce kernels (AVX-512 machines). Null where oneDNN would
// pick another implementation: those split the sum differently for different
// numbers of rows.
absl::StatusOr<std::unique_ptr<CpuWeight>> PackForDnnl(const float* weight,
                                                       int64_t out_features,
                                                       int64_t in_features);

// Our own kernel, for every other machine.
std::unique_ptr<CpuWeight> PackPortable(const float* weight,
                                        int64_t out_features,
                                        int64_t in_features);

}  // namespace switchyard::internal

#endif  // SWITCHYARD_KERNELS_MATMUL_CPU_H_
