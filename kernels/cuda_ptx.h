// The PTX instructions the tensor-core kernels are written in, one function
// each (PTX ISA 8.x): ldmatrix, mma.sync, cp.async, mbarrier, the bulk tensor
// copy.
#ifndef SWITCHYARD_KERNELS_CUDA_PTX_H_
#define SWITCHYARD_KERNELS_CUDA_PTX_H_

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace switchyard::cuda {

__device__ __forceinline__ uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
// x, which the compiler cannot compute again where it is used: addresses in
// shared memory it would, in every turn of a loop.
__device__ __forceinline__ uint32_t Opaque(uint32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}

// True in one of the calling threads' warp. Of a branch that only it takes the
// compiler knows that every operand has one value: otherwise it makes a loop
// over the threads of every bulk copy, which then takes 50 ns. REQUIRES: the
// whole warp.
__device__ __forceinline__ bool ElectThread() {
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}\n"
      : "=r"(elected));
  return elected != 0;
}

// ---- Fragments ----

// Four 8x8 matrices of 16-bit elements; lanes 8i..8i+7 give the row addresses
// of matrix i.
__device__ __forceinline__ void LoadMatrix4(uint32_t (&r)[4],
                                            uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void LoadMatrix4Transposed(uint32_t (&r)[4],
                                                      uint32_t address) {
  asm volatile(
      "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
      : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
      : "r"(address)
      : "memory");
}

// Transposes an 8x8 matrix of 16-bit elements; a lane has those of row lane / 4
// at columns lane % 4 * 2 and the next.
__device__ __forceinline__ uint32_t TransposeMatrix(uint32_t x) {
  uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;"
               : "=r"(y)
               : "r"(x));
  return y;
}

// c[16x8] += a[16x16] b[16x8], bf16 operands, fp32 accumulators. With g = lane
// / 4 and t = lane % 4: a = rows {g, g+8, g, g+8}, columns {2t, 2t, 2t+8, 2t+8}
// and the next one; b = rows {2t, 2t+8} and the next one, column g; c = rows
// {g, g, g+8, g+8}, columns {2t, 2t+1, 2t, 2t+1}.
__device__ __forceinline__ void Mma(float (&c)[4], uint32_t a0, uint32_t a1,
                                    uint32_t a2, uint32_t a3, uint32_t b0,
                                    uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Two floats as a bf16 pair, `low` in the lower half.
__device__ __forceinline__ uint32_t PackBf16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
__device__ __forceinline__ float2 UnpackBf16(uint32_t pair) {
  return make_float2(__uint_as_float(pair << 16),
                     __uint_as_float(pair & 0xffff0000u));
}

// ---- cp.async ----

// 16 bytes past L1; zeros instead where `valid` is false.
__device__ __forceinline__ void CopyAsync16(uint32_t shared, const void* global,
                                            bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int Pending>
__device__ __forceinline__ void WaitCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// ---- mbarrier ----

__device__ __forceinline__ void InitBarrier(uint64_t* barrier, int count) {
  asm volatile(
      "mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)),
      "r"(count)
      : "memory");
}
// Makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void FenceBarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void Arrive(uint64_t* barrier) {
  asm volatile(
      "mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier))
      : "memory");
}
__device__ __forceinline__ void ArriveExpect(uint32_t barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
      "r"(bytes)
      : "memory");
}
__device__ __forceinline__ void ArriveExpect(uint64_t* barrier, int bytes) {
  ArriveExpect(SharedAddress(barrier), bytes);
}
__device__ __forceinline__ bool TryWaitBarrier(uint32_t barrier, int parity) {
  uint32_t done;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}\n"
      : "=r"(done)
      : "r"(barrier), "r"(parity)
      : "memory");
  return done != 0;
}
// Returns once the phase of `parity` is over.
__device__ __forceinline__ void WaitBarrier(uint32_t barrier, int parity) {
  while (!TryWaitBarrier(barrier, parity)) {
  }
}
__device__ __forceinline__ void WaitBarrier(uint64_t* barrier, int parity) {
  WaitBarrier(SharedAddress(barrier), parity);
}

// ---- Clusters of blocks ----

// A barrier of all threads of the cluster, in two halves; shared memory written
// before the first is visible to the others' loads after the second. REQUIRES,
// of both: whole warps.
__device__ __forceinline__ void ArriveCluster() {
  __syncwarp();
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void WaitCluster() {
  __syncwarp();
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ __forceinline__ void SyncCluster() {
  ArriveCluster();
  WaitCluster();
}
// Writes to what lies at `shared`, an address of this block, in the shared
// memory of the cluster's block `rank`. REQUIRES: that block has started, and
// does not end before a barrier of the cluster.
__device__ __forceinline__ void StoreShared(float* shared, uint32_t rank,
                                            float x) {
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(address)
               : "r"(SharedAddress(shared)), "r"(rank));
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(address), "f"(x)
               : "memory");
}
// Four floats of what lies at `shared`, an address of this block, in the shared
// memory of the cluster's block `rank`.
__device__ __forceinline__ float4 LoadShared4(uint32_t shared, uint32_t rank) {
  uint32_t address;
  float4 v;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(address)
               : "r"(shared), "r"(rank));
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(address)
               : "memory");
  return v;
}

// ---- Bulk tensor copy ----

__device__ __forceinline__ uint64_t EvictFirstPolicy() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ __forceinline__ uint64_t EvictLastPolicy() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ __forceinline__ uint64_t EvictNormalPolicy() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// The box of `map` at (column, row) to shared memory; its bytes are counted by
// `barrier`. Elements outside the tensor arrive as zeros, and count.
__device__ __forceinline__ void CopyBox(uint32_t shared, const CUtensorMap* map,
                                        int column, int row, uint32_t barrier,
                                        uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::"
      "bytes.L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared),
      "l"(map), "r"(column), "r"(row), "r"(barrier), "l"(policy)
      : "memory");
}
// The same of a map of three dimensions, innermost first.
__device__ __forceinline__ void CopyBox(uint32_t shared, const CUtensorMap* map,
                                        int x, int y, int z, uint32_t barrier,
                                        uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::"
      "bytes.L2::cache_hint [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(shared),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier), "l"(policy)
      : "memory");
}
// The same of a map of four dimensions.
__device__ __forceinline__ void CopyBox(uint32_t shared, const CUtensorMap* map,
                                        int x, int y, int z, int w,
                                        uint32_t barrier, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::"
      "bytes.L2::cache_hint [%0], [%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(
          shared),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(barrier), "l"(policy)
      : "memory");
}
__device__ __forceinline__ void PrefetchMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

}  // namespace switchyard::cuda

#endif  // SWITCHYARD_KERNELS_CUDA_PTX_H_
