#include "kernels/backends.h"
#include "kernels/cuda_common.h"

namespace switchyard::internal {
namespace {

using namespace switchyard::cuda;

constexpr int kThreads = 128;
constexpr int kStates = 4;  // of one channel, held by one lane
constexpr int kAhead = 4;   // tokens whose inputs are fetched together

struct ScanParams {
  const int32_t* token_offsets;
  SlotTable state;
  int32_t d_inner, state_size, head_width;
  int32_t heads_per_b, heads_per_x;
  MatrixView x, dt, b, c, z, out;
  const float* a_log;
  const float* d;
};

template <typename T>
struct TokenInputs {
  float x, dt, z;
  float b[kStates], c[kStates];

  __device__ __forceinline__ void Fetch(const ScanParams& p, int64_t row,
                                        int32_t channel, int32_t first) {
    const int32_t head = channel / p.head_width;
    x = ToFloat(RowOf<T>(
        p.x,
        row)[head / p.heads_per_x * p.head_width + channel % p.head_width]);
    dt = LoadAs(p.dt.data, p.dt.dtype, row * p.dt.row_stride + channel);
    z = ToFloat(RowOf<T>(p.z, row)[channel]);
    const T* b_row = RowOf<T>(p.b, row) + head / p.heads_per_b * p.state_size;
    const T* c_row = RowOf<T>(p.c, row) + head * p.state_size;
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      const bool inside = first + i < p.state_size;
      b[i] = inside ? ToFloat(b_row[first + i]) : 0.0f;
      c[i] = inside ? ToFloat(c_row[first + i]) : 0.0f;
    }
  }
};

// Lanes (a power of two) adjacent lanes hold one channel's state, four elements
// each. Block (sequence, chunk of channels).
template <typename T, int Lanes>
__global__ void __launch_bounds__(kThreads)
    SelectiveScanKernel(const ScanParams p) {
  GridTrigger();
  const int32_t item = blockIdx.y * kThreads + threadIdx.x;
  // Surplus threads repeat the last channel, for the shuffles, and write
  // nothing.
  const bool inside = item / Lanes < p.d_inner;
  const int32_t channel = min(item / Lanes, p.d_inner - 1);
  const int32_t first = item % Lanes * kStates;
  float a[kStates], s[kStates];
#pragma unroll
  for (int i = 0; i < kStates; ++i)
    a[i] = first + i < p.state_size
               ? -expf(p.a_log[int64_t{channel} * p.state_size + first + i])
               : 0.0f;
  const float skip = p.d[channel];
  GridWait();
  const int32_t seq = blockIdx.x;
  float* state =
      StateOf(p.state, seq) + int64_t{channel} * p.state_size + first;
#pragma unroll
  for (int i = 0; i < kStates; ++i)
    s[i] = first + i < p.state_size ? state[i] : 0.0f;

  const int32_t end = p.token_offsets[seq + 1];
  for (int32_t row = p.token_offsets[seq]; row < end; row += kAhead) {
    TokenInputs<T> token[kAhead];
#pragma unroll
    for (int t = 0; t < kAhead; ++t)
      if (row + t < end) token[t].Fetch(p, row + t, channel, first);
#pragma unroll
    for (int t = 0; t < kAhead; ++t) {
      if (row + t >= end) break;
      const float dt = Softplus(token[t].dt);
      float y = 0;
#pragma unroll
      for (int i = 0; i < kStates; ++i) {
        s[i] = __expf(dt * a[i]) * s[i] + dt * token[t].x * token[t].b[i];
        y += s[i] * token[t].c[i];
      }
#pragma unroll
      for (int delta = 1; delta < Lanes; delta *= 2)
        y += __shfl_xor_sync(kFullWarp, y, delta);
      if (inside && first == 0)
        RowOf<T>(p.out, row + t)[channel] =
            FromFloat<T>((y + skip * token[t].x) * Silu(token[t].z));
    }
  }
  if (!inside) return;
#pragma unroll
  for (int i = 0; i < kStates; ++i)
    if (first + i < p.state_size) state[i] = s[i];
}

template <typename T, int Lanes>
absl::Status DispatchLanes(const OpContext& context, const ScanParams& params,
                           int32_t num_seqs) {
  if constexpr (Lanes > kWarpSize) {
    return absl::UnimplementedError(
        absl::StrCat("SelectiveScan: state size ", params.state_size,
                     " on CUDA; at most ", kWarpSize * kStates));
  } else {
    if (params.state_size > Lanes * kStates)
      return DispatchLanes<T, Lanes * 2>(context, params, num_seqs);
    return Launch(
        context, "SelectiveScan", SelectiveScanKernel<T, Lanes>,
        {dim3(num_seqs, CeilDiv(int64_t{params.d_inner} * Lanes, kThreads)),
         dim3(kThreads)},
        params);
  }
}

}  // namespace

absl::Status SelectiveScanCuda(const OpContext& context,
                               const SelectiveScanArgs& args) {
  ScanParams params = {};
  params.token_offsets = args.batch.token_offsets;
  params.state = args.state;
  params.d_inner = static_cast<int32_t>(args.dt.cols);
  params.state_size = args.state_size;
  params.head_width = params.d_inner / args.num_heads;
  params.heads_per_b = args.num_heads / args.num_b_heads;
  params.heads_per_x = args.num_heads / args.num_x_heads;
  params.x = args.x;
  params.dt = args.dt;
  params.b = args.b;
  params.c = args.c;
  params.z = args.z;
  params.out = args.out;
  params.a_log = args.a_log;
  params.d = args.d;
  return DispatchActivation(args.x.dtype, "SelectiveScan", [&](auto tag) {
    return DispatchLanes<typename decltype(tag)::type, 1>(context, params,
                                                          args.batch.num_seqs);
  });
}

}  // namespace switchyard::internal
