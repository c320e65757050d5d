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
// Blocks are made smaller, down to so many threads, to have up to so many.
constexpr int kMinThreads = 64;
constexpr int kSpreadBlocks = 128;
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

// Where a message lies. kWhole: on a whole number of aligned units, for which
// the code is shorter. A rank's own affair; what it sends is the same.
template <typename T, bool kWhole>
struct Message {
  T* x;
  int64_t n;
  bool aligned;

  __device__ __forceinline__ int num_units() const {
    return static_cast<int>((n + Unit<T>::kElements - 1) / Unit<T>::kElements);
  }
  __device__ __forceinline__ Unit<T> Load(int unit) const {
    if constexpr (kWhole) {
      Unit<T> u;
      u.words = reinterpret_cast<const uint4*>(x)[unit];
      return u;
    } else {
      return LoadUnit(x, n, unit, aligned);
    }
  }
  __device__ __forceinline__ void Store(int unit, const Unit<T>& u) const {
    if constexpr (kWhole) {
      reinterpret_cast<uint4*>(x)[unit] = u.words;
    } else {
      StoreUnit(x, n, unit, aligned, u);
    }
  }
};

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

// One shot between two ranks.
template <typename T>
__global__ void __launch_bounds__(kMaxThreads)
    PairReduceKernel(const __grid_constant__ PeerBuffers buffers, T* x,
                     int64_t n, bool aligned) {
  constexpr int kRanks = 2;
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

// One shot between more ranks. What follows one another there would here do so
// once for each peer.
template <typename T, int kRanks, bool kWhole>
__global__ void __launch_bounds__(kMaxThreads)
    PeerReduceKernel(const __grid_constant__ PeerBuffers buffers,
                     const __grid_constant__ Message<T, kWhole> message) {
  GridTrigger();
  GridWait();
  PeerState* const state = buffers.state;
  const uint32_t turn = state->turn[blockIdx.x];
  const bool stopped = state->stopped != 0;
  const int rank = buffers.rank;
  const int num_units = message.num_units();
  const int stride = gridDim.x * blockDim.x;
  const int start = blockIdx.x * blockDim.x + threadIdx.x;
  const int64_t set = (turn % 2) * kRanks * buffers.slot_bytes;

  Unit<T> next;
  if (start < num_units) next = message.Load(start);
  // Asked in the loop, too: no load of the first round waits for that of this.
  for (int unit = start; unit < num_units && !stopped; unit += stride) {
    const uint4 words = WithoutEmptyWords(next.words);
    const int64_t place =
        set + rank * buffers.slot_bytes + int64_t{unit} * kUnitBytes;
#pragma unroll
    for (int i = 1; i < kRanks; ++i)
      StoreShared(buffers.slots[RankAfter<kRanks>(rank, i)] + place, words);
    if (unit + stride < num_units) next = message.Load(unit + stride);
  }
  if (stopped) return;

  std::byte* const own = buffers.slots[rank] + set;
  const int lane = threadIdx.x % kWarpSize;
  // A warp goes on together: each of its rounds ends when all its units are
  // there.
  for (int first = start - lane; first < num_units; first += stride) {
    const int unit = first + lane;
    const bool active = unit < num_units;
    std::byte* const place = own + int64_t{unit} * kUnitBytes;
    Unit<T> mine, in[kRanks];
    if (active) mine = message.Load(unit);
    for (int looks = 1;; ++looks) {
      const bool ready =
          !active || LookAtAll(place, buffers.slot_bytes, rank, in);
      if (__all_sync(kFullWarp, ready)) break;
      if (looks % kLooksPerStop == 0 && StopAsked(buffers)) return;
    }
    if (!active) continue;
    message.Store(unit, SumOf(in, rank, mine));
#pragma unroll
    for (int i = 1; i < kRanks; ++i)
      StoreEmpty(place + RankAfter<kRanks>(rank, i) * buffers.slot_bytes);
  }

  __syncthreads();
  EndTurn(state, turn);
}

// Two shots. A thread has the units of the same number in all shares: it sends
// its peers theirs, sums that of its rank, and takes their sums.
template <typename T, int kRanks, bool kWhole>
__global__ void __launch_bounds__(kMaxThreads) PeerReduceTwoShotKernel(
    const __grid_constant__ PeerBuffers buffers,
    const __grid_constant__ Message<T, kWhole> message) {
  GridTrigger();
  GridWait();
  PeerState* const state = buffers.state;
  const uint32_t turn = state->turn[blockIdx.x];
  const bool stopped = state->stopped != 0;
  const int rank = buffers.rank;
  const int num_units = message.num_units();
  const int share = ShareOf(num_units, kRanks);
  const int stride = gridDim.x * blockDim.x;
  const int start = blockIdx.x * blockDim.x + threadIdx.x;
  const int64_t set = (turn % 2) * kRanks * buffers.slot_bytes;
  const int64_t sent = set + rank * buffers.slot_bytes;
  // Unit `number` of a rank's share, or -1 if that is shorter.
  const auto unit_of = [&](int r, int number) {
    const int unit = r * share + number;
    return number < share && unit < num_units ? unit : -1;
  };

  Unit<T> next[kRanks];  // [i]: for the peer `i` ranks on
  const auto load = [&](int number) {
#pragma unroll
    for (int i = 1; i < kRanks; ++i) {
      const int unit = unit_of(RankAfter<kRanks>(rank, i), number);
      if (unit >= 0) next[i] = message.Load(unit);
    }
  };
  load(start);
  for (int number = start; number < share && !stopped; number += stride) {
#pragma unroll
    for (int i = 1; i < kRanks; ++i) {
      const int peer = RankAfter<kRanks>(rank, i);
      const int unit = unit_of(peer, number);
      if (unit < 0) continue;
      StoreShared(buffers.slots[peer] + sent + int64_t{unit} * kUnitBytes,
                  WithoutEmptyWords(next[i].words));
    }
    load(number + stride);
  }
  if (stopped) return;

  std::byte* const own = buffers.slots[rank] + set;
  const int lane = threadIdx.x % kWarpSize;
  for (int first = start - lane; first < share; first += stride) {
    const int unit = unit_of(rank, first + lane);
    const bool active = unit >= 0;
    std::byte* const place = own + int64_t{unit} * kUnitBytes;
    Unit<T> mine, in[kRanks];
    if (active) mine = message.Load(unit);
    for (int looks = 1;; ++looks) {
      const bool ready =
          !active || LookAtAll(place, buffers.slot_bytes, rank, in);
      if (__all_sync(kFullWarp, ready)) break;
      if (looks % kLooksPerStop == 0 && StopAsked(buffers)) return;
    }
    if (!active) continue;
    Unit<T> sum = SumOf(in, rank, mine);
    sum.words = WithoutEmptyWords(sum.words);
#pragma unroll
    for (int i = 1; i < kRanks; ++i) {
      StoreShared(buffers.slots[RankAfter<kRanks>(rank, i)] + sent +
                      int64_t{unit} * kUnitBytes,
                  sum.words);
    }
    message.Store(unit, sum);
#pragma unroll
    for (int i = 1; i < kRanks; ++i)
      StoreEmpty(place + RankAfter<kRanks>(rank, i) * buffers.slot_bytes);
  }

  for (int first = start - lane; first < share; first += stride) {
    int units[kRanks];  // that come from a rank, or -1
    std::byte* places[kRanks];
#pragma unroll
    for (int r = 0; r < kRanks; ++r) {
      units[r] = r == rank ? -1 : unit_of(r, first + lane);
      // What does not come is loaded from where something may be, in vain.
      places[r] = own + r * buffers.slot_bytes +
                  int64_t{units[r] < 0 ? 0 : units[r]} * kUnitBytes;
    }
    Unit<T> in[kRanks];
    for (int looks = 1;; ++looks) {
#pragma unroll
      for (int r = 0; r < kRanks; ++r) in[r].words = LoadShared(places[r]);
      bool ready = true;
#pragma unroll
      for (int r = 0; r < kRanks; ++r)
        ready &= units[r] < 0 || !HasEmptyWord(in[r].words);
      if (__all_sync(kFullWarp, ready)) break;
      if (looks % kLooksPerStop == 0 && StopAsked(buffers)) return;
    }
#pragma unroll
    for (int r = 0; r < kRanks; ++r) {
      if (units[r] < 0) continue;
      message.Store(units[r], in[r]);
      StoreEmpty(places[r]);
    }
  }

  __syncthreads();
  EndTurn(state, turn);
}

// Where AddRmsNorm goes on once the sum is there, in the threads that have
// columns.
__device__ __forceinline__ void AddToResidual(const float (&sum)[kNormWidth],
                                              float* residual,
                                              float (&x)[kNormWidth],
                                              float& squares) {
#pragma unroll
  for (int j = 0; j < kNormWidth; ++j) x[j] += sum[j];
  Store(residual, x);
  AddSquares(x, squares);
}
// The block's threads wait for each other in it.
template <typename O>
__device__ __forceinline__ void EndRow(const AddRmsNormArgs& args, int column,
                                       bool active, float (&x)[kNormWidth],
                                       float squares,
                                       const float (&scale)[kNormWidth],
                                       float* scratch) {
  const float norm = InverseRms(squares, static_cast<int>(args.out.cols),
                                args.epsilon, scratch);
  if (active)
    StoreNormed(RowOf<O>(args.out, blockIdx.x) + column, x, norm, scale);
}

// One shot. A block per row: it sends its row of delta, waits for those of its
// peers, and has the sum in the registers in which AddRmsNorm has the delta.
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
  if constexpr (kRanks == 2) {
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
  } else {
    // A unit at a time: all at once would not fit into the registers.
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      Unit<float> in[kRanks], own_unit;
      for (int looks = 1;; ++looks) {
        const bool ready = !active || LookAtAll(own + u * kUnitBytes,
                                                buffers.slot_bytes, rank, in);
        if (__all_sync(kFullWarp, ready)) break;
        if (looks % kLooksPerStop == 0 && StopAsked(buffers)) return;
      }
#pragma unroll
      for (int j = 0; j < kUnitColumns; ++j)
        own_unit.item[j] = mine[u * kUnitColumns + j];
      const Unit<float> total = SumOf(in, rank, own_unit);
#pragma unroll
      for (int j = 0; j < kUnitColumns; ++j)
        sum[u * kUnitColumns + j] = total.item[j];
    }
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
    AddToResidual(sum, residual + column, x, squares);
  }
  EndRow<O>(args, column, active, x, squares, scale, scratch);
  EndTurn(state, turn);
}

// Two shots. The block's first threads sum the rank's share of the row, a unit
// each, and send it to all ranks, their own included; then every thread takes
// the sums of its columns from whichever ranks have formed them.
template <typename O, int kRanks>
__global__ void __launch_bounds__(kMaxNormThreads)
    PeerReduceNormTwoShotKernel(const __grid_constant__ PeerBuffers buffers,
                                const __grid_constant__ AddRmsNormArgs args) {
  constexpr int kUnitColumns = kUnitBytes / 4;
  constexpr int kUnits = kNormWidth / kUnitColumns;  // of a thread
  __shared__ float scratch[kWarpSize];
  GridTrigger();
  const int rank = buffers.rank;
  const int hidden = static_cast<int>(args.out.cols);
  const int thread = threadIdx.x;
  const int column = thread * kNormWidth;
  const bool active = column < hidden;
  const int64_t i = blockIdx.x;
  float scale[kNormWidth];
  if (active) Load(args.weight + column, scale);
  const int64_t r = args.rows == nullptr ? i : args.rows[i];
  const int64_t d = args.delta_rows == nullptr ? i : args.delta_rows[i];
  const float* const delta = RowOf<float>(args.delta, d);
  float* const residual = RowOf<float>(args.residual, r);
  const int num_units = hidden / kUnitColumns;
  // No more than threads, since these have two units each, or one line.
  const int share = ShareOf(num_units, kRanks);
  const int sum_unit = rank * share + thread;
  const bool sums = thread < share && sum_unit < num_units;
  // What the thread sends is not what it adds up: a warp's stores to the peers
  // are of whole lines.
  int sent_units[kUnits], receivers[kUnits];
  int64_t sum_places[kUnits];  // of the thread's columns, in a row of a set
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    sent_units[u] = u * blockDim.x + thread;
    receivers[u] = sent_units[u] / share;
    const int unit = thread * kUnits + u;
    sum_places[u] =
        unit / share * buffers.slot_bytes + int64_t{unit} * kUnitBytes;
  }
  GridWait();
  PeerState* const state = buffers.state;
  const uint32_t turn = state->turn[i];
  // Asked below, once: a branch here would have the loads wait for this one.
  const bool stopped = state->stopped != 0;
  Unit<float> sent[kUnits], mine;
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    if (sent_units[u] < num_units)
      sent[u].words = reinterpret_cast<const uint4*>(delta)[sent_units[u]];
  }
  if (sums) mine.words = reinterpret_cast<const uint4*>(delta)[sum_unit];
  // Of the row in a message.
  const int64_t row = (turn % 2) * kRanks * buffers.slot_bytes +
                      i * hidden * static_cast<int64_t>(sizeof(float));
#pragma unroll
  for (int u = 0; u < kUnits; ++u) {
    if (stopped || sent_units[u] >= num_units || receivers[u] == rank) continue;
    StoreShared(buffers.slots[receivers[u]] + row + rank * buffers.slot_bytes +
                    int64_t{sent_units[u]} * kUnitBytes,
                WithoutEmptyWords(sent[u].words));
  }
  if (stopped) return;

  std::byte* const own = buffers.slots[rank] + row;
  if (thread / kWarpSize * kWarpSize < share) {
    std::byte* const place = own + int64_t{sum_unit} * kUnitBytes;
    Unit<float> in[kRanks];
    for (int looks = 1;; ++looks) {
      const bool ready =
          !sums || LookAtAll(place, buffers.slot_bytes, rank, in);
      if (__all_sync(kFullWarp, ready)) break;
      if (looks % kLooksPerStop == 0 && StopAsked(buffers)) return;
    }
    if (sums) {
      const uint4 words = WithoutEmptyWords(SumOf(in, rank, mine).words);
#pragma unroll
      for (int p = 1; p <= kRanks; ++p) {
        StoreShared(buffers.slots[RankAfter<kRanks>(rank, p)] + row +
                        rank * buffers.slot_bytes +
                        int64_t{sum_unit} * kUnitBytes,
                    words);
      }
#pragma unroll
      for (int p = 1; p < kRanks; ++p)
        StoreEmpty(place + RankAfter<kRanks>(rank, p) * buffers.slot_bytes);
    }
  }

  float x[kNormWidth];
  if (active) Load(residual + column, x);
  Unit<float> in[kUnits];
  for (int looks = 1;; ++looks) {
    bool ready = true;
    if (active) {
#pragma unroll
      for (int u = 0; u < kUnits; ++u)
        in[u].words = LoadShared(own + sum_places[u]);
#pragma unroll
      for (int u = 0; u < kUnits; ++u) ready &= !HasEmptyWord(in[u].words);
    }
    if (__all_sync(kFullWarp, ready)) break;
    if (looks % kLooksPerStop == 0 && StopAsked(buffers)) return;
  }

  float squares = 0;
  if (active) {
    float sum[kNormWidth];
#pragma unroll
    for (int j = 0; j < kNormWidth; ++j)
      sum[j] = in[j / kUnitColumns].item[j % kUnitColumns];
    AddToResidual(sum, residual + column, x, squares);
#pragma unroll
    for (int u = 0; u < kUnits; ++u) StoreEmpty(own + sum_places[u]);
  }
  EndRow<O>(args, column, active, x, squares, scale, scratch);
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

// The kernel of more ranks than two, or of two shots.
template <typename T, bool kWhole>
absl::Status LaunchOn(const PeerBuffers& buffers,
                      const Message<T, kWhole>& message, bool two_shots,
                      cudaStream_t stream, const PeerShape& shape) {
  const int ranks = buffers.world_size;
  auto* const kernel =
      two_shots ? (ranks == 2   ? PeerReduceTwoShotKernel<T, 2, kWhole>
                   : ranks == 4 ? PeerReduceTwoShotKernel<T, 4, kWhole>
                                : PeerReduceTwoShotKernel<T, 8, kWhole>)
                : (ranks == 4 ? PeerReduceKernel<T, 4, kWhole>
                              : PeerReduceKernel<T, 8, kWhole>);
  const int num_units = static_cast<int>(
      CeilDiv(message.n * static_cast<int64_t>(sizeof(T)), kUnitBytes));
  // Of a thread each.
  const int64_t work = two_shots ? ShareOf(num_units, ranks) : num_units;
  // What a thread sends and looks at grows with the ranks, so few units are
  // better off on many SMs.
  int threads = shape.threads;
  while (threads > kMinThreads && threads % (2 * kWarpSize) == 0 &&
         CeilDiv(work, threads / 2) <=
             std::min(kSpreadBlocks, shape.max_blocks)) {
    threads /= 2;
  }
  const int64_t blocks =
      std::min<int64_t>(CeilDiv(work, threads), shape.max_blocks);
  return LaunchBlocks("launch of PeerReduce", blocks, threads, stream, kernel,
                      buffers, message);
}

template <typename T>
absl::Status LaunchFor(const PeerBuffers& buffers, void* x, int64_t n,
                       cudaStream_t stream, const PeerShape& shape) {
  const int64_t bytes = n * static_cast<int64_t>(sizeof(T));
  const bool aligned = reinterpret_cast<uintptr_t>(x) % kUnitBytes == 0;
  T* const typed = static_cast<T*>(x);
  const bool two_shots =
      PeerFormOf(shape.form, PeerMessage::kSum, buffers.world_size, bytes) ==
      PeerForm::kTwoShot;
  if (buffers.world_size > 2 || two_shots) {
    return aligned && bytes % kUnitBytes == 0
               ? LaunchOn(buffers, Message<T, true>{typed, n, aligned},
                          two_shots, stream, shape)
               : LaunchOn(buffers, Message<T, false>{typed, n, aligned},
                          two_shots, stream, shape);
  }
  const int64_t blocks = std::min<int64_t>(
      CeilDiv(CeilDiv(bytes, kUnitBytes), shape.threads), shape.max_blocks);
  return LaunchBlocks("launch of PeerReduce", blocks, shape.threads, stream,
                      PairReduceKernel<T>, buffers, typed, n, aligned);
}

template <typename O>
absl::Status LaunchNormFor(const PeerBuffers& buffers,
                           const AddRmsNormArgs& args, cudaStream_t stream,
                           PeerForm form) {
  const int ranks = buffers.world_size;
  const int64_t bytes =
      args.out.rows * args.out.cols * static_cast<int64_t>(sizeof(float));
  auto* const kernel = PeerFormOf(form, PeerMessage::kSumAndNorm, ranks,
                                  bytes) == PeerForm::kTwoShot
                           ? (ranks == 2   ? PeerReduceNormTwoShotKernel<O, 2>
                              : ranks == 4 ? PeerReduceNormTwoShotKernel<O, 4>
                                           : PeerReduceNormTwoShotKernel<O, 8>)
                           : (ranks == 2   ? PeerReduceNormKernel<O, 2>
                              : ranks == 4 ? PeerReduceNormKernel<O, 4>
                                           : PeerReduceNormKernel<O, 8>);
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
  SY_CHECK(buffers.slot_bytes < int64_t{1} << 31);  // units are ints
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
                                  cudaStream_t stream, PeerForm form) {
  SY_CHECK(buffers.world_size == 2 || buffers.world_size == 4 ||
           buffers.world_size == 8);
  SY_CHECK(CanReduceNorm(buffers, args));
  SY_CHECK(AlignedTo(args.delta, kUnitBytes) &&
           AlignedTo(args.residual, kUnitBytes) &&
           AlignedTo(args.out, kUnitBytes) &&
           reinterpret_cast<uintptr_t>(args.weight) % kUnitBytes == 0);
  return args.out.dtype == DType::kF32
             ? LaunchNormFor<float>(buffers, args, stream, form)
             : LaunchNormFor<bf16>(buffers, args, stream, form);
}

}  // namespace switchyard
