#include "kernels/backends.h"
#include "kernels/cuda_common.h"

namespace switchyard::internal {
namespace {

using namespace switchyard::cuda;

constexpr int kThreads = 256;

// Block (token, chunk): kThreads * Width columns of one row.
template <typename T, int Width>
__global__ void EmbeddingKernel(const int32_t* token_ids, const T* table,
                                int64_t table_stride, int32_t vocab_begin,
                                int64_t vocab_local, float* out,
                                int64_t out_stride, int64_t hidden) {
  GridTrigger();
  GridWait();
  const int64_t token = blockIdx.x;
  const int64_t column = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * Width;
  if (column >= hidden) return;
  const int64_t row = int64_t{token_ids[token]} - vocab_begin;
  float x[Width] = {};
  if (row >= 0 && row < vocab_local)
    Load<Width>(table + row * table_stride + column, x);
  Store<Width>(out + token * out_stride + column, x);
}

template <typename T>
absl::Status Run(const OpContext& context, const EmbeddingArgs& args) {
  constexpr int kWide = 16 / sizeof(T);
  const bool aligned = args.table.cols % kWide == 0 &&
                       AlignedTo(args.table, 16) && AlignedTo(args.out, 16);
  return DispatchWidth<kWide>(aligned, [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    const dim3 grid(args.out.rows, CeilDiv(args.out.cols, kThreads * kWidth));
    return Launch(
        context, "Embedding", EmbeddingKernel<T, kWidth>, {grid, kThreads},
        args.token_ids, static_cast<const T*>(args.table.data),
        args.table.row_stride, args.vocab_begin, args.table.rows,
        static_cast<float*>(args.out.data), args.out.row_stride, args.out.cols);
  });
}

}  // namespace

absl::Status EmbeddingCuda(const OpContext& context,
                           const EmbeddingArgs& args) {
  if (args.table.dtype == DType::kF16) return Run<__half>(context, args);
  return DispatchActivation(args.table.dtype, "Embedding", [&](auto tag) {
    return Run<typename decltype(tag)::type>(context, args);
  });
}

}  // namespace switchyard::internal
