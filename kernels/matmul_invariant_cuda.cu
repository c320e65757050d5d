// Matmul whose rows do not depend, bit for bit, on how many there are, for fp32
// and for rows that are not whole 16-byte units: a scalar kernel, every output
// summed over k in ascending order. (matmul_wide_cuda.cu serves the rest.)
#include "kernels/backends.h"
#include "kernels/cuda_common.h"
#include "kernels/matmul_cuda.h"

namespace switchyard::internal {
namespace {

using namespace switchyard::cuda;

// 64 x 64 outputs by 16 x 16 threads of 4 x 4.

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
