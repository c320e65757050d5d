// The bulk copy engine without a tensor map: contiguous runs of bytes from
// global to shared memory (PTX ISA 8.x, cp.async.bulk).
#ifndef SWITCHYARD_KERNELS_CUDA_BULK_H_
#define SWITCHYARD_KERNELS_CUDA_BULK_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda_ptx.h"

namespace switchyard::cuda {

// `barrier` counts the bytes. REQUIRES: both addresses and the size are
// multiples of 16.
__device__ __forceinline__ void CopyBulkToShared(void* shared,
                                                 const void* global, int bytes,
                                                 uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1], %2, [%3];" ::"r"(SharedAddress(shared)),
      "l"(global), "r"(bytes), "r"(SharedAddress(barrier))
      : "memory");
}

// Orders the calling thread's accesses to shared memory before those that the
// copy engine and wgmma make after the next barrier.
__device__ __forceinline__ void FenceSharedForBulk() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace switchyard::cuda

#endif  // SWITCHYARD_KERNELS_CUDA_BULK_H_
