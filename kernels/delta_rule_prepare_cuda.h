// What the preparing kernels of both kinds of decay share: blocks of 16 x 16 as
// tensor-core operands, the rows of a chunk in shared memory, T = (I + A)^-1,
// and the products with T. A block of kThreads works on one chunk of one value
// head; its four warps share the work by row blocks, channel blocks or value
// blocks.
#ifndef SWITCHYARD_KERNELS_DELTA_RULE_PREPARE_CUDA_H_
#define SWITCHYARD_KERNELS_DELTA_RULE_PREPARE_CUDA_H_

#include "kernels/cuda_common.h"
#include "kernels/cuda_paging.h"
#include "kernels/cuda_ptx.h"
#include "kernels/cuda_tf32.h"
#include "kernels/delta_rule_chunk_cuda.h"

namespace switchyard::internal::prepare {

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

// delta_rule_prepare_channel_cuda.cu.
absl::Status LaunchPerChannel(const OpContext& context,
                              const PrepareParams& params);

// Per token. Tokens past the end of a short chunk have beta 0 and rows of 0,
// which leave everything else as it is.
struct TokenScales {
  float beta[kTokens];
  float q[kTokens];  // 1 / |q| / sqrt(kDim)
  float k[kTokens];  // 1 / |k|
};

// ---- Blocks of 16 x 16 ----

__device__ __forceinline__ void LoadBlock(const Rows& x, int r, int c,
                                          uint32_t (&block)[4]) {
  const int lane = threadIdx.x % kWarpSize;
  LoadMatrix4(block,
              SharedAddress(&x[r * 16 + lane % 16][c * 16 + lane / 16 * 8]));
}
// Block (c, r) of the transpose.
__device__ __forceinline__ void LoadBlockTransposed(const Rows& x, int r, int c,
                                                    uint32_t (&block)[4]) {
  const int lane = threadIdx.x % kWarpSize;
  LoadMatrix4Transposed(
      block,
      SharedAddress(
          &x[r * 16 + lane / 16 * 8 + lane % 8][c * 16 + lane / 8 % 2 * 8]));
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

// ---- Steps ----

__device__ __forceinline__ void FetchRows(Rows& to, const MatrixView& from,
                                          const RowTile& tile, int32_t column) {
#pragma unroll 4
  for (int i = threadIdx.x; i < kTokens * (kDim / 8); i += kThreads) {
    const int row = i / (kDim / 8), at = i % (kDim / 8) * 8;
    const bool inside = row < tile.rows;
    CopyAsync16(SharedAddress(&to[row][at]),
                RowOf<bf16>(from, tile.row + (inside ? row : 0)) + column + at,
                inside);
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
    scales.q[row] = rsqrtf(q_sum + 1e-6f) * rsqrtf(static_cast<float>(kDim));
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
  // the inner sum, an accumulator, can be an operand. The order of the
  // summation index is free: an operand's columns (t, t + 4) are the matrix'
  // (2t, 2t + 1).
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
          head % ratio == 0 ? p.chunks.keys + key_index * DeltaChunks::kKeyBytes
                            : nullptr};
}

}  // namespace switchyard::internal::prepare

#endif  // SWITCHYARD_KERNELS_DELTA_RULE_PREPARE_CUDA_H_
