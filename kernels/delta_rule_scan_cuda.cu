#include "kernels/cuda_bulk.h"
#include "kernels/cuda_common.h"
#include "kernels/cuda_paging.h"
#include "kernels/delta_rule_chunk_cuda.h"

namespace switchyard::internal {
namespace {

using namespace switchyard::cuda;

constexpr int kTokens = DeltaChunks::kTokens;
constexpr int kDim = DeltaChunks::kDim;
constexpr int kTokenBlocks = DeltaChunks::kTokenBlocks;
constexpr int kDimBlocks = DeltaChunks::kDimBlocks;
constexpr int kColumns = 16;  // of a pair of warps
constexpr int kHandOvers = 2;

struct ScanParams {
  DeltaChunks chunks;
  const int32_t* token_offsets;
  SlotTable state;
  int32_t num_value_heads, num_key_heads;
  MatrixView out;
  uint32_t zero;  // 0, which the compiler does not know
};

// One chunk in shared memory.
template <int Pairs>
struct Stage {
  uint4 w[kTokenBlocks][kDimBlocks][kWarpSize];
  uint4 p[kTokenBlocks * (kTokenBlocks + 1) / 2][kWarpSize];
  uint4 q[kTokenBlocks][kDimBlocks][kWarpSize];
  uint4 k[kDimBlocks][kTokenBlocks][kWarpSize];
  uint4 u[Pairs][kTokenBlocks][kWarpSize];
  float scale[DeltaChunks::kScaleFloats];
};

// What a pair's first warp hands its second: operands that it needed itself.
struct HandOver {
  uint4 s[kDimBlocks][kWarpSize];    // S^T before the chunk
  uint4 n[kTokenBlocks][kWarpSize];  // N^T
};

template <int Pairs>
struct Shared {
  static constexpr int kStages = Pairs <= 2 ? 3 : 2;
  Stage<Pairs> stages[kStages];
  HandOver hand_overs[Pairs][kHandOvers];
  uint64_t full[kStages];
  uint64_t empty[kStages];
  uint64_t handed[Pairs][kHandOvers];
  uint64_t taken[Pairs][kHandOvers];
};

// d += a * b^T for a 16 x 16 block b; d are the accumulators of b's rows 0-7
// and 8-15.
__device__ __forceinline__ void MultiplyBlock(const uint32_t (&a)[4],
                                              const uint4& b, float (&low)[4],
                                              float (&high)[4]) {
  Mma(low, a[0], a[1], a[2], a[3], b.x, b.z);
  Mma(high, a[0], a[1], a[2], a[3], b.y, b.w);
}

__device__ __forceinline__ void MultiplyBlock(const uint4& a, const uint4& b,
                                              float (&low)[4],
                                              float (&high)[4]) {
  const uint32_t words[4] = {a.x, a.y, a.z, a.w};
  MultiplyBlock(words, b, low, high);
}

// Two adjacent accumulators as an A operand.
__device__ __forceinline__ uint4 PackOperand(const float (&low)[4],
                                             const float (&high)[4]) {
  return make_uint4(PackBf16(low[0], low[1]), PackBf16(low[2], low[3]),
                    PackBf16(high[0], high[1]), PackBf16(high[2], high[3]));
}

// Multiplies the columns of a transposed [16, 64] accumulator by scale[64].
__device__ __forceinline__ void ScaleTokens(float (&x)[2 * kTokenBlocks][4],
                                            const float* scale) {
  const int pair = threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < 2 * kTokenBlocks; ++i) {
    const float2 s = *reinterpret_cast<const float2*>(&scale[i * 8 + pair]);
    x[i][0] *= s.x, x[i][1] *= s.y, x[i][2] *= s.x, x[i][3] *= s.y;
  }
}

// The first warp's part of a chunk: N, and the state after it. Rows are 16
// value columns; s[i] holds channels 8i..8i+7. Calls handed_over() once
// `to_second` is written.
template <bool PerChannel, int Pairs, typename F>
__device__ __forceinline__ void AdvanceState(const Stage<Pairs>& stage,
                                             int pair_index,
                                             HandOver& to_second,
                                             float (&s)[2 * kDimBlocks][4],
                                             F&& handed_over) {
  const int lane = threadIdx.x % kWarpSize, pair = lane % 4 * 2;
  // N^T = U^T - S^T W^T
  float n[2 * kTokenBlocks][4] = {};
#pragma unroll
  for (int c = 0; c < kDimBlocks; ++c) {
    const uint4 a = PackOperand(s[2 * c], s[2 * c + 1]);
    to_second.s[c][lane] = a;
#pragma unroll
    for (int r = 0; r < kTokenBlocks; ++r)
      MultiplyBlock(a, stage.w[r][c][lane], n[2 * r], n[2 * r + 1]);
  }
  uint4 a[kTokenBlocks];
#pragma unroll
  for (int r = 0; r < kTokenBlocks; ++r) {
    const uint4 u = stage.u[pair_index][r][lane];
    const float2 u0 = UnpackBf16(u.x), u1 = UnpackBf16(u.y),
                 u2 = UnpackBf16(u.z), u3 = UnpackBf16(u.w);
    float(&low)[4] = n[2 * r], (&high)[4] = n[2 * r + 1];
    low[0] = u0.x - low[0], low[1] = u0.y - low[1];
    low[2] = u1.x - low[2], low[3] = u1.y - low[3];
    high[0] = u2.x - high[0], high[1] = u2.y - high[1];
    high[2] = u3.x - high[2], high[3] = u3.y - high[3];
    a[r] = PackOperand(low, high);
    to_second.n[r][lane] = a[r];
  }
  handed_over();

  // S^T = S^T d + N^T K
  if constexpr (PerChannel) {
#pragma unroll
    for (int i = 0; i < 2 * kDimBlocks; ++i) {
      const float2 d =
          *reinterpret_cast<const float2*>(&stage.scale[i * 8 + pair]);
      s[i][0] *= d.x, s[i][1] *= d.y, s[i][2] *= d.x, s[i][3] *= d.y;
    }
  } else {
    const float d = stage.scale[2 * kTokens];
#pragma unroll
    for (int i = 0; i < 2 * kDimBlocks; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) s[i][j] *= d;
    }
    ScaleTokens(n, &stage.scale[kTokens]);
#pragma unroll
    for (int r = 0; r < kTokenBlocks; ++r)
      a[r] = PackOperand(n[2 * r], n[2 * r + 1]);
  }
#pragma unroll
  for (int r = 0; r < kTokenBlocks; ++r) {
#pragma unroll
    for (int c = 0; c < kDimBlocks; ++c)
      MultiplyBlock(a[r], stage.k[c][r][lane], s[2 * c], s[2 * c + 1]);
  }
}

// The second warp's part: O^T = S^T Q^T + N^T P^T. `out` is the first row's
// element at the pair's first column.
template <bool PerChannel, typename O, int Pairs>
__device__ __forceinline__ void WriteOutputs(const Stage<Pairs>& stage,
                                             const HandOver& from_first,
                                             int32_t num_tokens, O* out,
                                             int64_t out_stride) {
  const int lane = threadIdx.x % kWarpSize;
  const int row = lane / 4, pair = lane % 4 * 2;
  float o[2 * kTokenBlocks][4] = {};
#pragma unroll
  for (int c = 0; c < kDimBlocks; ++c) {
    const uint4 a = from_first.s[c][lane];
#pragma unroll
    for (int r = 0; r < kTokenBlocks; ++r)
      MultiplyBlock(a, stage.q[r][c][lane], o[2 * r], o[2 * r + 1]);
  }
  if constexpr (!PerChannel) ScaleTokens(o, &stage.scale[0]);
#pragma unroll
  for (int j = 0; j < kTokenBlocks; ++j) {
    const uint4 a = from_first.n[j][lane];
#pragma unroll
    for (int r = j; r < kTokenBlocks; ++r)
      MultiplyBlock(a, stage.p[r * (r + 1) / 2 + j][lane], o[2 * r],
                    o[2 * r + 1]);
  }
  if constexpr (sizeof(O) == 2) {
#pragma unroll
    for (int i = 0; i < 2 * kTokenBlocks; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const uint32_t values =
            TransposeMatrix(PackBf16(o[i][2 * j], o[i][2 * j + 1]));
        const int token = i * 8 + row;
        if (token < num_tokens)
          *reinterpret_cast<uint32_t*>(out + token * out_stride + j * 8 +
                                       pair) = values;
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < 2 * kTokenBlocks; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int token = i * 8 + pair + j;
        if (token < num_tokens) {
          O* to = out + token * out_stride + row;
          to[0] = FromFloat<O>(o[i][j]);
          to[8] = FromFloat<O>(o[i][j + 2]);
        }
      }
    }
  }
}

// Block (slice of columns, value head, sequence). Warps 0 .. Pairs - 1 are the
// pairs' first, then come the second ones, then the one that fetches. Every
// lane arrives at the barriers for what it has itself read or written.
template <bool PerChannel, typename O, int Pairs>
__global__ void __launch_bounds__((2 * Pairs + 1) * kWarpSize, 1)
    ScanKernel(const ScanParams p) {
  extern __shared__ __align__(128) std::byte shared_bytes[];
  auto& shared = *reinterpret_cast<Shared<Pairs>*>(shared_bytes);
  constexpr int kStages = Shared<Pairs>::kStages;
  constexpr int kSlices = kDim / (Pairs * kColumns);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int32_t slice = blockIdx.x % kSlices;
  const int32_t head = blockIdx.x / kSlices % p.num_value_heads;
  const int32_t seq =
      p.chunks.first_seq + blockIdx.x / kSlices / p.num_value_heads;
  GridTrigger();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      InitBarrier(&shared.full[i], 1);
      InitBarrier(&shared.empty[i], 2 * Pairs * kWarpSize);
    }
    for (int pair = 0; pair < Pairs; ++pair) {
      for (int i = 0; i < kHandOvers; ++i) {
        InitBarrier(&shared.handed[pair][i], kWarpSize);
        InitBarrier(&shared.taken[pair][i], kWarpSize);
      }
    }
    FenceBarrierInit();
  }
  __syncthreads();
  GridWait();

  // The sequence's tiles in this launch, relative to the launch's first.
  const int32_t begin = p.token_offsets[seq], end = p.token_offsets[seq + 1];
  const int32_t seq_tile =
      (begin - p.token_offsets[p.chunks.first_seq]) / kTokens +
      (seq - p.chunks.first_seq) - p.chunks.first_tile;
  const int32_t first = max(seq_tile, 0);
  const int32_t last =
      min(seq_tile + (end - begin + kTokens - 1) / kTokens, p.chunks.num_tiles);
  if (first >= last) return;

  if (warp == 2 * Pairs) {
    if (!ElectThread()) return;
    const int32_t key_head = head / (p.num_value_heads / p.num_key_heads);
    for (int32_t tile = first; tile < last; ++tile) {
      const int turn = tile - first, at = turn % kStages;
      if (turn >= kStages)
        WaitBarrier(&shared.empty[at], (turn / kStages - 1) % 2);
      Stage<Pairs>& stage = shared.stages[at];
      uint64_t* full = &shared.full[at];
      const std::byte* of_head =
          p.chunks.heads +
          (int64_t{tile} * p.num_value_heads + head) * DeltaChunks::kHeadBytes;
      const std::byte* of_key =
          p.chunks.keys +
          (int64_t{tile} * p.num_key_heads + key_head) * DeltaChunks::kKeyBytes;
      constexpr int kWP = DeltaChunks::kWBytes + DeltaChunks::kPBytes;
      constexpr int kSliceBytes = sizeof(stage.u);
      ArriveExpect(full, kWP + DeltaChunks::kKeyBytes + kSliceBytes +
                             DeltaChunks::kScaleBytes);
      CopyBulkToShared(&stage.w, of_head, kWP, full);
      CopyBulkToShared(&stage.q, of_key, DeltaChunks::kKeyBytes, full);
      CopyBulkToShared(&stage.u,
                       of_head + DeltaChunks::kUOffset + slice * kSliceBytes,
                       kSliceBytes, full);
      CopyBulkToShared(&stage.scale, of_head + DeltaChunks::kScaleOffset,
                       DeltaChunks::kScaleBytes, full);
    }
    return;
  }

  const int pair_index = warp % Pairs;
  const int32_t column = (slice * Pairs + pair_index) * kColumns;
  if (warp >= Pairs) {
    for (int32_t tile = first; tile < last; ++tile) {
      const int turn = tile - first, at = turn % kStages;
      const int hand = turn % kHandOvers;
      const int32_t token = begin + (tile - seq_tile) * kTokens;
      WaitBarrier(&shared.full[at], turn / kStages % 2);
      WaitBarrier(&shared.handed[pair_index][hand], turn / kHandOvers % 2);
      WriteOutputs<PerChannel, O>(
          shared.stages[at], shared.hand_overs[pair_index][hand],
          min(kTokens, end - token),
          RowOf<O>(p.out, token) + int64_t{head} * kDim + column,
          p.out.row_stride);
      // The outputs are stored, so everything they come from has arrived.
      Arrive(&shared.taken[pair_index][hand]);
      Arrive(&shared.empty[at]);
    }
    return;
  }

  const int row = lane / 4, pair = lane % 4 * 2;
  float* state = StateOf(p.state, seq) + int64_t{head} * kDim * kDim +
                 pair * kDim + column + row;
  float s[2 * kDimBlocks][4];
#pragma unroll
  for (int i = 0; i < 2 * kDimBlocks; ++i) {
    const float* at = state + i * 8 * kDim;
    s[i][0] = at[0], s[i][1] = at[kDim];
    s[i][2] = at[8], s[i][3] = at[kDim + 8];
  }
  for (int32_t tile = first; tile < last; ++tile) {
    const int turn = tile - first, at = turn % kStages;
    const int hand = turn % kHandOvers;
    if (turn >= kHandOvers)
      WaitBarrier(&shared.taken[pair_index][hand], (turn / kHandOvers - 1) % 2);
    WaitBarrier(&shared.full[at], turn / kStages % 2);
    AdvanceState<PerChannel>(shared.stages[at], pair_index,
                             shared.hand_overs[pair_index][hand], s,
                             [&] { Arrive(&shared.handed[pair_index][hand]); });
    // The address depends on the state, and so on every fragment of K: else the
    // compiler frees the stage while their loads are under way, and the copy
    // engine overwrites it.
    uint32_t any = 0;
#pragma unroll
    for (int i = 0; i < 2 * kDimBlocks; ++i) any |= __float_as_uint(s[i][0]);
    Arrive(&shared.empty[at] + (any & p.zero));
  }
#pragma unroll
  for (int i = 0; i < 2 * kDimBlocks; ++i) {
    float* at = state + i * 8 * kDim;
    at[0] = s[i][0], at[kDim] = s[i][1];
    at[8] = s[i][2], at[kDim + 8] = s[i][3];
  }
}

template <bool PerChannel, typename O, int Pairs>
absl::Status LaunchScan(const OpContext& context, const ScanParams& params) {
  constexpr int kSlices = kDim / (Pairs * kColumns);
  const int64_t blocks =
      int64_t{params.chunks.end_seq - params.chunks.first_seq} *
      params.num_value_heads * kSlices;
  return Launch(context, "DeltaRule (scan)", ScanKernel<PerChannel, O, Pairs>,
                {dim3(blocks), dim3((2 * Pairs + 1) * kWarpSize),
                 int64_t{sizeof(Shared<Pairs>)}},
                params);
}

template <bool PerChannel, typename O>
absl::Status DispatchPairs(const OpContext& context, const ScanParams& params) {
  // Narrow slices while there are SMs for them.
  const int64_t heads =
      int64_t{params.chunks.end_seq - params.chunks.first_seq} *
      params.num_value_heads;
  if (heads * 4 <= AsCuda(context.device)->num_sms())
    return LaunchScan<PerChannel, O, 2>(context, params);
  return LaunchScan<PerChannel, O, 4>(context, params);
}

}  // namespace

absl::Status DeltaRuleScan(const OpContext& context, const DeltaRuleArgs& args,
                           const DeltaChunks& chunks) {
  ScanParams params = {};
  params.chunks = chunks;
  params.token_offsets = args.batch.token_offsets;
  params.state = args.state;
  params.num_value_heads = args.num_value_heads;
  params.num_key_heads = args.num_key_heads;
  params.out = args.out;
  return DispatchActivation(args.out.dtype, "DeltaRule", [&](auto tag) {
    using O = typename decltype(tag)::type;
    return args.decay == DecayKind::kPerChannel
               ? DispatchPairs<true, O>(context, params)
               : DispatchPairs<false, O>(context, params);
  });
}

}  // namespace switchyard::internal
