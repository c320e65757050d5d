// What kernels that end in AddRmsNorm share, so that a row has the same bits in
// all of them: a block per row, a thread for kNormWidth columns side by side,
// their squares added up in order, and the block's by BlockSum.
#ifndef SWITCHYARD_KERNELS_CUDA_RMS_NORM_H_
#define SWITCHYARD_KERNELS_CUDA_RMS_NORM_H_

#include "kernels/cuda_common.h"

namespace switchyard::cuda {

// Of rows whose columns can be loaded that many at a time.
constexpr int kNormWidth = 8;
constexpr int kMaxNormThreads = 1024;

// Threads of a block of which each has `columns` of the row's, in whole warps.
inline int NormThreads(int64_t hidden, int64_t columns) {
  return static_cast<int>(CeilDiv(CeilDiv(hidden, columns), kWarpSize) *
                          kWarpSize);
}

template <int Width>
__device__ __forceinline__ void AddSquares(const float (&x)[Width],
                                           float& sum) {
#pragma unroll
  for (int j = 0; j < Width; ++j) sum += x[j] * x[j];
}

// 1 / sqrt(mean of squares + epsilon), of the threads' sums of squares. As
// BlockSum otherwise.
__device__ __forceinline__ float InverseRms(float sum, int32_t hidden,
                                            float epsilon, float* scratch) {
  return rsqrtf(BlockSum(sum, scratch) / hidden + epsilon);
}

// out <- x * norm * scale; x is used up.
template <int Width, typename O>
__device__ __forceinline__ void StoreNormed(O* out, float (&x)[Width],
                                            float norm,
                                            const float (&scale)[Width]) {
#pragma unroll
  for (int j = 0; j < Width; ++j) x[j] *= norm * scale[j];
  Store<Width>(out, x);
}

}  // namespace switchyard::cuda

#endif  // SWITCHYARD_KERNELS_CUDA_RMS_NORM_H_
