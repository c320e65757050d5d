// Random fills, and the kernels whose rates are the ceilings.
#include "kernels/cuda_common.h"
#include "kernels/cuda_status.h"
#include "tests/bench/kernels/device_fill.h"

namespace switchyard::bench {
namespace {

using namespace switchyard::cuda;

__device__ uint64_t Mix(uint64_t x) {  // SplitMix64
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

template <typename T>
__global__ void FillKernel(T* data, int64_t count, float scale, uint64_t seed) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    // The sum of four uniforms: near enough to a normal value.
    const uint64_t bits = Mix(seed * 0x100000001b3u + i);
    float sum = 0;
    for (int j = 0; j < 4; ++j)
      sum += static_cast<float>(bits >> (16 * j) & 0xffff) / 65536.0f - 0.5f;
    data[i] = FromFloat<T>(sum * 1.7320508f * scale);
  }
}

__global__ void ReadKernel(const uint4* data, int64_t count, float* sink) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  uint32_t sum = 0;
  int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; i + 7 * stride < count; i += 8 * stride) {
    uint4 x[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] = __ldcs(data + i + j * stride);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum += x[j].x ^ x[j].y ^ x[j].z ^ x[j].w;
  }
  if (sum == 0x12345678u) *sink = 1;
}

__global__ void CopyKernel(uint4* to, const uint4* from, int64_t count) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; i + 3 * stride < count; i += 4 * stride) {
    uint4 x[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j] = __ldcs(from + i + j * stride);
#pragma unroll
    for (int j = 0; j < 4; ++j) __stcs(to + i + j * stride, x[j]);
  }
  for (; i < count; i += stride) to[i] = from[i];
}

}  // namespace

absl::Status FillRandom(void* data, DType dtype, int64_t count, float scale,
                        uint64_t seed, void* stream) {
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  if (dtype == DType::kF32)
    FillKernel<<<1024, 256, 0, s>>>(static_cast<float*>(data), count, scale,
                                    seed);
  else
    FillKernel<<<1024, 256, 0, s>>>(static_cast<bf16*>(data), count, scale,
                                    seed);
  return CudaStatus(cudaGetLastError(), "FillRandom");
}

absl::Status ReadAll(const void* data, int64_t bytes, float* sink,
                     void* stream) {
  ReadKernel<<<132 * 4, 512, 0, static_cast<cudaStream_t>(stream)>>>(
      static_cast<const uint4*>(data), bytes / 16, sink);
  return CudaStatus(cudaGetLastError(), "ReadAll");
}

absl::Status CopyAll(void* to, const void* from, int64_t bytes, void* stream) {
  CopyKernel<<<132 * 4, 512, 0, static_cast<cudaStream_t>(stream)>>>(
      static_cast<uint4*>(to), static_cast<const uint4*>(from), bytes / 16);
  return CudaStatus(cudaGetLastError(), "CopyAll");
}

}  // namespace switchyard::bench
