#include "kernels/check.h"
#include "kernels/cuda_rms_norm.h"
#include "worker/cuda_peer_places.h"
#include "worker/peer_reduce_norm.h"

namespace switchyard {
namespace {

using namespace switchyard::cuda;

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
#pragma unroll
    for (int p = 0; p < kRanks; ++p) {
      if (p == rank) continue;
#pragma unroll
      for (int u = 0; u < kUnits; ++u)
        StoreEmpty(own + p * buffers.slot_bytes + u * kUnitBytes);
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
