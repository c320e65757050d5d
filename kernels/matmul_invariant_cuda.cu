// Matmul whose rows do not depend, bit for bit, on how many there are: one tile
// shape, every output summed over k in ascending steps of 16 by the same
// instruction, no split along k. A scalar kernel serves fp32 and rows that are
// not whole 16-byte units.
#include "kernels/backends.h"
#include "kernels/cuda_common.h"
#include "kernels/cuda_ptx.h"
#include "kernels/matmul_cuda.h"

namespace switchyard::internal {
namespace {

using namespace switchyard::cuda;

// ---- Tensor cores: 128 x 128 outputs by 8 warps of 64 x 32 ----

constexpr int kTileM = 128, kTileN = 128, kTileK = 64;
constexpr int kStages = 3;
constexpr int kThreads = 256;
constexpr int kTileBytes = 128 * kTileK * 2;  // of x or of W

// Rows [row, row + 128) and columns [column, column + 64) of a [rows, cols]
// matrix; 16-byte chunk j of row r lies at chunk j ^ (r % 8).
__device__ __forceinline__ void LoadTile(uint32_t shared, const bf16* data,
                                         int64_t stride, int64_t rows,
                                         int64_t cols, int64_t row,
                                         int64_t column) {
#pragma unroll
  for (int i = 0; i < 128 * 8 / kThreads; ++i) {
    const int chunk = i * kThreads + threadIdx.x;
    const int r = chunk / 8, j = chunk % 8;
    const bool valid = row + r < rows && column + j * 8 < cols;
    const bf16* from =
        valid ? data + (row + r) * stride + column + j * 8 : data;
    CopyAsync16(shared + r * 128 + ((j ^ (r % 8)) << 4), from, valid);
  }
}

template <typename O>
__global__ void __launch_bounds__(kThreads)
    InvariantKernel(const bf16* x, int64_t x_stride, const bf16* w,
                    const float* bias, O* out, int64_t out_stride, int64_t m,
                    int64_t n, int64_t k) {
  extern __shared__ __align__(1024) uint8_t shared[];
  GridTrigger();
  GridWait();
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int warp_m = warp / 4 * 64, warp_n = warp % 4 * 32;
  const int64_t first_m = int64_t{blockIdx.y} * kTileM;
  const int64_t first_n = int64_t{blockIdx.x} * kTileN;
  const uint32_t base = SharedAddress(shared);
  const int num_tiles = static_cast<int>((k + kTileK - 1) / kTileK);
  const auto load = [&](int tile) {
    const uint32_t stage = base + tile % kStages * 2 * kTileBytes;
    const int64_t column = int64_t{tile} * kTileK;
    LoadTile(stage, x, x_stride, m, k, first_m, column);
    LoadTile(stage + kTileBytes, w, k, n, k, first_n, column);
  };
  for (int tile = 0; tile < kStages - 1; ++tile) {
    if (tile < num_tiles) load(tile);
    CommitCopies();
  }
  float acc[4][4][4] = {};
  const int matrix = lane / 8, matrix_row = lane % 8;
  for (int tile = 0; tile < num_tiles; ++tile) {
    WaitCopies<kStages - 2>();
    __syncthreads();
    if (tile + kStages - 1 < num_tiles) load(tile + kStages - 1);
    CommitCopies();
    const uint32_t x_base = base + tile % kStages * 2 * kTileBytes;
    const uint32_t w_base = x_base + kTileBytes;
#pragma unroll
    for (int step = 0; step < kTileK / 16; ++step) {
      uint32_t a[4][4], b[2][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = warp_m + i * 16 + matrix % 2 * 8 + matrix_row;
        const int chunk = step * 2 + matrix / 2;
        LoadMatrix4(a[i], x_base + row * 128 + ((chunk ^ matrix_row) << 4));
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int row = warp_n + j * 16 + matrix / 2 * 8 + matrix_row;
        const int chunk = step * 2 + matrix % 2;
        LoadMatrix4(b[j], w_base + row * 128 + ((chunk ^ matrix_row) << 4));
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j)
          Mma(acc[i][j], a[i][0], a[i][1], a[i][2], a[i][3],
              b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int64_t row = first_m + warp_m + i * 16 + lane / 4 + e / 2 * 8;
        const int64_t column = first_n + warp_n + j * 8 + lane % 4 * 2 + e % 2;
        if (row < m && column < n)
          out[row * out_stride + column] = FromFloat<O>(
              acc[i][j][e] + (bias == nullptr ? 0.0f : bias[column]));
      }
    }
  }
}

// ---- Scalar: 64 x 64 outputs by 16 x 16 threads of 4 x 4 ----

constexpr int kScalarTile = 64, kScalarK = 16;

template <typename T, typename O>
__global__ void __launch_bounds__(256)
    ScalarKernel(const T* x, int64_t x_stride, const T* w, const float* bias,
                 O* out, int64_t out_stride, int64_t m, int64_t n, int64_t k) {
  __shared__ float x_tile[kScalarK][kScalarTile + 1];
  __shared__ float w_tile[kScalarK][kScalarTile + 1];
  GridTrigger();
  GridWait();
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const int64_t first_m = int64_t{blockIdx.y} * kScalarTile;
  const int64_t first_n = int64_t{blockIdx.x} * kScalarTile;
  float acc[4][4] = {};
  for (int64_t begin = 0; begin < k; begin += kScalarK) {
    for (int i = threadIdx.x; i < kScalarTile * kScalarK; i += 256) {
      const int row = i / kScalarK, column = i % kScalarK;
      const bool inside = begin + column < k;
      x_tile[column][row] =
          inside && first_m + row < m
              ? ToFloat(x[(first_m + row) * x_stride + begin + column])
              : 0.0f;
      w_tile[column][row] =
          inside && first_n + row < n
              ? ToFloat(w[(first_n + row) * k + begin + column])
              : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int step = 0; step < kScalarK; ++step) {
      float a[4], b[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[i] = x_tile[step][ty * 4 + i];
        b[i] = w_tile[step][tx + i * 16];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) acc[i][j] = fmaf(a[i], b[j], acc[i][j]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t row = first_m + ty * 4 + i, column = first_n + tx + j * 16;
      if (row < m && column < n)
        out[row * out_stride + column] =
            FromFloat<O>(acc[i][j] + (bias == nullptr ? 0.0f : bias[column]));
    }
  }
}

}  // namespace

absl::Status MatmulInvariant(const OpContext& context, const MatmulArgs& args) {
  const int64_t m = args.x.rows, n = args.weight->out_features(),
                k = args.weight->in_features();
  const void* w = AsCuda(*args.weight).data.get();
  return DispatchActivation(args.out.dtype, "Matmul", [&](auto out_tag) {
    using O = typename decltype(out_tag)::type;
    O* out = static_cast<O*>(args.out.data);
    if (args.x.dtype == DType::kBF16 && k % 8 == 0 && AlignedTo(args.x, 16)) {
      return Launch(context, "Matmul (invariant)", InvariantKernel<O>,
                    {dim3(CeilDiv(n, kTileN), CeilDiv(m, kTileM)),
                     dim3(kThreads), kStages * 2 * kTileBytes},
                    static_cast<const bf16*>(args.x.data), args.x.row_stride,
                    static_cast<const bf16*>(w), args.bias, out,
                    args.out.row_stride, m, n, k);
    }
    return DispatchActivation(args.x.dtype, "Matmul", [&](auto in_tag) {
      using T = typename decltype(in_tag)::type;
      return Launch(
          context, "Matmul (scalar)", ScalarKernel<T, O>,
          {dim3(CeilDiv(n, kScalarTile), CeilDiv(m, kScalarTile)), dim3(256)},
          static_cast<const T*>(args.x.data), args.x.row_stride,
          static_cast<const T*>(w), args.bias, out, args.out.row_stride, m, n,
          k);
    });
  });
}

}  // namespace switchyard::internal
