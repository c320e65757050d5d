// One token of every sequence through kda's convolution, gates, delta rule and
// norm, in one kernel: at few sequences the five take 2 us each, which is how
// long a kernel takes to see what the one before it wrote. gdn's four are
// faster by themselves: its value heads share a key head's convolution, so more
// blocks would have to wait for each other (docs/kernel_log.md).
//
// A cluster of blocks has one head of one sequence in slices of its columns, a
// block a slice. Each block convolves its share of the head's q and k (and
// projects its share of the decays) and hands the results to the others, so
// that every channel's convolution state has one reader and writer. The
// recurrence is that of delta_rule_recurrent_cuda.cu.
//
// States are those of an earlier step and no other kernel of this one writes
// them, so they are loaded before GridWait, as are all weights (see
// cuda_common.h).
#include <algorithm>

#include "kernels/backends.h"
#include "kernels/cuda_common.h"
#include "kernels/cuda_ptx.h"
#include "kernels/gated_delta_cuda.h"
#include "kernels/matmul_cuda.h"

namespace switchyard::internal {
namespace {

using namespace switchyard::cuda;

constexpr int kDim = 128;  // of keys and of values
constexpr int kTaps = 4;   // of the convolution
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;

struct StepParams {
  SlotTable conv_state, state;
  MatrixView x;                       // [num_seqs, channels of the convolution]
  int32_t first_q, first_k, first_v;  // channels of the first heads
  const float* conv_weight;
  const float* conv_bias;
  bool conv_silu;
  int32_t num_heads;
  MatrixView beta, alpha, gate, out;
  const float* a_log;
  const float* dt_bias;
  const float* norm_weight;
  float norm_epsilon;
  bool sigmoid_gate;
  // Where these are still to be projected: [num_seqs, kDim] and
  // [num_heads * kDim, kDim].
  MatrixView decay_x, gate_x;
  const bf16* decay_weight;
  const bf16* gate_weight;
};

// One channel of the convolution.
struct Channel {
  float weight[kTaps], bias;
  float past[kTaps - 1];  // oldest first

  __device__ __forceinline__ void Read(const StepParams& p, const float* state,
                                       int32_t channel) {
    Load<kTaps>(p.conv_weight + int64_t{channel} * kTaps, weight);
    bias = p.conv_bias == nullptr ? 0.0f : p.conv_bias[channel];
#pragma unroll
    for (int j = 0; j < kTaps - 1; ++j)
      past[j] = state[int64_t{channel} * (kTaps - 1) + j];
  }
  // The output for the input x, which joins the state.
  __device__ __forceinline__ float Push(float x, bool silu, float* state,
                                        int32_t channel) {
    float y = bias + weight[kTaps - 1] * x;
#pragma unroll
    for (int j = 0; j < kTaps - 1; ++j) y += weight[j] * past[j];
    state += int64_t{channel} * (kTaps - 1);
#pragma unroll
    for (int j = 0; j + 1 < kTaps - 1; ++j) state[j] = past[j + 1];
    state[kTaps - 2] = x;
    return silu ? FastSilu(y) : y;
  }
};

// A share of a dot product over kDim columns, bf16 by bf16.
template <int N>
struct DotShare {
  Pack<bf16, 8> weight[N / 8];

  __device__ __forceinline__ void Read(const bf16* w) {
#pragma unroll
    for (int i = 0; i < N / 8; ++i)
      weight[i] = reinterpret_cast<const Pack<bf16, 8>*>(w)[i];
  }
  __device__ __forceinline__ float Times(const bf16* x) const {
    Pack<bf16, 8> with[N / 8];
#pragma unroll
    for (int i = 0; i < N / 8; ++i)
      with[i] = reinterpret_cast<const Pack<bf16, 8>*>(x)[i];
    float sum = 0;
#pragma unroll
    for (int i = 0; i < N / 8; ++i) {
#pragma unroll
      for (int j = 0; j < 8; ++j)
        sum += ToFloat(weight[i].item[j]) * ToFloat(with[i].item[j]);
    }
    return sum;
  }
};

// Of a block that has kDim / Slices columns of a head. Warp w holds rows
// [16 w, 16 w + 16) of the state, its lane group `lane / kLanes` a contiguous
// part of them, and each lane four adjacent columns.
// kProject: alpha and gate are still to be projected.
template <bool kProject, int Slices>
__global__ void __launch_bounds__(kThreads)
    GatedDeltaStepKernel(const StepParams p) {
  constexpr int kColumns = kDim / Slices;  // as many of q and of k are ours
  constexpr int kLanes = kColumns / 4;
  constexpr int kGroups = kWarpSize / kLanes;
  constexpr int kRows = kDim / kWarps / kGroups;  // of a thread
  // Channels that a thread convolves, at most.
  constexpr int kChannels = (3 * kColumns + kThreads - 1) / kThreads;
  // Threads that share one output of a low-rank projection.
  constexpr int kDotThreads = kThreads / kColumns;
  constexpr int kDotColumns = kDim / kDotThreads;

  __shared__ alignas(16) float q_k[2][kDim];
  __shared__ alignas(16) float decays[kDim];
  __shared__ alignas(16) float v[kColumns];
  __shared__ alignas(16) float gates[kColumns];
  __shared__ float4 partial[2][kWarps][kLanes];
  __shared__ float squares[Slices];

  GridTrigger();
  // From here on the other blocks' shared memory may be written to.
  if constexpr (Slices > 1) ArriveCluster();
  const int thread = threadIdx.x;
  const int warp = thread / kWarpSize, lane = thread % kWarpSize;
  const int slice = blockIdx.x % Slices;  // this block's rank in its cluster
  const int32_t head = blockIdx.x / Slices % p.num_heads;
  const int32_t seq = blockIdx.x / Slices / p.num_heads;
  const int group = lane / kLanes;
  const int column = slice * kColumns + lane % kLanes * 4;  // of the head
  const int first_row = warp * (kDim / kWarps) + group * kRows;

  float* state = StateOf(p.state, seq) +
                 (int64_t{head} * kDim + first_row) * kDim + column;
  float s[kRows][4];
#pragma unroll
  for (int i = 0; i < kRows; ++i) Load<4>(state + i * kDim, s[i]);

  // Channels: this block's columns of q, of k and of v.
  float* conv_state = StateOf(p.conv_state, seq);
  const int32_t first_column = head * kDim + slice * kColumns;
  Channel channels[kChannels];
  int32_t channel_ids[kChannels];
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    const int item = thread + c * kThreads;
    const int32_t first = item < kColumns       ? p.first_q
                          : item < 2 * kColumns ? p.first_k
                                                : p.first_v;
    channel_ids[c] =
        item < 3 * kColumns ? first + first_column + item % kColumns : -1;
    if (channel_ids[c] >= 0) channels[c].Read(p, conv_state, channel_ids[c]);
  }

  const float minus_a = -expf(p.a_log[head]);
  float bias = 0;
  DotShare<kProject ? kDotColumns : 8> decay_share, gate_share;
  if constexpr (kProject) {
    const int64_t row = first_column + thread / kDotThreads;
    const int64_t at = row * kDim + thread % kDotThreads * kDotColumns;
    bias = p.dt_bias[row];
    decay_share.Read(p.decay_weight + at);
    gate_share.Read(p.gate_weight + at);
  } else {
    if (thread < kDim) bias = p.dt_bias[int64_t{head} * kDim + thread];
  }
  float scale[4];
  Load<4>(p.norm_weight + column, scale);

  if constexpr (Slices > 1) WaitCluster();
  GridWait();

#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    if (channel_ids[c] < 0) continue;
    const int item = thread + c * kThreads;
    const float y =
        channels[c].Push(ToFloat(RowOf<bf16>(p.x, seq)[channel_ids[c]]),
                         p.conv_silu, conv_state, channel_ids[c]);
    if (item >= 2 * kColumns) {
      v[item - 2 * kColumns] = y;
      continue;
    }
    float* to = &q_k[item / kColumns][slice * kColumns + item % kColumns];
    if constexpr (Slices == 1) {
      *to = y;
    } else {
#pragma unroll
      for (int r = 0; r < Slices; ++r) StoreShared(to, r, y);
    }
  }
  if constexpr (kProject) {
    const int first = thread % kDotThreads * kDotColumns;
    const float alpha = WarpSum<kDotThreads>(
        decay_share.Times(RowOf<bf16>(p.decay_x, seq) + first));
    const float gate = WarpSum<kDotThreads>(
        gate_share.Times(RowOf<bf16>(p.gate_x, seq) + first));
    const int at = thread / kDotThreads;
    // Its threads hand the decay to one block each.
    const float value = __expf(minus_a * Softplus(alpha + bias));
    for (int r = thread % kDotThreads; r < Slices; r += kDotThreads)
      StoreShared(&decays[slice * kColumns + at], r, value);
    if (thread % kDotThreads == 0) gates[at] = gate;
  } else if (thread < kDim) {
    const float alpha =
        LoadAs(p.alpha.data, p.alpha.dtype,
               seq * p.alpha.row_stride + int64_t{head} * kDim + thread);
    decays[thread] = __expf(minus_a * Softplus(alpha + bias));
  }
  const float b = Sigmoid(
      LoadAs(p.beta.data, p.beta.dtype, seq * p.beta.row_stride + head));
  float gating[4];
  if constexpr (!kProject)
    Load<4>(RowOf<bf16>(p.gate, seq) + int64_t{head} * kDim + column, gating);
  if constexpr (Slices > 1) {
    SyncCluster();
  } else {
    __syncthreads();
  }
  if constexpr (kProject) Load<4>(gates + lane % kLanes * 4, gating);

  float q4[4], k4[4];
  Load<4>(q_k[0] + 4 * lane, q4);
  Load<4>(q_k[1] + 4 * lane, k4);
  float q_norm = 0, k_norm = 0, dot = 0;
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    q_norm += q4[e] * q4[e];
    k_norm += k4[e] * k4[e];
    dot += q4[e] * k4[e];
  }
  const float q_scale =
      rsqrtf(WarpSum(q_norm) + 1e-6f) * rsqrtf(static_cast<float>(kDim));
  const float k_scale = rsqrtf(WarpSum(k_norm) + 1e-6f);
  dot = WarpSum(dot) * q_scale * k_scale;

  float k[kRows];
  float along_k[4] = {}, along_q[4] = {};
#pragma unroll
  for (int first = 0; first < kRows; first += 4) {
    float rows_q[4], rows_k[4], rows_decay[4];
    Load<4>(q_k[0] + first_row + first, rows_q);
    Load<4>(q_k[1] + first_row + first, rows_k);
    Load<4>(decays + first_row + first, rows_decay);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float q = rows_q[i] * q_scale;
      k[first + i] = rows_k[i] * k_scale;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        s[first + i][j] *= rows_decay[i];
        along_k[j] += s[first + i][j] * k[first + i];
        along_q[j] += s[first + i][j] * q;
      }
    }
  }
#pragma unroll
  for (int delta = kLanes; delta < kWarpSize; delta *= 2) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      along_k[j] += __shfl_xor_sync(kFullWarp, along_k[j], delta);
      along_q[j] += __shfl_xor_sync(kFullWarp, along_q[j], delta);
    }
  }
  if (group == 0) {
    partial[0][warp][lane] =
        make_float4(along_k[0], along_k[1], along_k[2], along_k[3]);
    partial[1][warp][lane] =
        make_float4(along_q[0], along_q[1], along_q[2], along_q[3]);
  }
  __syncthreads();
  float sum_k[4] = {}, sum_q[4] = {};
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    const float4 a = partial[0][w][lane % kLanes];
    const float4 c = partial[1][w][lane % kLanes];
    sum_k[0] += a.x, sum_k[1] += a.y, sum_k[2] += a.z, sum_k[3] += a.w;
    sum_q[0] += c.x, sum_q[1] += c.y, sum_q[2] += c.z, sum_q[3] += c.w;
  }
  float values[4], u[4], out[4];
  Load<4>(v + lane % kLanes * 4, values);
  float square = 0;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    u[j] = b * (values[j] - sum_k[j]);
    out[j] = sum_q[j] + dot * u[j];
    square += out[j] * out[j];
  }
  square = WarpSum<kLanes>(square);
  if constexpr (Slices > 1) {
    if (thread < Slices) StoreShared(&squares[slice], thread, square);
    ArriveCluster();
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) s[i][j] += k[i] * u[j];
    Store<4>(state + i * kDim, s[i]);
  }
  if constexpr (Slices > 1) {
    WaitCluster();
    square = 0;
#pragma unroll
    for (int i = 0; i < Slices; ++i) square += squares[i];
  }
  if (warp == 0 && group == 0) {
    const float norm = rsqrtf(square / kDim + p.norm_epsilon);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      out[j] *= norm * scale[j] *
                (p.sigmoid_gate ? Sigmoid(gating[j]) : Silu(gating[j]));
    }
    Store<4>(RowOf<bf16>(p.out, seq) + int64_t{head} * kDim + column, out);
  }
}

// Into how many slices heads are cut: narrow ones while about all of them are
// on the SMs at once, so that every state is on its way before the token is
// known.
int32_t NumSlices(const OpContext& context, const DeltaRuleArgs& rule) {
  const int64_t heads = int64_t{rule.batch.num_seqs} * rule.num_value_heads;
  return heads > AsCuda(context.device)->num_sms() ? 1 : 4;
}

// The channel where `part` starts in conv.out, or -1 if it is no part of it.
int64_t FirstChannel(const CausalConvArgs& conv, const MatrixView& part) {
  const auto* base = static_cast<const bf16*>(conv.out.data);
  const auto* data = static_cast<const bf16*>(part.data);
  const bool inside = part.dtype == conv.out.dtype &&
                      part.row_stride == conv.out.row_stride && data >= base &&
                      data - base + part.cols <= conv.out.cols;
  return inside ? data - base : -1;
}

bool SameBatch(const VarlenBatch& a, const VarlenBatch& b) {
  return a.num_seqs == b.num_seqs && a.num_tokens == b.num_tokens &&
         a.num_decodes == b.num_decodes;
}

template <bool kProject, int Slices>
absl::Status LaunchStep(const OpContext& context, const StepParams& params,
                        int32_t num_seqs) {
  LaunchShape shape;
  shape.cluster = Slices;
  shape.grid = dim3(
      static_cast<unsigned>(int64_t{num_seqs} * params.num_heads * Slices));
  shape.block = dim3(kThreads);
  return Launch(context, "GatedDelta (step)",
                GatedDeltaStepKernel<kProject, Slices>, shape, params);
}

}  // namespace

bool CanStepGatedDelta(const OpContext& context, const GatedDeltaArgs& args) {
  const auto& [decay, gate, conv, rule, norm] = args;
  const int64_t rows = rule.batch.num_seqs;
  const int64_t cols = int64_t{rule.num_value_heads} * kDim;
  const auto is = [&](const MatrixView& view, int64_t num_cols) {
    return view.data != nullptr && view.rows == rows && view.cols == num_cols;
  };
  return !context.batch_invariant && rows > 0 &&
         rule.batch.num_decodes == rows && rule.batch.num_tokens == rows &&
         SameBatch(rule.batch, conv.batch) &&
         rule.decay == DecayKind::kPerChannel &&
         rule.num_key_heads == rule.num_value_heads && rule.key_dim == kDim &&
         rule.value_dim == kDim && norm.head_dim == kDim &&
         conv.kernel_size == kTaps && conv.x.dtype == DType::kBF16 &&
         conv.x.data == conv.out.data && is(conv.x, conv.out.cols) &&
         is(rule.q, cols) && is(rule.k, cols) && is(rule.v, cols) &&
         FirstChannel(conv, rule.q) >= 0 && FirstChannel(conv, rule.k) >= 0 &&
         FirstChannel(conv, rule.v) >= 0 &&
         is(rule.beta, rule.num_value_heads) && is(rule.alpha, cols) &&
         (decay.weight == nullptr ||
          (decay.x.rows == rows && decay.out.data == rule.alpha.data)) &&
         (gate.weight == nullptr ||
          (gate.x.rows == rows && gate.out.data == norm.gate.data)) &&
         norm.x.data == rule.out.data && is(norm.gate, cols) &&
         is(norm.out, cols) && norm.gate.dtype == DType::kBF16 &&
         norm.out.dtype == DType::kBF16 && AlignedTo(norm.gate, 8) &&
         AlignedTo(norm.out, 8) && rule.state.offset % 16 == 0 &&
         conv.weight != nullptr && rule.a_log != nullptr &&
         rule.dt_bias != nullptr && norm.weight != nullptr &&
         reinterpret_cast<uintptr_t>(conv.weight) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(norm.weight) % 16 == 0;
}

absl::Status StepGatedDelta(const OpContext& context,
                            const GatedDeltaArgs& args) {
  const auto& [decay, gate, conv, rule, norm] = args;
  const int32_t num_seqs = rule.batch.num_seqs;
  StepParams params = {};
  params.conv_state = conv.state;
  params.state = rule.state;
  params.x = conv.x;
  params.first_q = static_cast<int32_t>(FirstChannel(conv, rule.q));
  params.first_k = static_cast<int32_t>(FirstChannel(conv, rule.k));
  params.first_v = static_cast<int32_t>(FirstChannel(conv, rule.v));
  params.conv_weight = conv.weight;
  params.conv_bias = conv.bias;
  params.conv_silu = conv.silu;
  params.num_heads = rule.num_value_heads;
  params.beta = rule.beta;
  params.alpha = rule.alpha;
  params.gate = norm.gate;
  params.out = norm.out;
  params.a_log = rule.a_log;
  params.dt_bias = rule.dt_bias;
  params.norm_weight = norm.weight;
  params.norm_epsilon = norm.epsilon;
  params.sigmoid_gate = norm.activation == GateActivation::kSigmoid;
  const int32_t num_slices = NumSlices(context, rule);
  const bool low_rank = CanProjectGates(decay, gate);
  if (low_rank && num_slices == 4) {
    params.decay_x = decay.x;
    params.gate_x = gate.x;
    params.decay_weight =
        reinterpret_cast<const bf16*>(AsCuda(*decay.weight).data.get());
    params.gate_weight =
        reinterpret_cast<const bf16*>(AsCuda(*gate.weight).data.get());
    return LaunchStep<true, 4>(context, params, num_seqs);
  }
  if (low_rank) {
    SY_RETURN_IF_ERROR(ProjectGates(context, decay, gate));
  } else {
    for (const MatmulArgs& product : {decay, gate}) {
      if (product.weight != nullptr)
        SY_RETURN_IF_ERROR(MatmulCuda(context, product));
    }
  }
  return num_slices == 4 ? LaunchStep<false, 4>(context, params, num_seqs)
                         : LaunchStep<false, 1>(context, params, num_seqs);
}

}  // namespace switchyard::internal
