// What the kernels of the peers' sums are written in (peer_reduce.h): units of
// words that announce themselves, looks at their places, waiting that can be
// stopped, the count of messages. For worker/peer_reduce*_cuda.cu.
#ifndef SWITCHYARD_WORKER_CUDA_PEER_PLACES_H_
#define SWITCHYARD_WORKER_CUDA_PEER_PLACES_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda_common.h"
#include "worker/peer_reduce.h"

namespace switchyard::cuda {

constexpr int kUnitBytes = 16;  // what a thread sends at a time
// Looks at a place between looks at `stop`, which is behind PCIe.
constexpr int kLooksPerStop = 1024;
// What an empty-looking word is sent as: NaN as well, in fp32 and twice in
// bf16.
constexpr uint32_t kSentForEmpty = 0x7fffffffu;

// Relaxed accesses in the scope of all GPUs: served by the L2 cache of the GPU
// that the memory belongs to. Only the single words need be whole.
__device__ __forceinline__ uint4 LoadShared(const std::byte* p) {
  uint4 u;
  asm volatile("ld.relaxed.sys.global.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(u.x), "=r"(u.y), "=r"(u.z), "=r"(u.w)
               : "l"(p)
               : "memory");
  return u;
}
__device__ __forceinline__ void StoreShared(std::byte* p, const uint4& u) {
  asm volatile("st.relaxed.sys.global.v4.b32 [%0], {%1,%2,%3,%4};" ::"l"(p),
               "r"(u.x), "r"(u.y), "r"(u.z), "r"(u.w)
               : "memory");
}
__device__ __forceinline__ uint32_t LoadWord(const uint32_t* p) {
  uint32_t word;
  asm volatile("ld.relaxed.sys.global.b32 %0, [%1];"
               : "=r"(word)
               : "l"(p)
               : "memory");
  return word;
}

__device__ __forceinline__ bool HasEmptyWord(const uint4& u) {
  return u.x == kEmptyWord || u.y == kEmptyWord || u.z == kEmptyWord ||
         u.w == kEmptyWord;
}
__device__ __forceinline__ uint4 WithoutEmptyWords(uint4 u) {
  if (u.x == kEmptyWord) u.x = kSentForEmpty;
  if (u.y == kEmptyWord) u.y = kSentForEmpty;
  if (u.z == kEmptyWord) u.z = kSentForEmpty;
  if (u.w == kEmptyWord) u.w = kSentForEmpty;
  return u;
}

__device__ __forceinline__ void StoreEmpty(std::byte* p) {
  StoreShared(p, make_uint4(kEmptyWord, kEmptyWord, kEmptyWord, kEmptyWord));
}

template <typename T>
union Unit {
  static constexpr int kElements = kUnitBytes / sizeof(T);
  uint4 words;
  T item[kElements];
  __device__ Unit() : words(make_uint4(0, 0, 0, 0)) {}
};

// One look at the places of one unit, of all senders; `first` is rank 0's.
// Whether all have arrived but the rank's own, whose place is loaded in vain:
// a branch would have every load wait for the one before.
template <typename T, int kRanks>
__device__ __forceinline__ bool LookAtAll(const std::byte* first,
                                          int64_t slot_bytes, int rank,
                                          Unit<T> (&in)[kRanks]) {
#pragma unroll
  for (int r = 0; r < kRanks; ++r)
    in[r].words = LoadShared(first + r * slot_bytes);
  bool ready = true;
#pragma unroll
  for (int r = 0; r < kRanks; ++r)
    ready &= r == rank || !HasEmptyWord(in[r].words);
  return ready;
}

// The sum in rank order of what has arrived and of the rank's own.
template <typename T, int kRanks>
__device__ __forceinline__ Unit<T> SumOf(Unit<T> (&in)[kRanks], int rank,
                                         const Unit<T>& mine) {
#pragma unroll
  for (int r = 0; r < kRanks; ++r)
    if (r == rank) in[r] = mine;
  Unit<T> sum;
#pragma unroll
  for (int i = 0; i < Unit<T>::kElements; ++i) {
    float total = ToFloat(in[0].item[i]);
#pragma unroll
    for (int r = 1; r < kRanks; ++r) total += ToFloat(in[r].item[i]);
    sum.item[i] = FromFloat<T>(total);
  }
  return sum;
}

// The rank `i` ranks on: nobody begins with rank 0.
template <int kRanks>
__device__ __forceinline__ int RankAfter(int rank, int i) {
  static_assert((kRanks & (kRanks - 1)) == 0);
  return (rank + i) & (kRanks - 1);
}

// How many units of a message, or of a row, are a rank's share: whole lines of
// 128 bytes. The last shares may be shorter, or empty.
__host__ __device__ __forceinline__ int ShareOf(int num_units, int num_ranks) {
  constexpr int kLineUnits = 128 / kUnitBytes;
  const int lines = num_ranks * kLineUnits;
  return (num_units + lines - 1) / lines * kLineUnits;
}

// Whether to give up waiting; the answer is the whole warp's.
__device__ __forceinline__ bool StopAsked(const PeerBuffers& buffers) {
  const bool lane0 = threadIdx.x % kWarpSize == 0;
  const bool asked = lane0 && LoadWord(buffers.stop) != 0;
  if (asked) buffers.state->stopped = 1;
  return __any_sync(kFullWarp, asked);
}

// Every block takes care of its own count, and of some that no block of this
// grid reads: all stay alike, however many blocks the next message has.
// REQUIRES: every thread of the block has read its count.
__device__ __forceinline__ void EndTurn(PeerState* state, uint32_t turn) {
  for (int i = blockIdx.x + threadIdx.x * gridDim.x; i < kMaxPeerBlocks;
       i += gridDim.x * blockDim.x)
    state->turn[i] = turn + 1;
}

// As Launch of cuda_common.h, on any stream.
template <typename... Params, typename... Args>
absl::Status LaunchBlocks(const char* what, int64_t blocks, int threads,
                          cudaStream_t stream, void (*kernel)(Params...),
                          const Args&... args) {
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return CudaStatus(cudaLaunchKernelEx(&config, kernel, args...), what);
}

}  // namespace switchyard::cuda

#endif  // SWITCHYARD_WORKER_CUDA_PEER_PLACES_H_
