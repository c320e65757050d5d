#include "kernels/backends.h"
#include "kernels/cuda_activation.h"
#include "kernels/cuda_common.h"

namespace switchyard::internal {
namespace {

using namespace switchyard::cuda;

constexpr int kThreads = 256;

// Block (token, chunk): kThreads * Width columns of one row.
template <typename T, typename O, ActivationKind Kind, bool Gated, int Width>
__global__ void ActivationKernel(const T* x, int64_t x_stride, O* out,
                                 int64_t out_stride, int64_t width) {
  GridTrigger();
  GridWait();
  const int64_t column = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * Width;
  if (column >= width) return;
  const T* row = x + blockIdx.x * x_stride + column;
  float gate[Width], up[Width];
  Load<Width>(row, gate);
  if constexpr (Gated) Load<Width>(row + width, up);
#pragma unroll
  for (int i = 0; i < Width; ++i) {
    gate[i] = Activate<Kind>(gate[i]);
    if constexpr (Gated) gate[i] *= up[i];
  }
  Store<Width>(out + blockIdx.x * out_stride + column, gate);
}

template <typename F>
absl::Status DispatchKind(ActivationKind kind, F&& f) {
  using Kind = ActivationKind;
  switch (kind) {
    case Kind::kIdentity:
      return f(std::integral_constant<Kind, Kind::kIdentity>());
    case Kind::kSilu:
      return f(std::integral_constant<Kind, Kind::kSilu>());
    case Kind::kGelu:
      return f(std::integral_constant<Kind, Kind::kGelu>());
    case Kind::kGeluTanh:
      return f(std::integral_constant<Kind, Kind::kGeluTanh>());
    case Kind::kRelu:
      return f(std::integral_constant<Kind, Kind::kRelu>());
    case Kind::kSquaredRelu:
      return f(std::integral_constant<Kind, Kind::kSquaredRelu>());
  }
  return absl::UnimplementedError("Activation: unknown kind");
}

}  // namespace

absl::Status ActivationCuda(const OpContext& context,
                            const ActivationArgs& args) {
  return DispatchActivation(args.x.dtype, "Activation", [&](auto in_tag) {
    return DispatchActivation(args.out.dtype, "Activation", [&](auto out_tag) {
      return DispatchKind(args.kind, [&](auto kind) {
        using T = typename decltype(in_tag)::type;
        using O = typename decltype(out_tag)::type;
        constexpr int kWide = 16 / sizeof(T);
        const int64_t width = args.out.cols;
        const bool aligned = width % kWide == 0 && AlignedTo(args.x, 16) &&
                             AlignedTo(args.out, 16);
        return DispatchWidth<kWide>(aligned, [&](auto lanes) {
          constexpr int kWidth = decltype(lanes)::value;
          constexpr ActivationKind kKind = decltype(kind)::value;
          const LaunchShape shape{
              dim3(args.out.rows, CeilDiv(width, kThreads * kWidth)), kThreads};
          const auto kernel =
              args.gated ? ActivationKernel<T, O, kKind, true, kWidth>
                         : ActivationKernel<T, O, kKind, false, kWidth>;
          return Launch(context, "Activation", kernel, shape,
                        static_cast<const T*>(args.x.data), args.x.row_stride,
                        static_cast<O*>(args.out.data), args.out.row_stride,
                        width);
        });
      });
    });
  });
}

}  // namespace switchyard::internal
