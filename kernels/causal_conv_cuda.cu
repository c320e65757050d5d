#include <algorithm>

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
  int64_t first_channel, end_channel;
  bool silu;
};

// N consecutive floats of Width channels, in the widest accesses: 16 bytes
// where Width is 4.
template <int Width, int N>
__device__ __forceinline__ void LoadFloats(const float* p, float (&x)[N]) {
  if constexpr (Width == 4) {
    Load<N>(p, x);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = p[i];
  }
}
template <int Width, int N>
__device__ __forceinline__ void StoreFloats(float* p, const float (&x)[N]) {
  if constexpr (Width == 4) {
    Store<N>(p, x);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) p[i] = x[i];
  }
}

// The state of Width adjacent channels, oldest input first.
template <int K, int Width>
__device__ __forceinline__ void LoadState(const float* state, int64_t channel,
                                          float (&past)[K - 1][Width]) {
  float flat[Width * (K - 1)];
  LoadFloats<Width>(state + channel * (K - 1), flat);
#pragma unroll
  for (int i = 0; i < Width; ++i) {
#pragma unroll
    for (int j = 0; j < K - 1; ++j) past[j][i] = flat[i * (K - 1) + j];
  }
}

// Taps of Width adjacent channels: weights, bias, and the last inputs.
template <int K, int Width>
struct Taps {
  float weight[Width][K];
  float bias[Width];
  float past[K - 1][Width];  // oldest first

  __device__ __forceinline__ void LoadWeights(const ConvParams& p,
                                              int64_t channel) {
    float flat[Width * K];
    LoadFloats<Width>(p.weight + channel * K, flat);
#pragma unroll
    for (int i = 0; i < Width; ++i) {
#pragma unroll
      for (int j = 0; j < K; ++j) weight[i][j] = flat[i * K + j];
      bias[i] = p.bias == nullptr ? 0.0f : p.bias[channel + i];
    }
  }
  __device__ __forceinline__ void StoreState(float* state,
                                             int64_t channel) const {
    float flat[Width * (K - 1)];
#pragma unroll
    for (int i = 0; i < Width; ++i) {
#pragma unroll
      for (int j = 0; j < K - 1; ++j) flat[i * (K - 1) + j] = past[j][i];
    }
    StoreFloats<Width>(state + channel * (K - 1), flat);
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
      out[i] = silu ? FastSilu(y) : y;
#pragma unroll
      for (int j = 0; j + 1 < K - 1; ++j) past[j][i] = past[j + 1][i];
      past[K - 2][i] = x[i];
    }
  }
};

// Block (decoding sequence, chunk of channels). The state is that of an earlier
// step and written by no other kernel of this one, so it is loaded before
// GridWait.
template <typename T, int K, int Width>
__global__ void __launch_bounds__(kThreads)
    StepKernel(const ConvParams p, MatrixView x, MatrixView out) {
  GridTrigger();
  const int64_t channel =
      (int64_t{blockIdx.y} * kThreads + threadIdx.x) * Width;
  const bool inside = channel < p.end_channel;
  const int32_t seq = blockIdx.x;
  float* state = StateOf(p.state, seq);
  Taps<K, Width> taps;
  if (inside) {
    LoadState<K>(state, channel, taps.past);
    taps.LoadWeights(p, channel);
  }
  GridWait();
  if (!inside) return;
  float input[Width], output[Width];
  Load<Width>(RowOf<T>(x, seq) + channel, input);
  taps.Push(input, p.silu, output);
  taps.StoreState(state, channel);
  Store<Width>(RowOf<T>(out, seq) + channel, output);
}

// Saves the K - 1 inputs before every tile of rows, since `out` may be x and
// the states are replaced. before: [tiles, K - 1, end_channel - first_channel].
// Block (chunk of channels, tile).
template <typename T, int K, int Width>
__global__ void __launch_bounds__(kThreads)
    SaveKernel(const ConvParams p, MatrixView x, float* before) {
  GridTrigger();
  GridWait();
  const RowTile tile =
      FindTile(p.token_offsets, p.first_seq, p.num_seqs, kTileRows, blockIdx.y);
  const int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * Width;
  const int64_t channel = p.first_channel + at;
  if (tile.rows == 0 || channel >= p.end_channel) return;
  const int64_t channels = p.end_channel - p.first_channel;
  float past[K - 1][Width];
  if (tile.index == 0) {
    LoadState<K>(StateOf(p.state, tile.seq), channel, past);
  } else {
#pragma unroll
    for (int j = 0; j < K - 1; ++j)
      Load<Width>(RowOf<T>(x, tile.row - (K - 1) + j) + channel, past[j]);
  }
#pragma unroll
  for (int j = 0; j < K - 1; ++j)
    Store<Width>(before + (int64_t{blockIdx.y} * (K - 1) + j) * channels + at,
                 past[j]);
}

// Block (chunk of channels, tile of rows).
template <typename T, int K, int Width>
__global__ void __launch_bounds__(kThreads)
    ScanKernel(const ConvParams p, MatrixView x, MatrixView out,
               const float* before) {
  // Rows in flight: they are all read before the first is written, which the
  // compiler could not do by itself where `out` is x.
  constexpr int kAhead = 8;
  GridTrigger();
  const int64_t at = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * Width;
  const int64_t channel = p.first_channel + at;
  const bool inside = channel < p.end_channel;
  Taps<K, Width> taps;
  if (inside) taps.LoadWeights(p, channel);
  GridWait();
  const RowTile tile =
      FindTile(p.token_offsets, p.first_seq, p.num_seqs, kTileRows, blockIdx.y);
  if (tile.rows == 0 || !inside) return;
  const int64_t channels = p.end_channel - p.first_channel;
#pragma unroll
  for (int j = 0; j < K - 1; ++j)
    Load<Width>(before + (int64_t{blockIdx.y} * (K - 1) + j) * channels + at,
                taps.past[j]);
  const T* from = RowOf<T>(x, tile.row) + channel;
  T* to = RowOf<T>(out, tile.row) + channel;
  for (int first = 0; first < tile.rows; first += kAhead) {
    Pack<T, Width> rows[kAhead];
#pragma unroll
    for (int r = 0; r < kAhead; ++r) {
      if (first + r < tile.rows)
        rows[r] = *reinterpret_cast<const Pack<T, Width>*>(
            from + (first + r) * x.row_stride);
    }
#pragma unroll
    for (int r = 0; r < kAhead; ++r) {
      if (first + r >= tile.rows) break;
      float input[Width], output[Width];
#pragma unroll
      for (int i = 0; i < Width; ++i) input[i] = ToFloat(rows[r].item[i]);
      taps.Push(input, p.silu, output);
      Store<Width>(to + (first + r) * out.row_stride, output);
    }
  }
  if (tile.row + tile.rows == p.token_offsets[tile.seq + 1])
    taps.StoreState(StateOf(p.state, tile.seq), channel);
}

template <typename T, int K, int Width>
absl::Status Run(const OpContext& context, const CausalConvArgs& args) {
  const VarlenBatch& batch = args.batch;
  ConvParams params = {batch.token_offsets,
                       batch.num_decodes,
                       batch.num_seqs,
                       args.state,
                       args.weight,
                       args.bias,
                       0,
                       args.x.cols,
                       args.silu};
  const auto chunks = [&params] {
    return static_cast<unsigned>(
        CeilDiv(params.end_channel - params.first_channel, kThreads * Width));
  };
  if (batch.num_decodes > 0) {
    SY_RETURN_IF_ERROR(
        Launch(context, "CausalConv (step)", StepKernel<T, K, Width>,
               {dim3(batch.num_decodes, chunks()), dim3(kThreads)}, params,
               args.x, args.out));
  }
  if (batch.num_decodes == batch.num_seqs) return absl::OkStatus();
  const int64_t num_tiles =
      NumTiles(batch.num_tokens - batch.num_decodes,
               batch.num_seqs - batch.num_decodes, kTileRows);
  // As many channels at a time as the scratch takes.
  const int64_t channel_bytes = num_tiles * (K - 1) * sizeof(float);
  const int64_t step =
      kOpScratchBytes / channel_bytes / (kThreads * Width) * (kThreads * Width);
  if (step == 0) {
    return absl::UnimplementedError(absl::StrCat(
        "CausalConv: ", batch.num_tokens, " tokens of ", batch.num_seqs,
        " sequences in one call on CUDA: more than ", kOpScratchBytes,
        " bytes of scratch take"));
  }
  const int64_t mark = context.workspace->used();
  float* before = reinterpret_cast<float*>(
      context.workspace->Allocate(channel_bytes * std::min(step, args.x.cols)));
  context.workspace->Rewind(mark);
  for (int64_t channel = 0; channel < args.x.cols; channel += step) {
    params.first_channel = channel;
    params.end_channel = std::min(channel + step, args.x.cols);
    const LaunchShape shape{dim3(chunks(), static_cast<unsigned>(num_tiles)),
                            dim3(kThreads)};
    SY_RETURN_IF_ERROR(Launch(context, "CausalConv (save)",
                              SaveKernel<T, K, Width>, shape, params, args.x,
                              before));
    SY_RETURN_IF_ERROR(Launch(context, "CausalConv", ScanKernel<T, K, Width>,
                              shape, params, args.x, args.out, before));
  }
  return absl::OkStatus();
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
                           AlignedTo(args.out, 16) &&
                           args.state.offset % 16 == 0 &&
                           reinterpret_cast<uintptr_t>(args.weight) % 16 == 0;
      return DispatchWidth<4>(aligned, [&](auto width) {
        return Run<T, K, decltype(width)::value>(context, args);
      });
    });
  });
}

}  // namespace switchyard::internal
