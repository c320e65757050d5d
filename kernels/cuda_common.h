// What the CUDA kernels are written in: typed vector loads, reductions,
// programmatic launches, and dispatch on the activation type.
//
// Every kernel is launched so that it may start while its predecessor in the
// stream still runs, unless OpContext::early_start is off. It must therefore
// call GridWait() in every thread before it reads what another kernel of the
// step wrote, or writes anything at all. GridTrigger() lets the successor start
// early.
//
// Before GridWait a kernel may read what no kernel of the same step writes:
// weights; what is uploaded for the step (lengths, offsets, tables, cache ids);
// and keys, values and recurrent states as earlier steps left them. A step is a
// run of launches that begins with a copy, a fill or a graph launch. Only the
// edge from one kernel to the next is programmatic: a kernel after a copy, a
// fill or the start of a graph starts when all before it has completed, and
// each later one of the step starts after that one has. A caller that launches
// the same op twice on the same cache, without one of these between and without
// OpContext::early_start = false, breaks the rule.
//
// Blocks that have nothing to do may return without GridWait, but one block of
// every kernel must wait, or its successors would not wait for its
// predecessors.
#ifndef SWITCHYARD_KERNELS_CUDA_COMMON_H_
#define SWITCHYARD_KERNELS_CUDA_COMMON_H_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/cuda_device.h"
#include "kernels/cuda_status.h"
#include "kernels/op_context.h"
#include "kernels/status.h"
#include "kernels/tensor.h"
#include "kernels/varlen.h"

namespace switchyard::cuda {

using bf16 = __nv_bfloat16;
constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kWarpSize = 32;

// ---- Programmatic dependent launch ----

__device__ __forceinline__ void GridWait() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}
__device__ __forceinline__ void GridTrigger() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// ---- Loads and stores of N consecutive elements, as floats ----
// N * sizeof(T) is 16, or a multiple of it, or smaller and then naturally
// aligned; REQUIRES: p is aligned to min(16, N * sizeof(T)) bytes.

__device__ __forceinline__ float ToFloat(float x) { return x; }
__device__ __forceinline__ float ToFloat(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float ToFloat(__half x) { return __half2float(x); }

template <typename T>
__device__ __forceinline__ T FromFloat(float x);
template <>
__device__ __forceinline__ float FromFloat<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 FromFloat<bf16>(float x) {
  return __float2bfloat16_rn(x);
}

template <typename T, int N>
struct alignas(sizeof(T) * N > 16 ? 16 : sizeof(T) * N) Pack {
  T item[N];
};

template <int N, typename T>
__device__ __forceinline__ void Load(const T* p, float (&x)[N]) {
  const Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(p);
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = ToFloat(pack.item[i]);
}

template <int N, typename T>
__device__ __forceinline__ void Store(T* p, const float (&x)[N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack.item[i] = FromFloat<T>(x[i]);
  *reinterpret_cast<Pack<T, N>*>(p) = pack;
}

// One element of a view whose type is known at run time only.
__device__ __forceinline__ float LoadAs(const void* p, DType dtype,
                                        int64_t index) {
  return dtype == DType::kF32 ? static_cast<const float*>(p)[index]
                              : ToFloat(static_cast<const bf16*>(p)[index]);
}

template <typename T>
__device__ __forceinline__ T* RowOf(const MatrixView& view, int64_t row) {
  return static_cast<T*>(view.data) + row * view.row_stride;
}

// The fp32 state that a sequence has in a table.
__device__ __forceinline__ float* StateOf(const SlotTable& table, int32_t seq) {
  return reinterpret_cast<float*>(
      table.arena + int64_t{table.ids[seq]} * kCacheUnitBytes + table.offset);
}

// ---- Arithmetic ----

// exp(x) = exp2(x * kLog2e), which is one instruction.
constexpr float kLog2e = 1.4426950408889634f;

__device__ __forceinline__ float Sigmoid(float x) {
  return 1.0f / (1.0f + __expf(-x));
}
__device__ __forceinline__ float Silu(float x) {
  return x / (1.0f + __expf(-x));
}
// Without the division's slow path, which an input far below 0 would take.
__device__ __forceinline__ float FastSilu(float x) {
  return __fdividef(x, 1.0f + __expf(-x));
}
__device__ __forceinline__ float Softplus(float x) {
  return x > 20.0f ? x : log1pf(__expf(x));
}

// The sum over groups of `Lanes` adjacent lanes, in all of them.
template <int Lanes = kWarpSize>
__device__ __forceinline__ float WarpSum(float x) {
#pragma unroll
  for (int delta = Lanes / 2; delta > 0; delta /= 2)
    x += __shfl_xor_sync(kFullWarp, x, delta);
  return x;
}

// Sum over the block, in every thread. `scratch` holds 32 floats, and must not
// be used again before the next __syncthreads(). REQUIRES: all threads of whole
// warps call it.
__device__ __forceinline__ float BlockSum(float x, float* scratch) {
  x = WarpSum(x);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  if (lane == 0) scratch[warp] = x;
  __syncthreads();
  const int num_warps = (blockDim.x + kWarpSize - 1) / kWarpSize;
  return WarpSum(lane < num_warps ? scratch[lane] : 0.0f);
}

// ---- Host side ----

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// True if `bytes`-wide accesses at every `bytes / element` columns of every row
// are aligned.
inline bool AlignedTo(const MatrixView& view, int64_t bytes) {
  const int64_t element = DTypeBytes(view.dtype);
  return reinterpret_cast<uintptr_t>(view.data) % bytes == 0 &&
         view.row_stride * element % bytes == 0;
}

struct LaunchShape {
  dim3 grid;
  dim3 block;
  int64_t shared_bytes = 0;
  int cluster = 1;  // blocks of a cluster, along x
};

// Launches on the device's stream, allowed to overlap the tail of the kernel
// before it if the context allows it. `what` names the op in errors.
template <typename... Params, typename... Args>
absl::Status Launch(const OpContext& context, const char* what,
                    void (*kernel)(Params...), const LaunchShape& shape,
                    Args&&... args) {
  if (shape.shared_bytes > 48 * 1024) {
    SY_RETURN_IF_CUDA_ERROR(cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
        static_cast<int>(shape.shared_bytes)));
  }
  cudaLaunchAttribute attributes[2];
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed =
      context.early_start ? 1 : 0;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {static_cast<unsigned>(shape.cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.stream = static_cast<cudaStream_t>(context.stream());
  config.attrs = attributes;
  config.numAttrs = shape.cluster > 1 ? 2 : 1;
  const cudaError_t code =
      cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...);
  if (code == cudaSuccess) return absl::OkStatus();
  return CudaStatus(code, absl::StrCat("launch of ", what));
}

template <typename T>
struct TypeTag {
  using type = T;
};

// Calls f(TypeTag<T>) for the element type of an activation.
template <typename F>
absl::Status DispatchActivation(DType dtype, const char* what, F&& f) {
  switch (dtype) {
    case DType::kF32:
      return f(TypeTag<float>());
    case DType::kBF16:
      return f(TypeTag<bf16>());
    default:
      return absl::UnimplementedError(
          absl::StrCat(what, ": no CUDA kernel for activations of type ",
                       DTypeName(dtype), "; there are fp32 and bf16"));
  }
}

// Calls f(std::integral_constant<int, Wide>) if `aligned`, else with 1.
template <int Wide, typename F>
absl::Status DispatchWidth(bool aligned, F&& f) {
  return aligned ? f(std::integral_constant<int, Wide>())
                 : f(std::integral_constant<int, 1>());
}

}  // namespace switchyard::cuda

#endif  // SWITCHYARD_KERNELS_CUDA_COMMON_H_
