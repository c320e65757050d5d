// Chunks of the delta rule, the part that does not depend on the state. A block
// does one chunk of one value head; its four warps share the work by row
// blocks, channel blocks or value blocks.
#include "kernels/cuda_common.h"
#include "kernels/cuda_paging.h"
#include "kernels/cuda_ptx.h"
#include "kernels/cuda_tf32.h"
#include "kernels/delta_rule_chunk_cuda.h"

namespace switchyard::internal {
namespace {

using namespace switchyard::cuda;

constexpr int kTokens = DeltaChunks::kTokens;
constexpr int kDim = DeltaChunks::kDim;
constexpr int kTokenBlocks = DeltaChunks::kTokenBlocks;
constexpr int kDimBlocks = DeltaChunks::kDimBlocks;
constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
static_assert(kWarps == kTokenBlocks && kThreads == kDim);

// Row strides against bank conflicts: of ldmatrix, and of pairs of floats.
constexpr int kRow = kDim + 8;
constexpr int kDecayRow = kDim + 8;
constexpr int kSquareRow = kTokens + 8;

using Rows = bf16[kTokens][kRow];
using Square = float[kTokens][kSquareRow];

struct PrepareParams {
  DeltaChunks chunks;
  const int32_t* token_offsets;
  int32_t num_value_heads, num_key_heads;
  MatrixView q, k, v, beta, alpha;
  const float* a_log;
  const float* dt_bias;
};

// Per token. Tokens past the end of a short chunk have beta 0 and rows of 0,
// which leave everything else as it is.
struct TokenScales {
  float beta[kTokens];
  float q[kTokens];  // 1 / |q| / sqrt(kDim)
  float k[kTokens];  // 1 / |k|
};

struct PerHeadShared {
  union {
    Rows q;
    Square t;  // once Q is used up
  };
  Rows k, v;
  Square a;
  TokenScales scales;
  float decay[kTokens];     // G
  float w_columns[kTokens];  // beta exp(G) / |k|
};

struct PerChannelShared {
  Rows q, k;  // later exp(G) Q and exp(G) K, normalised
  union {
    Rows k_right;  // see AddOffDiagonal; later exp(G_C - G) K, normalised
    Rows v;
  };
  union {
    float decay[kTokens][kDecayRow];  // G
    Square t;
  };
  Square a;
  TokenScales scales;
};

// ---- Blocks of 16 x 16 ----

__device__ __forceinline__ void LoadBlock(const Rows& x, int r, int c,
                                          uint32_t (&block)[4]) {
  const int lane = threadIdx.x % kWarpSize;
  LoadMatrix4(block, SharedAddress(&x[r * 16 + lane % 16]
                                     [c * 16 + lane / 16 * 8]));
}
// Block (c, r) of the transpose.
__device__ __forceinline__ void LoadBlockTransposed(const Rows& x, int r, int c,
                                                    uint32_t (&block)[4]) {
  const int lane = threadIdx.x % kWarpSize;
  LoadMatrix4Transposed(block,
                        SharedAddress(&x[r * 16 + lane / 16 * 8 + lane % 8]
                                        [c * 16 + lane / 8 % 2 * 8]));
}
// The block as an A operand, its columns multiplied by scale[64].
__device__ __forceinline__ void LoadSquareBlock(const Square& x, int r, int c,
                                                const float* scale,
                                                uint32_t (&block)[4]) {
  const int lane = threadIdx.x % kWarpSize;
  const int row = r * 16 + lane / 4, column = c * 16 + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int at = column + i / 2 * 8;
    const float2 value =
        *reinterpret_cast<const float2*>(&x[row + i % 2 * 8][at]);
    const float2 by = *reinterpret_cast<const float2*>(&scale[at]);
    block[i] = PackBf16(value.x * by.x, value.y * by.y);
  }
}
__device__ __forceinline__ void StoreBlock(void* blocks, int index,
                                           const uint32_t (&block)[4]) {
  static_cast<uint4*>(blocks)[index * kWarpSize + threadIdx.x % kWarpSize] =
      make_uint4(block[0], block[1], block[2], block[3]);
}
// Two adjacent accumulators.
__device__ __forceinline__ void StoreBlock(void* blocks, int index,
                                           const float (&low)[4],
                                           const float (&high)[4]) {
  const uint32_t block[4] = {PackBf16(low[0], low[1]), PackBf16(low[2], low[3]),
                             PackBf16(high[0], high[1]),
                             PackBf16(high[2], high[3])};
  StoreBlock(blocks, index, block);
}
// d += a b^T; d are the accumulators of b's rows 0-7 and 8-15.
__device__ __forceinline__ void MultiplyBlock(const uint32_t (&a)[4],
                                              const uint32_t (&b)[4],
                                              float (&low)[4],
                                              float (&high)[4]) {
  Mma(low, a[0], a[1], a[2], a[3], b[0], b[2]);
  Mma(high, a[0], a[1], a[2], a[3], b[1], b[3]);
}
__device__ __forceinline__ constexpr int TriangleIndex(int r, int s) {
  return r * (r + 1) / 2 + s;
}

// ---- Steps common to both kinds of decay ----

__device__ __forceinline__ void FetchRows(Rows& to, const MatrixView& from,
                                          const RowTile& tile, int32_t column) {
#pragma unroll 4
  for (int i = threadIdx.x; i < kTokens * (kDim / 8); i += kThreads) {
    const int row = i / (kDim / 8), at = i % (kDim / 8) * 8;
    const bool inside = row < tile.rows;
    CopyAsync16(
        SharedAddress(&to[row][at]),
        RowOf<bf16>(from, tile.row + (inside ? row : 0)) + column + at, inside);
  }
  CommitCopies();
}

__device__ __forceinline__ float SumOfSquares(const Rows& x, int row,
                                              int half) {
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    float value[8];
    Load<8>(&x[row][(i % 4 + half * 4 + i / 4 * 8) * 8], value);
#pragma unroll
    for (int j = 0; j < 8; ++j) sum += value[j] * value[j];
  }
  return sum + __shfl_xor_sync(kFullWarp, sum, 1);
}

__device__ __forceinline__ void ComputeNorms(const Rows& q, const Rows& k,
                                             TokenScales& scales) {
  const int row = threadIdx.x / 2, half = threadIdx.x % 2;
  const float q_sum = SumOfSquares(q, row, half);
  const float k_sum = SumOfSquares(k, row, half);
  if (half == 0) {
    scales.q[row] =
        rsqrtf(q_sum + 1e-6f) * rsqrtf(static_cast<float>(kDim));
    scales.k[row] = rsqrtf(k_sum + 1e-6f);
  }
}

__device__ __forceinline__ void ComputeBeta(const PrepareParams& p,
                                            const RowTile& tile, int32_t head,
                                            TokenScales& scales) {
  const int i = threadIdx.x;
  if (i >= kTokens) return;
  scales.beta[i] =
      i < tile.rows
          ? Sigmoid(LoadAs(p.beta.data, p.beta.dtype,
                           (int64_t{tile.row} + i) * p.beta.row_stride + head))
          : 0.0f;
}

// The 16 x 16 blocks of T = (I + A)^-1 on and below the diagonal; A is strictly
// lower triangular. All threads; ends with a barrier.
__device__ __forceinline__ void InvertUnitLower(const Square& a, Square& t) {
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  {
    // A diagonal block, a column per lane.
    const int origin = warp * 16, column = lane % 16;
    float x[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      float sum = i == column ? 1.0f : 0.0f;
#pragma unroll
      for (int j = 0; j < i; ++j) sum -= a[origin + i][origin + j] * x[j];
      x[i] = sum;
      if (lane < 16) t[origin + i][origin + column] = sum;
    }
  }
  __syncthreads();
  // T_rs = -T_rr sum_m A_rm T_ms, diagonal after diagonal; transposed, so that
  // the inner sum, an accumulator, can be an operand. The order of the summation
  // index is free: an operand's columns (t, t + 4) are the matrix' (2t, 2t + 1).
  const int g = lane / 4, pair = lane % 4 * 2;
#pragma unroll
  for (int distance = 1; distance < kTokenBlocks; ++distance) {
    if (warp + distance < kTokenBlocks) {
      const int r = (warp + distance) * 16, s = warp * 16;
      float inner[2][4] = {}, outer[2][4] = {};
#pragma unroll
      for (int m = 0; m < 2 * distance; ++m) {
        const int x = s + m * 8 + pair;
        const float left[4] = {t[x][s + g], t[x][s + g + 8], t[x + 1][s + g],
                               t[x + 1][s + g + 8]};
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const float right[2] = {a[r + n * 8 + g][x], a[r + n * 8 + g][x + 1]};
          MmaFp32(inner[n], left, right);
        }
      }
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const float left[4] = {inner[m][0], inner[m][2], inner[m][1],
                               inner[m][3]};
        const int x = r + m * 8 + pair;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          const float right[2] = {t[r + n * 8 + g][x], t[r + n * 8 + g][x + 1]};
          MmaFp32(outer[n], left, right);
        }
      }
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int row = r + n * 8 + pair;
        t[row][s + g] = -outer[n][0];
        t[row + 1][s + g] = -outer[n][1];
        t[row][s + g + 8] = -outer[n][2];
        t[row + 1][s + g + 8] = -outer[n][3];
      }
    }
    __syncthreads();
  }
}

// W = T diag(columns) K for channel blocks 2 warp and 2 warp + 1; K^T also to
// `k_transposed` unless it is null.
__device__ __forceinline__ void ComputeW(const Square& t, const float* columns,
                                         const Rows& k, std::byte* w,
                                         std::byte* k_transposed) {
  const int warp = threadIdx.x / kWarpSize;
  float d[kTokenBlocks][4][4] = {};
#pragma unroll
  for (int s = 0; s < kTokenBlocks; ++s) {
    uint32_t right[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int c = 2 * warp + i;
      LoadBlockTransposed(k, s, c, right[i]);
      if (k_transposed != nullptr)
        StoreBlock(k_transposed, c * kTokenBlocks + s, right[i]);
    }
#pragma unroll
    for (int r = s; r < kTokenBlocks; ++r) {
      uint32_t left[4];
      LoadSquareBlock(t, r, s, columns, left);
#pragma unroll
      for (int i = 0; i < 2; ++i)
        MultiplyBlock(left, right[i], d[r][2 * i], d[r][2 * i + 1]);
    }
  }
#pragma unroll
  for (int r = 0; r < kTokenBlocks; ++r) {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      StoreBlock(w, r * kDimBlocks + 2 * warp + i, d[r][2 * i],
                 d[r][2 * i + 1]);
  }
}

// U^T = V^T diag(beta) T^T for value blocks 2 warp and 2 warp + 1.
__device__ __forceinline__ void ComputeU(const Square& t, const float* beta,
                                         const Rows& v, std::byte* u) {
  const int warp = threadIdx.x / kWarpSize;
  float d[2][2 * kTokenBlocks][4] = {};
#pragma unroll
  for (int s = 0; s < kTokenBlocks; ++s) {
    uint32_t left[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i)
      LoadBlockTransposed(v, s, 2 * warp + i, left[i]);
#pragma unroll
    for (int r = s; r < kTokenBlocks; ++r) {
      uint32_t right[4];
      LoadSquareBlock(t, r, s, beta, right);
#pragma unroll
      for (int i = 0; i < 2; ++i)
        MultiplyBlock(left[i], right, d[i][2 * r], d[i][2 * r + 1]);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int r = 0; r < kTokenBlocks; ++r)
      StoreBlock(u, (2 * warp + i) * kTokenBlocks + r, d[i][2 * r],
                 d[i][2 * r + 1]);
  }
}

// Where a block's results go.
struct Destination {
  std::byte* head;  // DeltaChunks::kHeadBytes
  std::byte* key;   // DeltaChunks::kKeyBytes; null: another head writes it
};

__device__ __forceinline__ Destination DestinationOf(const PrepareParams& p,
                                                     int32_t tile,
                                                     int32_t head) {
  const int32_t ratio = p.num_value_heads / p.num_key_heads;
  const int64_t index = int64_t{tile} * p.num_value_heads + head;
  const int64_t key_index = int64_t{tile} * p.num_key_heads + head / ratio;
  return {p.chunks.heads + index * DeltaChunks::kHeadBytes,
          head % ratio == 0
              ? p.chunks.keys + key_index * DeltaChunks::kKeyBytes
              : nullptr};
}

// ---- One decay per head ----

// G, by an inclusive sum over the tokens. Threads of the first two warps.
__device__ __forceinline__ void SumDecays(const PrepareParams& p,
                                          const RowTile& tile, int32_t head,
                                          float* decay) {
  const int i = threadIdx.x, lane = i % kWarpSize;
  float g = 0;
  if (i < tile.rows) {
    g = -expf(p.a_log[head]) *
        Softplus(LoadAs(p.alpha.data, p.alpha.dtype,
                        (int64_t{tile.row} + i) * p.alpha.row_stride + head) +
                 p.dt_bias[head]);
  }
#pragma unroll
  for (int delta = 1; delta < kWarpSize; delta *= 2) {
    const float before = __shfl_up_sync(kFullWarp, g, delta);
    if (lane >= delta) g += before;
  }
  decay[i] = g;  // of the second warp: without the first one's
}

// Rows 16 warp .. 16 warp + 15 of A (to shared memory) and P, and of Q.
__device__ __forceinline__ void ComputePerHeadProducts(
    PerHeadShared& x, const Destination& to) {
  const int r = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  float kk[2 * kTokenBlocks][4] = {}, qk[2 * kTokenBlocks][4] = {};
#pragma unroll
  for (int c = 0; c < kDimBlocks; ++c) {
    uint32_t k_left[4], q_left[4];
    LoadBlock(x.k, r, c, k_left);
    LoadBlock(x.q, r, c, q_left);
    if (to.key != nullptr) StoreBlock(to.key, r * kDimBlocks + c, q_left);
#pragma unroll
    for (int s = 0; s < kTokenBlocks; ++s) {
      if (s > r) continue;
      uint32_t right[4];
      LoadBlock(x.k, s, c, right);
      MultiplyBlock(k_left, right, kk[2 * s], kk[2 * s + 1]);
      MultiplyBlock(q_left, right, qk[2 * s], qk[2 * s + 1]);
    }
  }
#pragma unroll
  for (int s = 0; s < kTokenBlocks; ++s) {
    if (s > r) continue;
#pragma unroll
    for (int tile = 2 * s; tile < 2 * s + 2; ++tile) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = r * 16 + lane / 4 + e / 2 * 8;
        const int j = tile * 8 + lane % 4 * 2 + e % 2;
        const float factor =
            j <= i ? __expf(x.decay[i] - x.decay[j]) * x.scales.k[j] : 0.0f;
        const float of_a = x.scales.beta[i] * x.scales.k[i] * factor;
        x.a[i][j] = j < i ? kk[tile][e] * of_a : 0.0f;
        qk[tile][e] *= x.scales.q[i] * factor;
      }
    }
    StoreBlock(to.head + DeltaChunks::kPOffset, TriangleIndex(r, s), qk[2 * s],
               qk[2 * s + 1]);
  }
}

// Block (value head, tile).
__global__ void __launch_bounds__(kThreads, 3)
    PreparePerHeadKernel(const PrepareParams p) {
  extern __shared__ __align__(128) std::byte shared_bytes[];
  auto& x = *reinterpret_cast<PerHeadShared*>(shared_bytes);
  GridTrigger();
  GridWait();
  const int32_t head = blockIdx.x;
  const RowTile tile =
      FindTile(p.token_offsets, p.chunks.first_seq, p.chunks.end_seq, kTokens,
               p.chunks.first_tile + blockIdx.y);
  if (tile.rows == 0) return;
  const Destination to = DestinationOf(p, blockIdx.y, head);
  const int32_t key_column =
      head / (p.num_value_heads / p.num_key_heads) * kDim;
  FetchRows(x.q, p.q, tile, key_column);
  FetchRows(x.k, p.k, tile, key_column);
  FetchRows(x.v, p.v, tile, head * kDim);
  const int i = threadIdx.x;
  ComputeBeta(p, tile, head, x.scales);
  if (i < kTokens) SumDecays(p, tile, head, x.decay);
  WaitCopies<1>();
  __syncthreads();
  const float of_first_warp = x.decay[kWarpSize - 1];
  ComputeNorms(x.q, x.k, x.scales);
  __syncthreads();
  if (i >= kWarpSize && i < kTokens) x.decay[i] += of_first_warp;
  __syncthreads();

  if (i < kTokens) {
    const float last = x.decay[kTokens - 1], here = x.decay[i];
    x.w_columns[i] = x.scales.beta[i] * __expf(here) * x.scales.k[i];
    float* scale =
        reinterpret_cast<float*>(to.head + DeltaChunks::kScaleOffset);
    scale[i] = __expf(here) * x.scales.q[i];
    scale[kTokens + i] = __expf(last - here) * x.scales.k[i];
    if (i < 4) scale[2 * kTokens + i] = __expf(last);
  }
  ComputePerHeadProducts(x, to);
  __syncthreads();
  InvertUnitLower(x.a, x.t);
  ComputeW(x.t, x.w_columns, x.k, to.head,
           to.key == nullptr ? nullptr : to.key + DeltaChunks::kQBytes);
  WaitCopies<0>();
  __syncthreads();
  ComputeU(x.t, x.scales.beta, x.v, to.head + DeltaChunks::kUOffset);
}

// ---- One decay per channel ----

// G of one channel, a thread each.
__device__ __forceinline__ void SumChannelDecays(const PrepareParams& p,
                                                 const RowTile& tile,
                                                 int32_t head,
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
      alpha[i] = first + i < tile.rows
                     ? LoadAs(p.alpha.data, p.alpha.dtype,
                              (int64_t{tile.row} + first + i) *
                                      p.alpha.row_stride +
                                  channel)
                     : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i < tile.rows) sum += minus_a * Softplus(alpha[i] + bias);
      x.decay[first + i][c] = sum;
    }
  }
}

// Calls f(token, channel) for pairs of channels, all of each thread's own.
template <typename F>
__device__ __forceinline__ void ForEachPair(int num_tokens, F&& f) {
  const int channel = threadIdx.x % (kDim / 2) * 2;
#pragma unroll 4
  for (int i = threadIdx.x / (kDim / 2); i < num_tokens; i += 2) f(i, channel);
}
__device__ __forceinline__ uint32_t& PairAt(Rows& x, int token, int channel) {
  return *reinterpret_cast<uint32_t*>(&x[token][channel]);
}
__device__ __forceinline__ float2 DecayAt(const PerChannelShared& x, int token,
                                          int channel) {
  return *reinterpret_cast<const float2*>(&x.decay[token][channel]);
}
__device__ __forceinline__ uint32_t ScalePair(uint32_t pair, float x, float y) {
  const float2 value = UnpackBf16(pair);
  return PackBf16(value.x * x, value.y * y);
}

// Blocks (r, s < r) of A and P. With E the G at the end of block s, exp(G_i -
// G_j) = exp(G_i - E) exp(E - G_j), both at most 1; k_right holds k_j exp(E -
// G_j).
__device__ __forceinline__ void ComputeOffDiagonal(PerChannelShared& x, int r,
                                                   int s,
                                                   const Destination& to) {
  const int lane = threadIdx.x % kWarpSize;
  float kk[2][4] = {}, qk[2][4] = {};
#pragma unroll 2
  for (int c = 0; c < kDimBlocks; ++c) {
    uint32_t k_left[4], q_left[4], right[4];
    LoadBlock(x.k, r, c, k_left);
    LoadBlock(x.q, r, c, q_left);
    LoadBlock(x.k_right, s, c, right);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int token = r * 16 + lane / 4 + i % 2 * 8;
      const int channel = c * 16 + lane % 4 * 2 + i / 2 * 8;
      const float2 here = DecayAt(x, token, channel);
      const float2 end = DecayAt(x, s * 16 + 15, channel);
      const float low = __expf(here.x - end.x), high = __expf(here.y - end.y);
      k_left[i] = ScalePair(k_left[i], low, high);
      q_left[i] = ScalePair(q_left[i], low, high);
    }
    MultiplyBlock(k_left, right, kk[0], kk[1]);
    MultiplyBlock(q_left, right, qk[0], qk[1]);
  }
#pragma unroll
  for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int i = r * 16 + lane / 4 + e / 2 * 8;
      const int j = s * 16 + tile * 8 + lane % 4 * 2 + e % 2;
      x.a[i][j] = kk[tile][e] * x.scales.beta[i] * x.scales.k[i] *
                  x.scales.k[j];
      qk[tile][e] *= x.scales.q[i] * x.scales.k[j];
    }
  }
  StoreBlock(to.head + DeltaChunks::kPOffset, TriangleIndex(r, s), qk[0],
             qk[1]);
}

// The warp's sums of values[l], to lane l, where values[l % 16] with l % 16 >=
// kCount are known to be 0.
template <int kCount>
__device__ __forceinline__ float SumTransposed(float (&values)[32]) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int width = 16; width > 0; width /= 2) {
    const bool upper = (lane & width) != 0;
#pragma unroll
    for (int i = 0; i < width; ++i) {
      if (i >= kCount) continue;
      const float keep = upper ? values[i + width] : values[i];
      const float send = upper ? values[i] : values[i + width];
      values[i] = keep + __shfl_xor_sync(kFullWarp, send, width);
    }
  }
  return values[0];
}

// Token i of the warp's block on the diagonal: row i of A and P, directly.
// since[j] = k_j exp(G_i - G_j), in the lane's four channels.
template <int i>
__device__ __forceinline__ void DiagonalRow(PerChannelShared& x, int block,
                                            const Destination& to,
                                            float (&since)[16][4]) {
  const int lane = threadIdx.x % kWarpSize;
  const int row = block * 16 + i, channel = lane * 4;
  float k[4], q[4], values[32] = {};
  Load<4>(&x.k[row][channel], k);
  Load<4>(&x.q[row][channel], q);
  if constexpr (i > 0) {
    float here[4], before[4];
    Load<4>(&x.decay[row][channel], here);
    Load<4>(&x.decay[row - 1][channel], before);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const float decay = __expf(here[c] - before[c]);
#pragma unroll
      for (int j = 0; j < i; ++j) {
        since[j][c] *= decay;
        values[j] += k[c] * since[j][c];
        values[16 + j] += q[c] * since[j][c];
      }
    }
  }
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    since[i][c] = k[c];
    values[16 + i] += q[c] * k[c];
  }
  const float sum = SumTransposed<i + 1>(values);
  const int j = lane % 16;
  const float k_scale = x.scales.k[block * 16 + j];
  if (lane < 16) {
    x.a[row][block * 16 + j] =
        j < i ? sum * k_scale * x.scales.k[row] * x.scales.beta[row] : 0.0f;
  } else {
    const int word = ((i % 8) * 4 + j % 8 / 2) * 4 + i / 8 + j / 8 * 2;
    bf16* p = reinterpret_cast<bf16*>(to.head + DeltaChunks::kPOffset +
                                      TriangleIndex(block, block) *
                                          DeltaChunks::kBlockBytes);
    p[word * 2 + j % 2] =
        FromFloat<bf16>(j <= i ? sum * k_scale * x.scales.q[row] : 0.0f);
  }
}

template <int i>
__device__ __forceinline__ void DiagonalRows(PerChannelShared& x, int block,
                                             const Destination& to,
                                             float (&since)[16][4]) {
  if constexpr (i < 16) {
    DiagonalRow<i>(x, block, to, since);
    DiagonalRows<i + 1>(x, block, to, since);
  }
}

// Block (head, tile).
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
  FetchRows(x.q, p.q, tile, head * kDim);
  FetchRows(x.k, p.k, tile, head * kDim);
  ComputeBeta(p, tile, head, x.scales);
  SumChannelDecays(p, tile, head, x);
  WaitCopies<0>();
  __syncthreads();
  ComputeNorms(x.q, x.k, x.scales);
  ForEachPair(kTokens - 16, [&](int i, int channel) {
    const float2 here = DecayAt(x, i, channel);
    const float2 end = DecayAt(x, i / 16 * 16 + 15, channel);
    PairAt(x.k_right, i, channel) =
        ScalePair(PairAt(x.k, i, channel), __expf(end.x - here.x),
                  __expf(end.y - here.y));
  });
  __syncthreads();

  float since[16][4];
  DiagonalRows<0>(x, warp, to, since);
  for (int index = warp; index < TriangleIndex(kTokenBlocks - 1, 0);
       index += kWarps) {
    const int r = index < 1 ? 1 : index < 3 ? 2 : 3;
    ComputeOffDiagonal(x, r, index - r * (r - 1) / 2, to);
  }
  __syncthreads();

  ForEachPair(kTokens, [&](int i, int channel) {
    const float2 here = DecayAt(x, i, channel);
    const float2 last = DecayAt(x, kTokens - 1, channel);
    const float2 since_start = make_float2(__expf(here.x), __expf(here.y));
    const float q_scale = x.scales.q[i], k_scale = x.scales.k[i];
    uint32_t& q = PairAt(x.q, i, channel);
    uint32_t& k = PairAt(x.k, i, channel);
    PairAt(x.k_right, i, channel) =
        ScalePair(k, __expf(last.x - here.x) * k_scale,
                  __expf(last.y - here.y) * k_scale);
    q = ScalePair(q, since_start.x * q_scale, since_start.y * q_scale);
    k = ScalePair(k, since_start.x * k_scale, since_start.y * k_scale);
  });
  reinterpret_cast<float*>(to.head + DeltaChunks::kScaleOffset)[threadIdx.x] =
      __expf(x.decay[kTokens - 1][threadIdx.x]);
  __syncthreads();

  for (int c = 0; c < kDimBlocks; ++c) {
    uint32_t block[4];
    LoadBlock(x.q, warp, c, block);
    StoreBlock(to.key, warp * kDimBlocks + c, block);
    LoadBlockTransposed(x.k_right, warp, c, block);
    StoreBlock(to.key + DeltaChunks::kQBytes, c * kTokenBlocks + warp, block);
  }
  __syncthreads();
  FetchRows(x.v, p.v, tile, head * kDim);
  InvertUnitLower(x.a, x.t);
  ComputeW(x.t, x.scales.beta, x.k, to.head, nullptr);
  WaitCopies<0>();
  __syncthreads();
  ComputeU(x.t, x.scales.beta, x.v, to.head + DeltaChunks::kUOffset);
}

}  // namespace

absl::Status DeltaRulePrepare(const OpContext& context,
                              const DeltaRuleArgs& args,
                              const DeltaChunks& chunks) {
  PrepareParams params = {};
  params.chunks = chunks;
  params.token_offsets = args.batch.token_offsets;
  params.num_value_heads = args.num_value_heads;
  params.num_key_heads = args.num_key_heads;
  params.q = args.q;
  params.k = args.k;
  params.v = args.v;
  params.beta = args.beta;
  params.alpha = args.alpha;
  params.a_log = args.a_log;
  params.dt_bias = args.dt_bias;
  const bool per_channel = args.decay == DecayKind::kPerChannel;
  const int64_t shared =
      per_channel ? sizeof(PerChannelShared) : sizeof(PerHeadShared);
  return Launch(context, "DeltaRule (prepare)",
                per_channel ? PreparePerChannelKernel : PreparePerHeadKernel,
                {dim3(args.num_value_heads, chunks.num_tiles), dim3(kThreads),
                 shared},
                params);
}

}  // namespace switchyard::internal
