// Chunks of the delta rule with a decay per head, the part that does not depend
// on the state.
#include "kernels/delta_rule_prepare_cuda.h"

namespace switchyard::internal {
namespace {

using namespace switchyard::internal::prepare;

struct PerHeadShared {
  union {
    Rows q;
    Square t;  // once Q is used up
  };
  Rows k, v;
  Square a;
  TokenScales scales;
  float decay[kTokens];      // G
  float w_columns[kTokens];  // beta exp(G) / |k|
};

// G, by an inclusive sum over the tokens. Threads of the first two warps.
__device__ __forceinline__ void SumDecays(const PrepareParams& p,
                                          const RowTile& tile, int32_t head,
                                          float* decay) {
  const int i = threadIdx.x, lane = i % kWarpSize;
  float g = 0;
  if (i < tile.rows) {
    g = -expf(p.a_log[head]) *
        Softplus(LoadAs(p.alpha.data, p.alpha.dtype,
                        (int64_t{tile.row} + i) * p.alpha.row_stride + head) +
                 p.dt_bias[head]);
  }
#pragma unroll
  for (int delta = 1; delta < kWarpSize; delta *= 2) {
    const float before = __shfl_up_sync(kFullWarp, g, delta);
    if (lane >= delta) g += before;
  }
  decay[i] = g;  // of the second warp: without the first one's
}

// Rows 16 warp .. 16 warp + 15 of A (to shared memory) and P, and of Q.
__device__ __forceinline__ void ComputePerHeadProducts(PerHeadShared& x,
                                                       const Destination& to) {
  const int r = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  float kk[2 * kTokenBlocks][4] = {}, qk[2 * kTokenBlocks][4] = {};
#pragma unroll
  for (int c = 0; c < kDimBlocks; ++c) {
    uint32_t k_left[4], q_left[4];
    LoadBlock(x.k, r, c, k_left);
    LoadBlock(x.q, r, c, q_left);
    if (to.key != nullptr) StoreBlock(to.key, r * kDimBlocks + c, q_left);
#pragma unroll
    for (int s = 0; s < kTokenBlocks; ++s) {
      if (s > r) continue;
      uint32_t right[4];
      LoadBlock(x.k, s, c, right);
      MultiplyBlock(k_left, right, kk[2 * s], kk[2 * s + 1]);
      MultiplyBlock(q_left, right, qk[2 * s], qk[2 * s + 1]);
    }
  }
#pragma unroll
  for (int s = 0; s < kTokenBlocks; ++s) {
    if (s > r) continue;
#pragma unroll
    for (int tile = 2 * s; tile < 2 * s + 2; ++tile) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int i = r * 16 + lane / 4 + e / 2 * 8;
        const int j = tile * 8 + lane % 4 * 2 + e % 2;
        const float factor =
            j <= i ? __expf(x.decay[i] - x.decay[j]) * x.scales.k[j] : 0.0f;
        const float of_a = x.scales.beta[i] * x.scales.k[i] * factor;
        x.a[i][j] = j < i ? kk[tile][e] * of_a : 0.0f;
        qk[tile][e] *= x.scales.q[i] * factor;
      }
    }
    StoreBlock(to.head + DeltaChunks::kPOffset, TriangleIndex(r, s), qk[2 * s],
               qk[2 * s + 1]);
  }
}

// Block (value head, tile).
__global__ void __launch_bounds__(kThreads, 3)
    PreparePerHeadKernel(const PrepareParams p) {
  extern __shared__ __align__(128) std::byte shared_bytes[];
  auto& x = *reinterpret_cast<PerHeadShared*>(shared_bytes);
  GridTrigger();
  GridWait();
  const int32_t head = blockIdx.x;
  const RowTile tile =
      FindTile(p.token_offsets, p.chunks.first_seq, p.chunks.end_seq, kTokens,
               p.chunks.first_tile + blockIdx.y);
  if (tile.rows == 0) return;
  const Destination to = DestinationOf(p, blockIdx.y, head);
  const int32_t key_column =
      head / (p.num_value_heads / p.num_key_heads) * kDim;
  FetchRows(x.q, p.q, tile, key_column);
  FetchRows(x.k, p.k, tile, key_column);
  FetchRows(x.v, p.v, tile, head * kDim);
  const int i = threadIdx.x;
  ComputeBeta(p, tile, head, x.scales);
  if (i < kTokens) SumDecays(p, tile, head, x.decay);
  WaitCopies<1>();
  __syncthreads();
  const float of_first_warp = x.decay[kWarpSize - 1];
  ComputeNorms(x.q, x.k, x.scales);
  __syncthreads();
  if (i >= kWarpSize && i < kTokens) x.decay[i] += of_first_warp;
  __syncthreads();

  if (i < kTokens) {
    const float last = x.decay[kTokens - 1], here = x.decay[i];
    x.w_columns[i] = x.scales.beta[i] * __expf(here) * x.scales.k[i];
    float* scale =
        reinterpret_cast<float*>(to.head + DeltaChunks::kScaleOffset);
    scale[i] = __expf(here) * x.scales.q[i];
    scale[kTokens + i] = __expf(last - here) * x.scales.k[i];
    if (i < 4) scale[2 * kTokens + i] = __expf(last);
  }
  ComputePerHeadProducts(x, to);
  __syncthreads();
  InvertUnitLower(x.a, x.t);
  ComputeW(x.t, x.w_columns, x.k, to.head,
           to.key == nullptr ? nullptr : to.key + DeltaChunks::kQBytes);
  WaitCopies<0>();
  __syncthreads();
  ComputeU(x.t, x.scales.beta, x.v, to.head + DeltaChunks::kUOffset);
}

}  // namespace

absl::Status DeltaRulePrepare(const OpContext& context,
                              const DeltaRuleArgs& args,
                              const DeltaChunks& chunks) {
  PrepareParams params = {};
  params.chunks = chunks;
  params.token_offsets = args.batch.token_offsets;
  params.num_value_heads = args.num_value_heads;
  params.num_key_heads = args.num_key_heads;
  params.q = args.q;
  params.k = args.k;
  params.v = args.v;
  params.beta = args.beta;
  params.alpha = args.alpha;
  params.a_log = args.a_log;
  params.dt_bias = args.dt_bias;
  if (args.decay == DecayKind::kPerChannel)
    return prepare::LaunchPerChannel(context, params);
  return Launch(context, "DeltaRule (prepare)", PreparePerHeadKernel,
                {dim3(args.num_value_heads, chunks.num_tiles), dim3(kThreads),
                 int64_t{sizeof(PerHeadShared)}},
                params);
}

}  // namespace switchyard::internal
