#include "kernels/backends.h"
#include "kernels/cuda_common.h"

namespace switchyard::internal {
namespace {

using namespace switchyard::cuda;

constexpr int kThreads = 256;

// One thread rotates Width pairs of one head of one token. Block (token,
// chunk).
template <typename T, int Width>
__global__ void RopeKernel(T* x, int64_t x_stride, int32_t num_heads,
                           int32_t half, const int32_t* positions,
                           const float* table) {
  GridTrigger();
  GridWait();
  const int32_t per_head = half / Width;
  const int32_t item = blockIdx.y * kThreads + threadIdx.x;
  if (item >= num_heads * per_head) return;
  const int32_t head = item / per_head, i = item % per_head * Width;
  const float* angles = table + int64_t{positions[blockIdx.x]} * 2 * half + i;
  T* row = x + blockIdx.x * x_stride + int64_t{head} * 2 * half + i;
  float cosine[Width], sine[Width], first[Width], second[Width];
  Load<Width>(angles, cosine);
  Load<Width>(angles + half, sine);
  Load<Width>(row, first);
  Load<Width>(row + half, second);
  float out_first[Width], out_second[Width];
#pragma unroll
  for (int j = 0; j < Width; ++j) {
    out_first[j] = first[j] * cosine[j] - second[j] * sine[j];
    out_second[j] = second[j] * cosine[j] + first[j] * sine[j];
  }
  Store<Width>(row, out_first);
  Store<Width>(row + half, out_second);
}

}  // namespace

absl::Status RopeCuda(const OpContext& context, const RopeArgs& args) {
  return DispatchActivation(args.x.dtype, "Rope", [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int kWide = 16 / sizeof(T);
    const int32_t half = args.head_size / 2;
    return DispatchWidth<kWide>(
        half % kWide == 0 && AlignedTo(args.x, 16), [&](auto width) {
          constexpr int kWidth = decltype(width)::value;
          const int32_t num_heads =
              static_cast<int32_t>(args.x.cols / args.head_size);
          const dim3 grid(args.x.rows,
                          CeilDiv(num_heads * (half / kWidth), kThreads));
          return Launch(context, "Rope", RopeKernel<T, kWidth>,
                        {grid, kThreads}, static_cast<T*>(args.x.data),
                        args.x.row_stride, num_heads, half, args.positions,
                        args.table);
        });
  });
}

}  // namespace switchyard::internal
