// The bulk copy engine without a tensor map: contiguous runs of bytes between
// global and shared memory (PTX ISA 8.x, cp.async.bulk).
//
// REQUIRES, everywhere: both addresses and the size are multiples of 16.
#ifndef SWITCHYARD_KERNELS_CUDA_BULK_H_
#define SWITCHYARD_KERNELS_CUDA_BULK_H_

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda_ptx.h"

namespace switchyard::cuda {

// `barrier` counts the bytes.
__device__ __forceinline__ void CopyBulkToShared(void* shared,
                                                 const void* global, int bytes,
                                                 uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1], %2, [%3];" ::"r"(SharedAddress(shared)),
      "l"(global), "r"(bytes), "r"(SharedAddress(barrier))
      : "memory");
}

// Joins the calling thread's bulk group. What ordinary stores put into `shared`
// must have been fenced by FenceSharedForBulk in every writing thread, then a
// barrier.
__device__ __forceinline__ void CopyBulkToGlobal(void* global,
                                                 const void* shared,
                                                 int bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::
                   "l"(global),
               "r"(SharedAddress(shared)), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void CommitBulk() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
// Until at most Pending of the thread's groups still have to read their shared
// memory.
template <int Pending>
__device__ __forceinline__ void WaitBulkRead() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Pending) : "memory");
}
__device__ __forceinline__ void FenceSharedForBulk() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace switchyard::cuda

#endif  // SWITCHYARD_KERNELS_CUDA_BULK_H_
