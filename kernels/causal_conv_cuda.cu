#include "kernels/backends.h"
#include "kernels/cuda_common.h"
#include "kernels/cuda_paging.h"

namespace switchyard::internal {
namespace {

using namespace switchyard::cuda;

constexpr int kThreads = 128;
constexpr int kTileRows = 64;
constexpr int kMaxKernel = 8;

struct ConvParams {
  const int32_t* token_offsets;
  int32_t first_seq, num_seqs;
  SlotTable state;
  const float* weight;
  const float* bias;
  int64_t channels;
  bool silu;
};

__device__ __forceinline__ float* StateOf(const ConvParams& p, int32_t seq) {
  return reinterpret_cast<float*>(p.state.arena +
                                  int64_t{p.state.ids[seq]} * kCacheUnitBytes +
                                  p.state.offset);
}

// Taps of Width adjacent channels: weights, bias, and the last inputs.
template <int K, int Width>
struct Taps {
  float weight[Width][K];
  float bias[Width];
  float past[K - 1][Width];  // oldest first

  __device__ __forceinline__ void LoadWeights(const ConvParams& p,
                                              int64_t channel) {
#pragma unroll
    for (int i = 0; i < Width; ++i) {
#pragma unroll
      for (int j = 0; j < K; ++j)
        weight[i][j] = p.weight[(channel + i) * K + j];
      bias[i] = p.bias == nullptr ? 0.0f : p.bias[channel + i];
    }
  }
  __device__ __forceinline__ void LoadState(const float* state,
                                            int64_t channel) {
#pragma unroll
    for (int i = 0; i < Width; ++i) {
#pragma unroll
      for (int j = 0; j < K - 1; ++j)
        past[j][i] = state[(channel + i) * (K - 1) + j];
    }
  }
  __device__ __forceinline__ void StoreState(float* state,
                                             int64_t channel) const {
#pragma unroll
    for (int i = 0; i < Width; ++i) {
#pragma unroll
      for (int j = 0; j < K - 1; ++j)
        state[(channel + i) * (K - 1) + j] = past[j][i];
    }
  }
  // The outputs for the inputs x, which become the newest ones.
  __device__ __forceinline__ void Push(const float (&x)[Width], bool silu,
                                       float (&out)[Width]) {
#pragma unroll
    for (int i = 0; i < Width; ++i) {
      float y = bias[i];
#pragma unroll
      for (int j = 0; j < K - 1; ++j) y += weight[i][j] * past[j][i];
      y += weight[i][K - 1] * x[i];
      out[i] = silu ? Silu(y) : y;
#pragma unroll
      for (int j = 0; j + 1 < K - 1; ++j) past[j][i] = past[j + 1][i];
      past[K - 2][i] = x[i];
    }
  }
};

// Block (chunk of channels, decoding sequence).
template <typename T, int K, int Width>
__global__ void __launch_bounds__(kThreads)
    StepKernel(const ConvParams p, MatrixView x, MatrixView out) {
  GridTrigger();
  const int64_t channel =
      (int64_t{blockIdx.x} * kThreads + threadIdx.x) * Width;
  const bool inside = channel < p.channels;
  Taps<K, Width> taps;
  if (inside) taps.LoadWeights(p, channel);
  GridWait();
  if (!inside) return;
  const int32_t seq = blockIdx.y;
  float* state = StateOf(p, seq);
  taps.LoadState(state, channel);
  float input[Width], output[Width];
  Load<Width>(RowOf<T>(x, seq) + channel, input);
  taps.Push(input, p.silu, output);
  taps.StoreState(state, channel);
  Store<Width>(RowOf<T>(out, seq) + channel, output);
}

// Saves the K - 1 inputs before every tile of rows, since `out` may be x and
// the states are replaced. before: [tiles, K - 1, channels]. Block (chunk of
// channels, tile).
template <typename T, int K>
__global__ void __launch_bounds__(kThreads)
    SaveKernel(const ConvParams p, MatrixView x, float* before) {
  GridTrigger();
  GridWait();
  const RowTile tile =
      FindTile(p.token_offsets, p.first_seq, p.num_seqs, kTileRows, blockIdx.y);
  const int64_t channel = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (tile.rows == 0 || channel >= p.channels) return;
#pragma unroll
  for (int j = 0; j < K - 1; ++j) {
    before[(int64_t{blockIdx.y} * (K - 1) + j) * p.channels + channel] =
        tile.index == 0 ? StateOf(p, tile.seq)[channel * (K - 1) + j]
                        : ToFloat(RowOf<T>(x, tile.row - (K - 1) + j)[channel]);
  }
}

// Block (chunk of channels, tile of rows).
template <typename T, int K, int Width>
__global__ void __launch_bounds__(kThreads)
    ScanKernel(const ConvParams p, MatrixView x, MatrixView out,
               const float* before) {
  GridTrigger();
  const int64_t channel =
      (int64_t{blockIdx.x} * kThreads + threadIdx.x) * Width;
  const bool inside = channel < p.channels;
  Taps<K, Width> taps;
  if (inside) taps.LoadWeights(p, channel);
  GridWait();
  const RowTile tile =
      FindTile(p.token_offsets, p.first_seq, p.num_seqs, kTileRows, blockIdx.y);
  if (tile.rows == 0 || !inside) return;
#pragma unroll
  for (int j = 0; j < K - 1; ++j)
    Load<Width>(
        before + (int64_t{blockIdx.y} * (K - 1) + j) * p.channels + channel,
        taps.past[j]);
#pragma unroll 4
  for (int r = 0; r < tile.rows; ++r) {
    float input[Width], output[Width];
    Load<Width>(RowOf<T>(x, tile.row + r) + channel, input);
    taps.Push(input, p.silu, output);
    Store<Width>(RowOf<T>(out, tile.row + r) + channel, output);
  }
  if (tile.row + tile.rows == p.token_offsets[tile.seq + 1])
    taps.StoreState(StateOf(p, tile.seq), channel);
}

template <typename T, int K, int Width>
absl::Status Run(const OpContext& context, const CausalConvArgs& args) {
  const VarlenBatch& batch = args.batch;
  ConvParams params = {batch.token_offsets, batch.num_decodes, batch.num_seqs,
                       args.state,          args.weight,       args.bias,
                       args.x.cols,         args.silu};
  const unsigned chunks =
      static_cast<unsigned>(CeilDiv(args.x.cols, kThreads * Width));
  if (batch.num_decodes > 0) {
    SY_RETURN_IF_ERROR(Launch(context, "CausalConv (step)",
                              StepKernel<T, K, Width>,
                              {dim3(chunks, batch.num_decodes), dim3(kThreads)},
                              params, args.x, args.out));
  }
  if (batch.num_decodes == batch.num_seqs) return absl::OkStatus();
  const int64_t num_tiles =
      NumTiles(batch.num_tokens - batch.num_decodes,
               batch.num_seqs - batch.num_decodes, kTileRows);
  const int64_t mark = context.workspace->used();
  float* before = reinterpret_cast<float*>(context.workspace->Allocate(
      num_tiles * (K - 1) * args.x.cols * sizeof(float)));
  context.workspace->Rewind(mark);
  SY_RETURN_IF_ERROR(
      Launch(context, "CausalConv (save)", SaveKernel<T, K>,
             {dim3(CeilDiv(args.x.cols, kThreads), num_tiles), dim3(kThreads)},
             params, args.x, before));
  return Launch(context, "CausalConv", ScanKernel<T, K, Width>,
                {dim3(chunks, num_tiles), dim3(kThreads)}, params, args.x,
                args.out, before);
}

template <int K, typename F>
absl::Status DispatchKernelSize(int32_t kernel_size, F&& f) {
  if constexpr (K > kMaxKernel) {
    return absl::UnimplementedError(
        absl::StrCat("CausalConv: kernel size ", kernel_size,
                     " on CUDA; at most ", kMaxKernel));
  } else {
    if (kernel_size == K) return f(std::integral_constant<int, K>());
    return DispatchKernelSize<K + 1>(kernel_size, f);
  }
}

}  // namespace

absl::Status CausalConvCuda(const OpContext& context,
                            const CausalConvArgs& args) {
  return DispatchActivation(args.x.dtype, "CausalConv", [&](auto tag) {
    using T = typename decltype(tag)::type;
    return DispatchKernelSize<2>(args.kernel_size, [&](auto size) {
      constexpr int K = decltype(size)::value;
      const bool aligned = args.x.cols % 4 == 0 && AlignedTo(args.x, 16) &&
                           AlignedTo(args.out, 16);
      return DispatchWidth<4>(aligned, [&](auto width) {
        return Run<T, K, decltype(width)::value>(context, args);
      });
    });
  });
}

}  // namespace switchyard::internal
