// Small products on the tensor cores at nearly fp32's precision: both operands
// are split into two tf32 parts, and three of the four partial products added
// (the fourth is below fp32's rounding).
#ifndef SWITCHYARD_KERNELS_CUDA_TF32_H_
#define SWITCHYARD_KERNELS_CUDA_TF32_H_

#include <cuda_runtime.h>

#include <cstdint>

namespace switchyard::cuda {

__device__ __forceinline__ uint32_t RoundToTf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

__device__ __forceinline__ void MmaTf32(float (&c)[4], const uint32_t (&a)[4],
                                        const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// c[16x8] += a[16x8] b[8x8]. With g = lane / 4 and t = lane % 4: a = rows {g,
// g+8, g, g+8}, columns {t, t, t+4, t+4}; b = rows {t, t+4}, column g; c = rows
// {g, g, g+8, g+8}, columns {2t, 2t+1, 2t, 2t+1}.
__device__ __forceinline__ void MmaFp32(float (&c)[4], const float (&a)[4],
                                        const float (&b)[2]) {
  uint32_t a_high[4], a_low[4], b_high[2], b_low[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    a_high[i] = RoundToTf32(a[i]);
    a_low[i] = RoundToTf32(a[i] - __uint_as_float(a_high[i]));
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    b_high[i] = RoundToTf32(b[i]);
    b_low[i] = RoundToTf32(b[i] - __uint_as_float(b_high[i]));
  }
  MmaTf32(c, a_low, b_high);
  MmaTf32(c, a_high, b_low);
  MmaTf32(c, a_high, b_high);
}

}  // namespace switchyard::cuda

#endif  // SWITCHYARD_KERNELS_CUDA_TF32_H_
