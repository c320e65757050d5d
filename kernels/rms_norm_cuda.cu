#include "kernels/backends.h"
#include "kernels/cuda_common.h"
#include "kernels/cuda_rms_norm.h"

namespace switchyard::internal {
namespace {

using namespace switchyard::cuda;

// One block per output row; a thread keeps Chunks * Width columns in registers,
// so that the residual is read once and written once.
template <typename D, typename O, int Width, int Chunks>
__global__ void __launch_bounds__(kMaxNormThreads)
    AddRmsNormKernel(float* residual, int64_t residual_stride, const D* delta,
                     int64_t delta_stride, const int32_t* rows,
                     const int32_t* delta_rows, const float* weight,
                     float epsilon, O* out, int64_t out_stride,
                     int32_t hidden) {
  __shared__ float scratch[kWarpSize];
  GridTrigger();
  // Fetched before the predecessor ends, where registers allow.
  float scale[Width];
  if (Chunks == 1 && threadIdx.x * Width < hidden)
    Load<Width>(weight + threadIdx.x * Width, scale);
  GridWait();
  const int64_t i = blockIdx.x;
  const int64_t r = rows == nullptr ? i : rows[i];
  const int64_t d = delta_rows == nullptr ? i : delta_rows[i];
  float* row = residual + r * residual_stride;
  float x[Chunks][Width];
  float sum = 0;
#pragma unroll
  for (int c = 0; c < Chunks; ++c) {
    const int32_t column = (c * blockDim.x + threadIdx.x) * Width;
    if (column >= hidden) continue;
    Load<Width>(row + column, x[c]);
    if (delta != nullptr) {
      float added[Width];
      Load<Width>(delta + d * delta_stride + column, added);
#pragma unroll
      for (int j = 0; j < Width; ++j) x[c][j] += added[j];
      Store<Width>(row + column, x[c]);
    }
    AddSquares(x[c], sum);
  }
  const float norm = InverseRms(sum, hidden, epsilon, scratch);
#pragma unroll
  for (int c = 0; c < Chunks; ++c) {
    const int32_t column = (c * blockDim.x + threadIdx.x) * Width;
    if (column >= hidden) continue;
    if (Chunks > 1) Load<Width>(weight + column, scale);
    StoreNormed(out + i * out_stride + column, x[c], norm, scale);
  }
}

template <typename D, typename O, int Width, int Chunks>
absl::Status LaunchAddRmsNorm(const OpContext& context,
                              const AddRmsNormArgs& args) {
  const int64_t hidden = args.residual.cols;
  const int threads = NormThreads(hidden, Width * Chunks);
  return Launch(context, "AddRmsNorm", AddRmsNormKernel<D, O, Width, Chunks>,
                {dim3(args.out.rows), dim3(threads)},
                static_cast<float*>(args.residual.data),
                args.residual.row_stride,
                static_cast<const D*>(args.delta.data), args.delta.row_stride,
                args.rows, args.delta_rows, args.weight, args.epsilon,
                static_cast<O*>(args.out.data), args.out.row_stride,
                static_cast<int32_t>(hidden));
}

template <typename D, typename O, int Width>
absl::Status DispatchChunks(const OpContext& context,
                            const AddRmsNormArgs& args) {
  const int64_t hidden = args.residual.cols;
  if (hidden <= kMaxNormThreads * Width)
    return LaunchAddRmsNorm<D, O, Width, 1>(context, args);
  if (hidden <= 4 * kMaxNormThreads * Width)
    return LaunchAddRmsNorm<D, O, Width, 4>(context, args);
  return absl::UnimplementedError(absl::StrCat(
      "AddRmsNorm: hidden size ", hidden, " on CUDA; up to ",
      4 * kMaxNormThreads * Width, " columns of this alignment have a kernel"));
}

// One warp per token and head; a lane keeps Chunks * Width columns.
template <typename X, typename G, typename O, int Width, int Chunks>
__global__ void GatedRmsNormKernel(const X* x, int64_t x_stride, const G* gate,
                                   int64_t gate_stride, const float* weight,
                                   float epsilon, bool sigmoid, O* out,
                                   int64_t out_stride, int64_t num_tokens,
                                   int32_t num_heads, int32_t head_dim) {
  GridTrigger();
  const int lane = threadIdx.x % kWarpSize;
  float scale[Chunks][Width];
#pragma unroll
  for (int c = 0; c < Chunks; ++c) {
    const int32_t column = (c * kWarpSize + lane) * Width;
    if (column < head_dim) Load<Width>(weight + column, scale[c]);
  }
  const int64_t item =
      (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarpSize;
  const int64_t token = item / num_heads;
  const int64_t head_begin = item % num_heads * head_dim;
  GridWait();
  if (item >= num_tokens * num_heads) return;
  float value[Chunks][Width], gating[Chunks][Width];
  float sum = 0;
#pragma unroll
  for (int c = 0; c < Chunks; ++c) {
    const int32_t column = (c * kWarpSize + lane) * Width;
    if (column >= head_dim) continue;
    Load<Width>(x + token * x_stride + head_begin + column, value[c]);
    Load<Width>(gate + token * gate_stride + head_begin + column, gating[c]);
#pragma unroll
    for (int j = 0; j < Width; ++j) sum += value[c][j] * value[c][j];
  }
  const float norm = rsqrtf(WarpSum(sum) / head_dim + epsilon);
#pragma unroll
  for (int c = 0; c < Chunks; ++c) {
    const int32_t column = (c * kWarpSize + lane) * Width;
    if (column >= head_dim) continue;
#pragma unroll
    for (int j = 0; j < Width; ++j) {
      const float g = gating[c][j];
      value[c][j] *= norm * scale[c][j] * (sigmoid ? Sigmoid(g) : Silu(g));
    }
    Store<Width>(out + token * out_stride + head_begin + column, value[c]);
  }
}

template <typename X, typename G, typename O, int Width, int Chunks>
absl::Status LaunchGatedRmsNorm(const OpContext& context,
                                const GatedRmsNormArgs& args) {
  constexpr int kThreads = 128;
  const int64_t num_heads = args.x.cols / args.head_dim;
  const int64_t warps = args.x.rows * num_heads;
  return Launch(
      context, "GatedRmsNorm", GatedRmsNormKernel<X, G, O, Width, Chunks>,
      {dim3(CeilDiv(warps, kThreads / kWarpSize)), dim3(kThreads)},
      static_cast<const X*>(args.x.data), args.x.row_stride,
      static_cast<const G*>(args.gate.data), args.gate.row_stride, args.weight,
      args.epsilon, args.activation == GateActivation::kSigmoid,
      static_cast<O*>(args.out.data), args.out.row_stride, args.x.rows,
      static_cast<int32_t>(num_heads), args.head_dim);
}

}  // namespace

absl::Status AddRmsNormCuda(const OpContext& context,
                            const AddRmsNormArgs& args) {
  const bool has_delta = args.delta.data != nullptr;
  const DType delta_dtype = has_delta ? args.delta.dtype : DType::kF32;
  return DispatchActivation(delta_dtype, "AddRmsNorm", [&](auto delta_tag) {
    return DispatchActivation(args.out.dtype, "AddRmsNorm", [&](auto out_tag) {
      using D = typename decltype(delta_tag)::type;
      using O = typename decltype(out_tag)::type;
      const bool aligned =
          args.residual.cols % 8 == 0 && AlignedTo(args.residual, 16) &&
          AlignedTo(args.out, 16) && (!has_delta || AlignedTo(args.delta, 16));
      return DispatchWidth<kNormWidth>(aligned, [&](auto width) {
        return DispatchChunks<D, O, decltype(width)::value>(context, args);
      });
    });
  });
}

absl::Status GatedRmsNormCuda(const OpContext& context,
                              const GatedRmsNormArgs& args) {
  return DispatchActivation(args.x.dtype, "GatedRmsNorm", [&](auto x_tag) {
    return DispatchActivation(
        args.gate.dtype, "GatedRmsNorm", [&](auto gate_tag) {
          return DispatchActivation(
              args.out.dtype, "GatedRmsNorm",
              [&](auto out_tag) -> absl::Status {
                using X = typename decltype(x_tag)::type;
                using G = typename decltype(gate_tag)::type;
                using O = typename decltype(out_tag)::type;
                const bool aligned =
                    args.head_dim % 4 == 0 && AlignedTo(args.x, 16) &&
                    AlignedTo(args.gate, 16) && AlignedTo(args.out, 16);
                if (aligned && args.head_dim <= 128)
                  return LaunchGatedRmsNorm<X, G, O, 4, 1>(context, args);
                if (aligned && args.head_dim <= 512)
                  return LaunchGatedRmsNorm<X, G, O, 4, 4>(context, args);
                if (args.head_dim <= 1024)
                  return LaunchGatedRmsNorm<X, G, O, 1, 32>(context, args);
                return absl::UnimplementedError(
                    absl::StrCat("GatedRmsNorm: head dimension ", args.head_dim,
                                 " on CUDA; at most 1024"));
              });
        });
  });
}

}  // namespace switchyard::internal
