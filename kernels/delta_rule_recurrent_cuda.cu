// The delta rule token by token. A block holds a slice of one head's state in
// registers: with S' = exp(g) S, both S'^T k and S'^T q come from one pass, and
//   u = b (v - S'^T k),  out = S'^T q + (k.q) u,  S = S' + k u^T
// so that each state element is read once and written once. The state is that
// of an earlier step and no other kernel of this one writes it, so it is loaded
// before GridWait (see cuda_common.h).
#include <algorithm>

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
  bool vector_keys;    // a lane's part of q, k and alpha is one access
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

// LoadAs without a branch, behind which later loads would have to wait.
__device__ __forceinline__ float LoadGate(const MatrixView& view, int64_t row,
                                          int64_t column) {
  const auto* halves = static_cast<const uint16_t*>(view.data);
  const int64_t index = row * view.row_stride + column;
  const bool wide = view.dtype == DType::kF32;
  const uint32_t high = halves[wide ? 2 * index + 1 : index];
  const uint32_t low = wide ? halves[2 * index] : 0;
  return __uint_as_float(high << 16 | low);
}

// What a lane loads of one token before any of it is used.
template <typename T, int E, bool PerChannel>
struct TokenInputs {
  float q[E], k[E], v[4];
  float beta;
  float alpha[PerChannel ? E : 1];
};

template <typename T, int E, bool PerChannel>
__device__ __forceinline__ TokenInputs<T, E, PerChannel> LoadToken(
    const RecurrentParams& p, int64_t row, int32_t head, int32_t column) {
  const int first = threadIdx.x % kWarpSize * E;
  TokenInputs<T, E, PerChannel> x = {};
  const int64_t keys = int64_t{head / p.values_per_key} * p.key_dim + first;
  const T* q = RowOf<T>(p.q, row) + keys;
  const T* k = RowOf<T>(p.k, row) + keys;
  if (column < p.value_dim)
    Load<4>(RowOf<T>(p.v, row) + int64_t{head} * p.value_dim + column, x.v);
  x.beta = LoadGate(p.beta, row, head);
  if constexpr (!PerChannel) x.alpha[0] = LoadGate(p.alpha, row, head);
  if (p.vector_keys) {
    if (first < p.key_dim) {
      Load<E>(q, x.q);
      Load<E>(k, x.k);
      if constexpr (PerChannel) {
        const int64_t at =
            row * p.alpha.row_stride + int64_t{head} * p.key_dim + first;
        if (p.alpha.dtype == DType::kF32)
          Load<E>(static_cast<const float*>(p.alpha.data) + at, x.alpha);
        else
          Load<E>(static_cast<const bf16*>(p.alpha.data) + at, x.alpha);
      }
    }
    return x;
  }
#pragma unroll
  for (int e = 0; e < E; ++e) {
    if (first + e >= p.key_dim) break;
    x.q[e] = ToFloat(q[e]);
    x.k[e] = ToFloat(k[e]);
    if constexpr (PerChannel)
      x.alpha[e] =
          LoadGate(p.alpha, row, int64_t{head} * p.key_dim + first + e);
  }
  return x;
}

// bias: of this lane's decays.
template <typename T, int E, bool PerChannel>
__device__ __forceinline__ KeyVectors<E> MakeKeyVectors(
    const RecurrentParams& p, const TokenInputs<T, E, PerChannel>& in,
    const float (&bias)[PerChannel ? E : 1], float minus_a) {
  KeyVectors<E> x;
  float q_norm = 0, k_norm = 0, dot = 0;
#pragma unroll
  for (int e = 0; e < E; ++e) {
    q_norm += in.q[e] * in.q[e];
    k_norm += in.k[e] * in.k[e];
    dot += in.q[e] * in.k[e];
  }
#pragma unroll
  for (int e = 0; e < (PerChannel ? E : 1); ++e)
    x.decay[e] = __expf(minus_a * Softplus(in.alpha[e] + bias[e]));
  const float q_scale =
      rsqrtf(WarpSum(q_norm) + 1e-6f) * rsqrtf(static_cast<float>(p.key_dim));
  const float k_scale = rsqrtf(WarpSum(k_norm) + 1e-6f);
  x.dot = WarpSum(dot) * q_scale * k_scale;
#pragma unroll
  for (int e = 0; e < E; ++e) {
    x.q[e] = in.q[e] * q_scale;
    x.k[e] = in.k[e] * k_scale;
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
  float bias[PerChannel ? E : 1];
#pragma unroll
  for (int e = 0; e < (PerChannel ? E : 1); ++e) {
    const int channel = lane * E + e;
    bias[e] = !PerChannel ? p.dt_bias[head]
              : channel < p.key_dim
                  ? p.dt_bias[int64_t{head} * p.key_dim + channel]
                  : 0.0f;
  }

  float* state = StateOf(p.state, seq) +
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

  const int32_t first = p.token_offsets[seq], end = p.token_offsets[seq + 1];
  GridWait();

  int parity = 0;
  for (int32_t row = first; row < end; ++row, parity ^= 1) {
    const TokenInputs<T, E, PerChannel> in =
        LoadToken<T, E, PerChannel>(p, row, head, column);
    const KeyVectors<E> x =
        MakeKeyVectors<T, E, PerChannel>(p, in, bias, minus_a);
    const float b = Sigmoid(in.beta);
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
      const float u = b * (in.v[j] - sum_k[j]);
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
  // Narrow slices while about all of them are on the SMs at once, so that every
  // state is on its way before the token's vectors are known.
  const int64_t most_narrow =
      (PerChannel ? 4 : 3) * AsCuda(context.device)->num_sms();
  const bool wide = E <= 4 && params.value_dim % 128 == 0 &&
                    heads * CeilDiv(params.value_dim, 32) > most_narrow;
  params.num_slices =
      static_cast<int32_t>(CeilDiv(params.value_dim, wide ? 128 : 32));
  const auto aligned = [](const MatrixView& view) {
    return AlignedTo(view, std::min<int64_t>(16, E * DTypeBytes(view.dtype)));
  };
  params.vector_keys = params.key_dim % E == 0 && aligned(params.q) &&
                       aligned(params.k) &&
                       (!PerChannel || aligned(params.alpha));
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
