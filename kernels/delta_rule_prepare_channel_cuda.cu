// Chunks of the delta rule with a decay per channel, the part that does not
// depend on the state.
//
// exp(G_i - G_j) stays inside the sums over channels, and is taken apart only
// at an R between the tokens i and j, so that both exp(G_i - R) and exp(R -
// G_j) are at most 1: for blocks of 16 tokens, R is G at the end of j's block;
// inside a block, of any two tokens the later one is in the second half and the
// earlier one in the first half of one pair of 8, 4, 2 or 1 tokens, and R is G
// at the end of that first half. So every sum is a product on the tensor cores.
#include "kernels/delta_rule_prepare_cuda.h"

namespace switchyard::internal {
namespace {

using namespace switchyard::internal::prepare;

struct PerChannelShared {
  Rows q, k;  // k later exp(G) K, normalised
  union {
    Rows alpha;    // where it is bf16
    Rows k_right;  // k_j exp(R - G_j), R at the end of j's block
    Rows v;
  };
  union {
    float decay[kTokens][kRow];  // G / ln 2
    Square t;
  };
  Square a;
  TokenScales scales;
};

constexpr float kLog2E = 1.44269504f;

// 2^x, 0 where it is too small for a normal number.
__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float2 Exp2(float2 x) {
  return make_float2(Exp2(x.x), Exp2(x.y));
}
__device__ __forceinline__ float Log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float2 operator-(float2 a, float2 b) {
  return make_float2(a.x - b.x, a.y - b.y);
}
__device__ __forceinline__ float2 operator*(float2 a, float2 b) {
  return make_float2(a.x * b.x, a.y * b.y);
}
__device__ __forceinline__ float2 operator*(float2 a, float b) {
  return make_float2(a.x * b, a.y * b);
}
__device__ __forceinline__ uint32_t PackBf16(float2 x) {
  return cuda::PackBf16(x.x, x.y);
}
// 2^-|a - b|: either factor of a decay that was taken apart.
__device__ __forceinline__ float2 DecayBetween(float2 a, float2 b) {
  return make_float2(Exp2(-fabsf(a.x - b.x)), Exp2(-fabsf(a.y - b.y)));
}

// softplus(x) / ln 2, also where it is far below 1.
__device__ __forceinline__ float SoftplusLog2(float x) {
  const float e = Exp2(x * kLog2E);
  const float small = e * (1 - e * (0.5f - e * (1.0f / 3))) * kLog2E;
  const float y = e < 0.01f ? small : Log2(1 + e);
  return x > 20 ? x * kLog2E : y;
}

// G of one channel, a thread each.
template <bool InShared>
__device__ __forceinline__ void SumDecays(const PrepareParams& p,
                                          const RowTile& tile, int32_t head,
                                          PerChannelShared& x) {
  constexpr int kAhead = 16;
  const int c = threadIdx.x;
  const int64_t channel = int64_t{head} * kDim + c;
  const float minus_a = -expf(p.a_log[head]), bias = p.dt_bias[channel];
  float sum = 0;
  for (int first = 0; first < kTokens; first += kAhead) {
    float alpha[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int row = first + i;
      if constexpr (InShared) {
        alpha[i] = ToFloat(x.alpha[row][c]);
      } else {
        alpha[i] = row < tile.rows
                       ? LoadAs(p.alpha.data, p.alpha.dtype,
                                (int64_t{tile.row} + row) * p.alpha.row_stride +
                                    channel)
                       : 0.0f;
      }
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const float g = minus_a * SoftplusLog2(alpha[i] + bias);
      sum += first + i < tile.rows ? g : 0.0f;
      x.decay[first + i][c] = sum;
    }
  }
}

__device__ __forceinline__ uint32_t& PairAt(Rows& x, int token, int channel) {
  return *reinterpret_cast<uint32_t*>(&x[token][channel]);
}
__device__ __forceinline__ float2 DecayAt(const PerChannelShared& x, int token,
                                          int channel) {
  return *reinterpret_cast<const float2*>(&x.decay[token][channel]);
}

// k_right of all blocks that have others after them.
__device__ __forceinline__ void ComputeRight(PerChannelShared& x) {
  const int channel = threadIdx.x % (kDim / 2) * 2;
#pragma unroll 4
  for (int i = threadIdx.x / (kDim / 2); i < kTokens - 16; i += 2) {
    const float2 end = DecayAt(x, i / 16 * 16 + 15, channel);
    PairAt(x.k_right, i, channel) =
        PackBf16(UnpackBf16(PairAt(x.k, i, channel)) *
                 Exp2(end - DecayAt(x, i, channel)));
  }
}

// Sums of products over the channels for row block r, as accumulators.
struct BlockRowSums {
  float kk[kTokenBlocks - 1][2][4] = {};  // k_i k_j, by j's block
  float qk[kTokenBlocks - 1][2][4] = {};  // q_i k_j
  // Inside the block. [0]: tokens 8-15 after 0-7; then by width 4, 2, 1 and by
  // half. Elements 0, 1 are of k_i k_j, 2, 3 of q_i k_j; row lane / 4 of the
  // second half, column pair lane % 4 of the first.
  float near[7][4] = {};
  float same[2] = {};  // q_i k_i of rows lane / 4 and 8 more
};

// One block of 16 channels of row block r: its part of the sums, and exp(G) Q,
// exp(G) K, exp(G_C - G) K, normalised.
__device__ __forceinline__ void AddChannels(PerChannelShared& x, int r, int c,
                                            const Destination& to,
                                            BlockRowSums& sums) {
  const int lane = threadIdx.x % kWarpSize;
  const int row = lane / 4, pair = c * 16 + lane % 4 * 2;
  const auto token_of = [&](int i) { return r * 16 + row + i % 2 * 8; };
  const auto channel_of = [&](int i) { return pair + i / 2 * 8; };
  uint32_t block[4];
  float2 k[4], q[4], here[4];
  LoadBlock(x.k, r, c, block);
#pragma unroll
  for (int i = 0; i < 4; ++i) k[i] = UnpackBf16(block[i]);
  LoadBlock(x.q, r, c, block);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    q[i] = UnpackBf16(block[i]);
    here[i] = DecayAt(x, token_of(i), channel_of(i));
    sums.same[i % 2] += q[i].x * k[i].x + q[i].y * k[i].y;
  }

  // Inside the block.
  {
    uint32_t ke[4], qe[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 e =
          DecayBetween(here[i], DecayAt(x, r * 16 + 7, channel_of(i)));
      ke[i] = PackBf16(k[i] * e);
      qe[i] = PackBf16(q[i] * e);
    }
    Mma(sums.near[0], ke[1], qe[1], ke[3], qe[3], ke[0], ke[2]);
  }
#pragma unroll
  for (int level = 0; level < 3; ++level) {
    const int width = 4 >> level;
    const bool second = (row & width) != 0;
    const int end = r * 16 + (row & ~(2 * width - 1)) + width - 1;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t k_second[2], q_second[2], k_first[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int i = half + 2 * j;
        const float2 e =
            DecayBetween(here[i], DecayAt(x, end + half * 8, channel_of(i)));
        const uint32_t ke = PackBf16(k[i] * e), qe = PackBf16(q[i] * e);
        k_second[j] = second ? ke : 0;
        q_second[j] = second ? qe : 0;
        k_first[j] = second ? 0 : ke;
      }
      Mma(sums.near[1 + 2 * level + half], k_second[0], q_second[0],
          k_second[1], q_second[1], k_first[0], k_first[1]);
    }
  }

  // Against earlier blocks.
  const int last = max(r * 16 - 1, 0);  // of the block before
  float2 before[2];                     // G there; 0 at the chunk's start
#pragma unroll
  for (int j = 0; j < 2; ++j)
    before[j] =
        r == 0 ? make_float2(0, 0) : DecayAt(x, last, channel_of(2 * j));
  float2 since[4];  // exp(G_i - G at the start of the block)
#pragma unroll
  for (int i = 0; i < 4; ++i) since[i] = Exp2(here[i] - before[i / 2]);
#pragma unroll
  for (int s = 0; s < kTokenBlocks - 1; ++s) {
    if (s >= r) continue;
    uint32_t right[4], k_left[4], q_left[4];
    LoadBlock(x.k_right, s, c, right);
    float2 between[2];
#pragma unroll
    for (int j = 0; j < 2; ++j)
      between[j] = Exp2(before[j] - DecayAt(x, s * 16 + 15, channel_of(2 * j)));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 e = since[i] * between[i / 2];
      k_left[i] = PackBf16(k[i] * e);
      q_left[i] = PackBf16(q[i] * e);
    }
    MultiplyBlock(k_left, right, sums.kk[s][0], sums.kk[s][1]);
    MultiplyBlock(q_left, right, sums.qk[s][0], sums.qk[s][1]);
  }

  // What the products with the state take.
  uint32_t q_start[4], k_end[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 from_start = since[i] * Exp2(before[i / 2]);
    const float k_scale = x.scales.k[token_of(i)];
    q_start[i] = PackBf16(q[i] * from_start * x.scales.q[token_of(i)]);
    PairAt(x.k, token_of(i), channel_of(i)) =
        PackBf16(k[i] * from_start * k_scale);
    const float2 to_end =
        Exp2(DecayAt(x, kTokens - 1, channel_of(i)) - here[i]);
    k_end[i] = TransposeMatrix(PackBf16(k[i] * to_end * k_scale));
  }
  StoreBlock(to.key, r * kDimBlocks + c, q_start);
  const uint32_t transposed[4] = {k_end[0], k_end[2], k_end[1], k_end[3]};
  StoreBlock(to.key + DeltaChunks::kQBytes, c * kTokenBlocks + r, transposed);
}

// Row block r of A and P, from the sums.
__device__ __forceinline__ void FinishBlockRow(PerChannelShared& x, int r,
                                               const Destination& to,
                                               BlockRowSums& sums) {
  const int lane = threadIdx.x % kWarpSize;
  const int row = lane / 4, pair = lane % 4 * 2;
  const auto of_a = [&](int i, int j) {
    return x.scales.beta[i] * x.scales.k[i] * x.scales.k[j];
  };
  const auto of_p = [&](int i, int j) { return x.scales.q[i] * x.scales.k[j]; };
  std::byte* p = to.head + DeltaChunks::kPOffset;
#pragma unroll
  for (int s = 0; s < kTokenBlocks - 1; ++s) {
    if (s >= r) continue;
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = r * 16 + row + e / 2 * 8;
        const int j = s * 16 + tile * 8 + pair + e % 2;
        x.a[i][j] = sums.kk[s][tile][e] * of_a(i, j);
        sums.qk[s][tile][e] *= of_p(i, j);
      }
    }
    StoreBlock(p, TriangleIndex(r, s), sums.qk[s][0], sums.qk[s][1]);
  }

  float corner[2];  // of P
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const int i = r * 16 + 8 + row, j = r * 16 + pair + e;
    x.a[i][j] = sums.near[0][e] * of_a(i, j);
    corner[e] = sums.near[0][2 + e] * of_p(i, j);
  }
  float diagonal[2][2];  // of P
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float same = sums.same[half];
    same += __shfl_xor_sync(kFullWarp, same, 1);
    same += __shfl_xor_sync(kFullWarp, same, 2);
    const float(&wide)[4] = sums.near[1 + half];
    const float(&middle)[4] = sums.near[3 + half];
    const float(&narrow)[4] = sums.near[5 + half];
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int column = pair + e;
      const int i = r * 16 + half * 8 + row, j = r * 16 + half * 8 + column;
      const int differ = row ^ column;
      const float kk = (differ & 4) != 0   ? wide[e]
                       : (differ & 2) != 0 ? middle[e]
                                           : narrow[e];
      const float qk = (differ & 4) != 0   ? wide[2 + e]
                       : (differ & 2) != 0 ? middle[2 + e]
                       : differ != 0       ? narrow[2 + e]
                                           : same;
      if (column < row) x.a[i][j] = kk * of_a(i, j);
      diagonal[half][e] = column <= row ? qk * of_p(i, j) : 0.0f;
    }
  }
  const uint32_t block[4] = {cuda::PackBf16(diagonal[0][0], diagonal[0][1]),
                             cuda::PackBf16(corner[0], corner[1]), 0,
                             cuda::PackBf16(diagonal[1][0], diagonal[1][1])};
  StoreBlock(p, TriangleIndex(r, r), block);
}

// Block (head, tile).
template <bool AlphaInShared>
__global__ void __launch_bounds__(kThreads, 2)
    PreparePerChannelKernel(const PrepareParams p) {
  extern __shared__ __align__(128) std::byte shared_bytes[];
  auto& x = *reinterpret_cast<PerChannelShared*>(shared_bytes);
  GridTrigger();
  GridWait();
  const int warp = threadIdx.x / kWarpSize;
  const int32_t head = blockIdx.x;
  const RowTile tile =
      FindTile(p.token_offsets, p.chunks.first_seq, p.chunks.end_seq, kTokens,
               p.chunks.first_tile + blockIdx.y);
  if (tile.rows == 0) return;
  const Destination to = DestinationOf(p, blockIdx.y, head);
  if constexpr (AlphaInShared) FetchRows(x.alpha, p.alpha, tile, head * kDim);
  FetchRows(x.q, p.q, tile, head * kDim);
  FetchRows(x.k, p.k, tile, head * kDim);
  ComputeBeta(p, tile, head, x.scales);
  if constexpr (AlphaInShared) {
    WaitCopies<2>();
    __syncthreads();
  }
  SumDecays<AlphaInShared>(p, tile, head, x);
  WaitCopies<0>();
  __syncthreads();
  ComputeNorms(x.q, x.k, x.scales);
  ComputeRight(x);
  __syncthreads();

  BlockRowSums sums;
#pragma unroll 1
  for (int c = 0; c < kDimBlocks; ++c) AddChannels(x, warp, c, to, sums);
  FinishBlockRow(x, warp, to, sums);
  reinterpret_cast<float*>(to.head + DeltaChunks::kScaleOffset)[threadIdx.x] =
      Exp2(x.decay[kTokens - 1][threadIdx.x]);
  __syncthreads();
  FetchRows(x.v, p.v, tile, head * kDim);
  InvertUnitLower(x.a, x.t);
  ComputeW(x.t, x.scales.beta, x.k, to.head, nullptr);
  WaitCopies<0>();
  __syncthreads();
  ComputeU(x.t, x.scales.beta, x.v, to.head + DeltaChunks::kUOffset);
}

}  // namespace

namespace prepare {

absl::Status LaunchPerChannel(const OpContext& context,
                              const PrepareParams& params) {
  const bool in_shared =
      params.alpha.dtype == DType::kBF16 && AlignedTo(params.alpha, 16);
  return Launch(context, "DeltaRule (prepare)",
                in_shared ? PreparePerChannelKernel<true>
                          : PreparePerChannelKernel<false>,
                {dim3(params.num_value_heads, params.chunks.num_tiles),
                 dim3(kThreads), int64_t{sizeof(PerChannelShared)}},
                params);
}

}  // namespace prepare
}  // namespace switchyard::internal
