// The delta rule token by token. A block holds a slice of one head's state in
// registers: with S' = exp(g) S, both S'^T k and S'^T q come from one pass, and
//   u = b (v - S'^T k),  out = S'^T q + (k.q) u,  S = S' + k u^T
// so that each state element is read once and written once.
#include "kernels/backends.h"
#include "kernels/cuda_common.h"
#include "kernels/delta_rule_cuda.h"

namespace switchyard::internal {
namespace {

using namespace switchyard::cuda;

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;

struct RecurrentParams {
  const int32_t* token_offsets;
  int32_t first_seq;
  SlotTable state;
  int32_t num_value_heads;
  int32_t values_per_key;  // value heads of a key head
  int32_t key_dim;
  int32_t value_dim;
  int32_t num_slices;  // of a head's columns
  MatrixView q, k, v, beta, alpha, out;
  const float* a_log;
  const float* dt_bias;
};

// A lane's share of one token's key-side vectors: rows lane * E + e.
template <int E>
struct KeyVectors {
  float q[E], k[E];
  float decay[E];  // exp(g); one value where the decay is per head
  float dot;       // k.q
};

template <typename T, int E, bool PerChannel>
__device__ __forceinline__ KeyVectors<E> LoadKeyVectors(
    const RecurrentParams& p, int64_t row, int32_t head, float minus_a) {
  const int lane = threadIdx.x % kWarpSize;
  KeyVectors<E> x;
  const int64_t begin = int64_t{head / p.values_per_key} * p.key_dim;
  const T* q = RowOf<T>(p.q, row) + begin;
  const T* k = RowOf<T>(p.k, row) + begin;
  float q_norm = 0, k_norm = 0, dot = 0;
#pragma unroll
  for (int e = 0; e < E; ++e) {
    const int i = lane * E + e;
    const bool inside = i < p.key_dim;
    x.q[e] = inside ? ToFloat(q[i]) : 0.0f;
    x.k[e] = inside ? ToFloat(k[i]) : 0.0f;
    q_norm += x.q[e] * x.q[e];
    k_norm += x.k[e] * x.k[e];
    dot += x.q[e] * x.k[e];
    if constexpr (PerChannel) {
      const int64_t channel = int64_t{head} * p.key_dim + i;
      x.decay[e] =
          inside ? __expf(minus_a *
                          Softplus(LoadAs(p.alpha.data, p.alpha.dtype,
                                          row * p.alpha.row_stride + channel) +
                                   p.dt_bias[channel]))
                 : 0.0f;
    }
  }
  if constexpr (!PerChannel) {
    x.decay[0] =
        __expf(minus_a * Softplus(LoadAs(p.alpha.data, p.alpha.dtype,
                                         row * p.alpha.row_stride + head) +
                                  p.dt_bias[head]));
  }
  const float q_scale =
      rsqrtf(WarpSum(q_norm) + 1e-6f) * rsqrtf(static_cast<float>(p.key_dim));
  const float k_scale = rsqrtf(WarpSum(k_norm) + 1e-6f);
  x.dot = WarpSum(dot) * q_scale * k_scale;
#pragma unroll
  for (int e = 0; e < E; ++e) {
    x.q[e] *= q_scale;
    x.k[e] *= k_scale;
  }
  return x;
}

// Key dimension up to 32 * E; the block's slice has 128 / Groups columns. Warp
// w holds rows [w * 4E, (w + 1) * 4E), its lane group `lane / (32 / Groups)` a
// contiguous part of them, and each lane four adjacent columns.
template <typename T, int E, int Groups, bool PerChannel>
__global__ void __launch_bounds__(kThreads)
    RecurrentKernel(const RecurrentParams p) {
  constexpr int kLanes = kWarpSize / Groups;
  constexpr int kColumns = 4 * kLanes;
  constexpr int kRows = 4 * E / Groups;  // of a thread
  __shared__ float4 partial[2][2][kWarps][kLanes];
  GridTrigger();
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int32_t slice = blockIdx.x % p.num_slices;
  const int32_t head = blockIdx.x / p.num_slices % p.num_value_heads;
  const int32_t seq =
      p.first_seq + blockIdx.x / p.num_slices / p.num_value_heads;
  const int group = lane / kLanes;
  const int32_t column = slice * kColumns + lane % kLanes * 4;
  const int32_t first_row = warp * 4 * E + group * kRows;
  const bool inside = column < p.value_dim;
  const float minus_a = -expf(p.a_log[head]);
  GridWait();

  float* state =
      reinterpret_cast<float*>(p.state.arena +
                               int64_t{p.state.ids[seq]} * kCacheUnitBytes +
                               p.state.offset) +
      (int64_t{head} * p.key_dim + first_row) * p.value_dim + column;
  float s[kRows][4];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    if (inside && first_row + i < p.key_dim) {
      Load<4>(state + int64_t{i} * p.value_dim, s[i]);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) s[i][j] = 0;
    }
  }

  const int32_t end = p.token_offsets[seq + 1];
  int parity = 0;
  for (int32_t row = p.token_offsets[seq]; row < end; ++row, parity ^= 1) {
    float v[4] = {};
    if (inside)
      Load<4>(RowOf<T>(p.v, row) + int64_t{head} * p.value_dim + column, v);
    const float b = Sigmoid(
        LoadAs(p.beta.data, p.beta.dtype, row * p.beta.row_stride + head));
    const KeyVectors<E> x =
        LoadKeyVectors<T, E, PerChannel>(p, row, head, minus_a);
    float k[kRows];
    float along_k[4] = {}, along_q[4] = {};
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int source = warp * 4 + (group * kRows + i) / E;
      k[i] = __shfl_sync(kFullWarp, x.k[i % E], source);
      const float q = __shfl_sync(kFullWarp, x.q[i % E], source);
      const float decay = PerChannel
                              ? __shfl_sync(kFullWarp, x.decay[i % E], source)
                              : x.decay[0];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        s[i][j] *= decay;
        along_k[j] += s[i][j] * k[i];
        along_q[j] += s[i][j] * q;
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
      partial[parity][0][warp][lane] =
          make_float4(along_k[0], along_k[1], along_k[2], along_k[3]);
      partial[parity][1][warp][lane] =
          make_float4(along_q[0], along_q[1], along_q[2], along_q[3]);
    }
    __syncthreads();  // `parity` makes one barrier a token enough
    float sum_k[4] = {}, sum_q[4] = {};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float4 a = partial[parity][0][w][lane % kLanes];
      const float4 c = partial[parity][1][w][lane % kLanes];
      sum_k[0] += a.x, sum_k[1] += a.y, sum_k[2] += a.z, sum_k[3] += a.w;
      sum_q[0] += c.x, sum_q[1] += c.y, sum_q[2] += c.z, sum_q[3] += c.w;
    }
    float out[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float u = b * (v[j] - sum_k[j]);
      out[j] = sum_q[j] + x.dot * u;
#pragma unroll
      for (int i = 0; i < kRows; ++i) s[i][j] += k[i] * u;
    }
    if (warp == 0 && group == 0 && inside) {
      const int64_t to =
          row * p.out.row_stride + int64_t{head} * p.value_dim + column;
      if (p.out.dtype == DType::kF32)
        Store<4>(static_cast<float*>(p.out.data) + to, out);
      else
        Store<4>(static_cast<bf16*>(p.out.data) + to, out);
    }
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    if (inside && first_row + i < p.key_dim)
      Store<4>(state + int64_t{i} * p.value_dim, s[i]);
  }
}

template <typename T, int E, bool PerChannel>
absl::Status LaunchRecurrent(const OpContext& context, RecurrentParams params,
                             int32_t num_seqs) {
  const int64_t heads = int64_t{num_seqs} * params.num_value_heads;
  // Narrow slices while whole heads would leave SMs idle.
  const bool wide = E <= 4 && params.value_dim % 128 == 0 &&
                    heads >= 4 * AsCuda(context.device)->num_sms();
  params.num_slices =
      static_cast<int32_t>(CeilDiv(params.value_dim, wide ? 128 : 32));
  const LaunchShape shape{dim3(heads * params.num_slices), dim3(kThreads)};
  if constexpr (E <= 4) {
    if (wide)
      return Launch(context, "DeltaRule", RecurrentKernel<T, E, 1, PerChannel>,
                    shape, params);
  }
  return Launch(context, "DeltaRule", RecurrentKernel<T, E, 4, PerChannel>,
                shape, params);
}

template <typename T, bool PerChannel>
absl::Status DispatchKeyDim(const OpContext& context,
                            const RecurrentParams& params, int32_t num_seqs) {
  if (params.key_dim <= 32)
    return LaunchRecurrent<T, 1, PerChannel>(context, params, num_seqs);
  if (params.key_dim <= 64)
    return LaunchRecurrent<T, 2, PerChannel>(context, params, num_seqs);
  if (params.key_dim <= 128)
    return LaunchRecurrent<T, 4, PerChannel>(context, params, num_seqs);
  if (params.key_dim <= 256)
    return LaunchRecurrent<T, 8, PerChannel>(context, params, num_seqs);
  return absl::UnimplementedError(absl::StrCat(
      "DeltaRule: key dimension ", params.key_dim, " on CUDA; at most 256"));
}

}  // namespace

absl::Status DeltaRuleRecurrent(const OpContext& context,
                                const DeltaRuleArgs& args, int32_t first_seq,
                                int32_t end_seq) {
  if (args.value_dim % 4 != 0 || args.state.offset % 16 != 0 ||
      !AlignedTo(args.v, 4 * DTypeBytes(args.v.dtype)) ||
      !AlignedTo(args.out, 4 * DTypeBytes(args.out.dtype))) {
    return absl::UnimplementedError(
        absl::StrCat("DeltaRule: value dimension ", args.value_dim,
                     " on CUDA; it must be a multiple of 4, and so must the "
                     "strides of v, out and the state"));
  }
  RecurrentParams params = {};
  params.token_offsets = args.batch.token_offsets;
  params.first_seq = first_seq;
  params.state = args.state;
  params.num_value_heads = args.num_value_heads;
  params.values_per_key = args.num_value_heads / args.num_key_heads;
  params.key_dim = args.key_dim;
  params.value_dim = args.value_dim;
  params.q = args.q;
  params.k = args.k;
  params.v = args.v;
  params.beta = args.beta;
  params.alpha = args.alpha;
  params.out = args.out;
  params.a_log = args.a_log;
  params.dt_bias = args.dt_bias;
  return DispatchActivation(args.q.dtype, "DeltaRule", [&](auto tag) {
    using T = typename decltype(tag)::type;
    return args.decay == DecayKind::kPerChannel
               ? DispatchKeyDim<T, true>(context, params, end_seq - first_seq)
               : DispatchKeyDim<T, false>(context, params, end_seq - first_seq);
  });
}

}  // namespace switchyard::internal
