#include <algorithm>

#include "kernels/check.h"
#include "kernels/cuda_common.h"
#include "kernels/cuda_rms_norm.h"
#include "worker/peer_reduce.h"

namespace switchyard {
namespace {

using namespace switchyard::cuda;

constexpr int kUnitBytes = 16;  // what a thread sends at a time
constexpr int kMaxThreads = 512;
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

template <typename T>
union Unit {
  static constexpr int kElements = kUnitBytes / sizeof(T);
  uint4 words;
  T item[kElements];
  __device__ Unit() : words(make_uint4(0, 0, 0, 0)) {}
};

// Unit `unit` of x[n]; what is beyond the end is 0.
template <typename T>
__device__ __forceinline__ Unit<T> LoadUnit(const T* x, int64_t n, int64_t unit,
                                            bool aligned) {
  constexpr int kElements = Unit<T>::kElements;
  Unit<T> u;
  const int64_t first = unit * kElements;
  if (aligned && first + kElements <= n) {
    u.words = *reinterpret_cast<const uint4*>(x + first);
  } else {
#pragma unroll
    for (int i = 0; i < kElements; ++i)
      if (first + i < n) u.item[i] = x[first + i];
  }
  return u;
}
template <typename T>
__device__ __forceinline__ void StoreUnit(T* x, int64_t n, int64_t unit,
                                          bool aligned, const Unit<T>& u) {
  constexpr int kElements = Unit<T>::kElements;
  const int64_t first = unit * kElements;
  if (aligned && first + kElements <= n) {
    *reinterpret_cast<uint4*>(x + first) = u.words;
  } else {
#pragma unroll
    for (int i = 0; i < kElements; ++i)
      if (first + i < n) x[first + i] = u.item[i];
  }
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

template <typename T, int kRanks>
__global__ void __launch_bounds__(kMaxThreads)
    PeerReduceKernel(const __grid_constant__ PeerBuffers buffers, T* x,
                     int64_t n, bool aligned) {
  constexpr int kElements = Unit<T>::kElements;
  GridTrigger();
  GridWait();
  PeerState* const state = buffers.state;
  const uint32_t turn = state->turn[blockIdx.x];
  if (state->stopped != 0) return;
  const int rank = buffers.rank;
  const int64_t num_units = (n + kElements - 1) / kElements;
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  const int64_t start = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t set = (turn % 2) * kRanks * buffers.slot_bytes;

  for (int64_t unit = start; unit < num_units; unit += stride) {
    const uint4 words = WithoutEmptyWords(LoadUnit(x, n, unit, aligned).words);
    const int64_t place = set + rank * buffers.slot_bytes + unit * kUnitBytes;
#pragma unroll
    for (int i = 1; i < kRanks; ++i)  // not all to rank 0 first
      StoreShared(buffers.slots[(rank + i) % kRanks] + place, words);
  }

  std::byte* const own = buffers.slots[rank] + set;
  const int lane = threadIdx.x % kWarpSize;
  // A warp goes on together: each of its rounds ends when all its units are
  // there.
  for (int64_t first = start - lane; first < num_units; first += stride) {
    const int64_t unit = first + lane;
    const bool active = unit < num_units;
    Unit<T> mine, in[kRanks];
    if (active) mine = LoadUnit<T>(x, n, unit, aligned);
    bool ready = !active;
    for (int looks = 1;; ++looks) {
      if (!ready) {
        ready = true;
#pragma unroll
        for (int r = 0; r < kRanks; ++r) {
          if (r == rank) continue;
          in[r].words =
              LoadShared(own + r * buffers.slot_bytes + unit * kUnitBytes);
          ready = ready && !HasEmptyWord(in[r].words);
        }
      }
      if (__all_sync(kFullWarp, ready)) break;
      if (looks % kLooksPerStop == 0 && StopAsked(buffers)) return;
    }
    if (!active) continue;
#pragma unroll
    for (int r = 0; r < kRanks; ++r)
      if (r == rank) in[r] = mine;
    Unit<T> sum;
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      float total = ToFloat(in[0].item[i]);
#pragma unroll
      for (int r = 1; r < kRanks; ++r) total += ToFloat(in[r].item[i]);
      sum.item[i] = FromFloat<T>(total);
    }
    StoreUnit(x, n, unit, aligned, sum);
    const uint4 empty =
        make_uint4(kEmptyWord, kEmptyWord, kEmptyWord, kEmptyWord);
#pragma unroll
    for (int r = 0; r < kRanks; ++r) {
      if (r == rank) continue;
      StoreShared(own + r * buffers.slot_bytes + unit * kUnitBytes, empty);
    }
  }

  __syncthreads();
  EndTurn(state, turn);
}

// A block per row: it sends its row of delta, waits for those of its peers, and
// has the sum in the registers in which AddRmsNorm has the delta.
template <typename O, int kRanks>
__global__ void __launch_bounds__(kMaxNormThreads)
    PeerReduceNormKernel(const __grid_constant__ PeerBuffers buffers,
                         const __grid_constant__ AddRmsNormArgs args) {
  constexpr int kUnitColumns = kUnitBytes / 4;
  constexpr int kUnits = kNormWidth / kUnitColumns;  // of a thread
  __shared__ float scratch[kWarpSize];
  GridTrigger();
  const int rank = buffers.rank;
  const int hidden = static_cast<int>(args.out.cols);
  const int column = threadIdx.x * kNormWidth;
  const bool active = column < hidden;
  const int64_t i = blockIdx.x;
  float scale[kNormWidth];
  if (active) Load(args.weight + column, scale);
  const int64_t r = args.rows == nullptr ? i : args.rows[i];
  const int64_t d = args.delta_rows == nullptr ? i : args.delta_rows[i];
  const float* const delta = RowOf<float>(args.delta, d);
  float* const residual = RowOf<float>(args.residual, r);
  GridWait();
  PeerState* const state = buffers.state;
  const uint32_t turn = state->turn[i];
  // Asked below, once: a branch here would have the loads wait for this one.
  const bool stopped = state->stopped != 0;
  // What the thread sends is not what it adds up: a warp's stores to the peers
  // are of whole lines.
  uint4 sent[kUnits];
  const auto sent_column = [&](int unit) {
    return (unit * static_cast<int>(blockDim.x) +
            static_cast<int>(threadIdx.x)) *
           kUnitColumns;
  };
#pragma unroll
  for (int u = 0; u < kUnits; ++u)
    if (sent_column(u) < hidden)
      sent[u] = *reinterpret_cast<const uint4*>(delta + sent_column(u));
  // Of the row in a message.
  const int64_t place = (turn % 2) * kRanks * buffers.slot_bytes +
                        i * hidden * static_cast<int64_t>(sizeof(float));
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    if (stopped || sent_column(u) >= hidden) continue;
    const uint4 words = WithoutEmptyWords(sent[u]);
#pragma unroll
    for (int p = 1; p < kRanks; ++p)  // not all to rank 0 first
      StoreShared(buffers.slots[(rank + p) % kRanks] + place +
                      rank * buffers.slot_bytes + sent_column(u) * 4,
                  words);
  }

  if (stopped) return;
  float mine[kNormWidth], x[kNormWidth];
  if (active) {
    Load(delta + column, mine);
    Load(residual + column, x);
  }

  std::byte* const own = buffers.slots[rank] + place + column * 4;
  float sum[kNormWidth];
  // Each look sums up what is there; the last one finds everything.
  for (int looks = 1;; ++looks) {
    bool ready = true;
    if (active) {
#pragma unroll
      for (int p = 0; p < kRanks; ++p) {
        float part[kNormWidth];
        if (p == rank) {
#pragma unroll
          for (int j = 0; j < kNormWidth; ++j) part[j] = mine[j];
        } else {
#pragma unroll
          for (int u = 0; u < kUnits; ++u) {
            Unit<float> in;
            in.words =
                LoadShared(own + p * buffers.slot_bytes + u * kUnitBytes);
            ready &= !HasEmptyWord(in.words);
#pragma unroll
            for (int j = 0; j < kUnitColumns; ++j)
              part[u * kUnitColumns + j] = in.item[j];
          }
        }
#pragma unroll
        for (int j = 0; j < kNormWidth; ++j)
          sum[j] = p == 0 ? part[j] : sum[j] + part[j];
      }
    }
    if (__all_sync(kFullWarp, ready)) break;
    if (looks % kLooksPerStop == 0 && StopAsked(buffers)) return;
  }

  float squares = 0;
  if (active) {
    const uint4 empty =
        make_uint4(kEmptyWord, kEmptyWord, kEmptyWord, kEmptyWord);
#pragma unroll
    for (int p = 0; p < kRanks; ++p) {
      if (p == rank) continue;
#pragma unroll
      for (int u = 0; u < kUnits; ++u)
        StoreShared(own + p * buffers.slot_bytes + u * kUnitBytes, empty);
    }
#pragma unroll
    for (int j = 0; j < kNormWidth; ++j) x[j] += sum[j];
    Store(residual + column, x);
    AddSquares(x, squares);
  }
  // In it the block's threads wait for each other.
  const float norm = InverseRms(squares, hidden, args.epsilon, scratch);
  if (active) StoreNormed(RowOf<O>(args.out, i) + column, x, norm, scale);
  EndTurn(state, turn);
}

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

template <typename T>
absl::Status LaunchFor(const PeerBuffers& buffers, void* x, int64_t n,
                       cudaStream_t stream, const PeerShape& shape) {
  const int64_t num_units =
      CeilDiv(n * static_cast<int64_t>(sizeof(T)), kUnitBytes);
  const int64_t blocks =
      std::min<int64_t>(CeilDiv(num_units, shape.threads), shape.max_blocks);
  auto* const kernel = buffers.world_size == 2   ? PeerReduceKernel<T, 2>
                       : buffers.world_size == 4 ? PeerReduceKernel<T, 4>
                                                 : PeerReduceKernel<T, 8>;
  return LaunchBlocks("launch of PeerReduce", blocks, shape.threads, stream,
                      kernel, buffers, static_cast<T*>(x), n,
                      reinterpret_cast<uintptr_t>(x) % kUnitBytes == 0);
}

template <typename O>
absl::Status LaunchNormFor(const PeerBuffers& buffers,
                           const AddRmsNormArgs& args, cudaStream_t stream) {
  auto* const kernel = buffers.world_size == 2   ? PeerReduceNormKernel<O, 2>
                       : buffers.world_size == 4 ? PeerReduceNormKernel<O, 4>
                                                 : PeerReduceNormKernel<O, 8>;
  return LaunchBlocks("launch of PeerReduceNorm", args.out.rows,
                      NormThreads(args.out.cols, kNormWidth), stream, kernel,
                      buffers, args);
}

}  // namespace

absl::Status LaunchPeerReduce(const PeerBuffers& buffers, void* x,
                              int64_t num_elements, CollectiveType type,
                              cudaStream_t stream, PeerShape shape) {
  SY_CHECK(buffers.world_size == 2 || buffers.world_size == 4 ||
           buffers.world_size == 8);
  SY_CHECK(num_elements > 0 &&
           num_elements * CollectiveTypeBytes(type) <= buffers.slot_bytes);
  SY_CHECK(shape.threads > 0 && shape.threads % kWarpSize == 0 &&
           shape.threads <= kMaxThreads && shape.max_blocks > 0 &&
           shape.max_blocks <= kMaxPeerBlocks);
  return type == CollectiveType::kFloat32
             ? LaunchFor<float>(buffers, x, num_elements, stream, shape)
             : LaunchFor<bf16>(buffers, x, num_elements, stream, shape);
}

bool CanReduceNorm(const PeerBuffers& buffers, const AddRmsNormArgs& args) {
  const int64_t rows = args.out.rows, hidden = args.out.cols;
  return args.delta.data != nullptr && args.delta.dtype == DType::kF32 &&
         args.residual.dtype == DType::kF32 &&
         (args.out.dtype == DType::kF32 || args.out.dtype == DType::kBF16) &&
         args.delta.cols == hidden && args.residual.cols == hidden &&
         (args.delta_rows != nullptr || args.delta.rows >= rows) &&
         (args.rows != nullptr || args.residual.rows >= rows) &&
         hidden % kNormWidth == 0 && hidden <= kMaxNormThreads * kNormWidth &&
         rows > 0 && rows <= kMaxPeerNormRows &&
         rows * hidden * static_cast<int64_t>(sizeof(float)) <=
             buffers.slot_bytes;
}

absl::Status LaunchPeerReduceNorm(const PeerBuffers& buffers,
                                  const AddRmsNormArgs& args,
                                  cudaStream_t stream) {
  SY_CHECK(buffers.world_size == 2 || buffers.world_size == 4 ||
           buffers.world_size == 8);
  SY_CHECK(CanReduceNorm(buffers, args));
  SY_CHECK(AlignedTo(args.delta, kUnitBytes) &&
           AlignedTo(args.residual, kUnitBytes) &&
           AlignedTo(args.out, kUnitBytes) &&
           reinterpret_cast<uintptr_t>(args.weight) % kUnitBytes == 0);
  return args.out.dtype == DType::kF32
             ? LaunchNormFor<float>(buffers, args, stream)
             : LaunchNormFor<bf16>(buffers, args, stream);
}

}  // namespace switchyard
