#include <algorithm>

#include "kernels/check.h"
#include "worker/cuda_peer_places.h"
#include "worker/peer_reduce.h"

namespace switchyard {
namespace {

using namespace switchyard::cuda;

constexpr int kMaxThreads = 512;
// Blocks are made smaller, down to so many threads, to have up to so many.
constexpr int kMinThreads = 64;
constexpr int kSpreadBlocks = 128;

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

}  // namespace switchyard
