// Prefill attention on Hopper's warpgroup matrix instructions (Shah et al.
// 2024, "FlashAttention-3"). A producer warp keeps tiles of keys and values on
// their way into shared memory by the bulk tensor copy; each consumer warpgroup
// owns 64 rows. A row is one query head of one token: the heads of a KV head
// lie side by side in a tile, so that a short chunk still fills it.
//
// Warpgroups take turns at the tensor cores: while one runs its two matrix
// products, another computes its softmax. Within a warpgroup the scores of the
// next tile are under way before the current tile's are multiplied with V.
//
// Tiles of keys lie at fixed positions of the sequence, and a tile that a row
// does not see leaves the row's bits alone; so they depend on neither the chunk
// nor the batch. Which block computes what is decided at run time.
#include <algorithm>
#include <tuple>
#include <utility>

#include "kernels/backends.h"
#include "kernels/cuda_bulk.h"
#include "kernels/cuda_common.h"
#include "kernels/cuda_ptx.h"
#include "kernels/cuda_tensor_map.h"
#include "kernels/cuda_wgmma.h"
#include "kernels/paged_attention_cuda.h"
#include "kernels/paged_attention_produce_cuda.h"
#include "kernels/paged_attention_wgmma_cuda.h"

namespace switchyard::internal {
namespace {

using namespace switchyard::internal::prefill;

__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
template <int Threads>
__device__ __forceinline__ void NamedSync(int id) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(Threads) : "memory");
}
template <int Threads>
__device__ __forceinline__ void NamedArrive(int id) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "n"(Threads) : "memory");
}
__device__ __forceinline__ void StoreMatrix4(uint32_t address, uint32_t a,
                                             uint32_t b, uint32_t c,
                                             uint32_t d) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
          address),
      "r"(a), "r"(b), "r"(c), "r"(d)
      : "memory");
}
__device__ __forceinline__ uint4 LoadShared16(uint32_t address) {
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "r"(address)
               : "memory");
  return x;
}
// ---- Consumers: warpgroups ----

// score = q k^T, under way.
template <typename S>
__device__ __forceinline__ void StartScores(float (&score)[S::kKeys / 2],
                                            uint64_t queries, uint64_t keys) {
  WgmmaFence();
#pragma unroll
  for (int i = 0; i < S::kHeadSize / 16; ++i) {
    const int panel = i / 4, step = i % 4;
    WgmmaShared<S::kKeys>(
        score, queries + panel * (S::kQueryPanel >> 4) + step * kNextK,
        keys + panel * (kPatternBytes >> 4) + step * kNextK, i > 0);
  }
  WgmmaCommit();
}

// out += weight v, under way.
template <typename S>
__device__ __forceinline__ void StartOutput(
    float (&out)[S::kOutParts][S::kOutColumns / 2],
    const uint32_t (&weight)[S::kKeys / 4], uint64_t values) {
  WgmmaFence();
#pragma unroll
  for (int i = 0; i < S::kKeys / 16; ++i) {
#pragma unroll
    for (int part = 0; part < S::kOutParts; ++part) {
      WgmmaRegisters<S::kOutColumns>(
          out[part], weight + i * 4,
          values + i * (2 * S::kGroupBytes >> 4) +
              part * (S::kOutColumns / kPanel * kPatternBytes >> 4));
    }
  }
  WgmmaCommit();
}

// Two rows' running softmax; `top` is before scaling.
struct Softmax {
  float top[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};     // this thread's columns only
  float shrink[2] = {};  // for what was accumulated before the last tile
};

// Scores to weights.
template <int Keys>
__device__ __forceinline__ void Weigh(float (&score)[Keys / 2], float scale,
                                      Softmax* softmax) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = softmax->top[half];
#pragma unroll
    for (int n = 0; n < Keys / 8; ++n)
      top = fmaxf(top,
                  fmaxf(score[n * 4 + half * 2], score[n * 4 + half * 2 + 1]));
    top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 1));
    top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 2));
    // A row with no key so far keeps -infinity, and weights of zero.
    const float base = top == -INFINITY ? 0.0f : __fmul_rn(top, scale);
    // Exactly one where the top stays: multiplied and subtracted in one
    // instruction, it could be its neighbour.
    softmax->shrink[half] =
        Exp2(__fsub_rn(__fmul_rn(softmax->top[half], scale), base));
    softmax->top[half] = top;
    float added[2] = {};
#pragma unroll
    for (int n = 0; n < Keys / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& x = score[n * 4 + half * 2 + e];
        x = Exp2(fmaf(x, scale, -base));
        added[e] += x;
      }
    }
    softmax->sum[half] =
        softmax->sum[half] * softmax->shrink[half] + (added[0] + added[1]);
  }
}

template <int Keys>
__device__ __forceinline__ void PackWeights(const float (&score)[Keys / 2],
                                            uint32_t (&weight)[Keys / 4]) {
#pragma unroll
  for (int i = 0; i < Keys / 4; ++i)
    weight[i] = PackBf16(score[2 * i], score[2 * i + 1]);
}

// Removes keys that a row does not see; the first of the thread's is at
// position `key`.
template <int Keys>
__device__ __forceinline__ void Mask(float (&score)[Keys / 2], int32_t key,
                                     const int32_t (&position)[2],
                                     int32_t window) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int32_t last = position[half] - key;  // relative to `key`
    const int32_t before = last - window;
#pragma unroll
    for (int n = 0; n < Keys / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& x = score[n * 4 + half * 2 + e];
        if (n * 8 + e > last || n * 8 + e <= before) x = -INFINITY;
      }
    }
  }
}

template <typename S>
__device__ __forceinline__ void Rescale(
    float (&out)[S::kOutParts][S::kOutColumns / 2], const float (&factor)[2]) {
#pragma unroll
  for (int part = 0; part < S::kOutParts; ++part) {
#pragma unroll
    for (int i = 0; i < S::kOutColumns / 2; ++i)
      out[part][i] *= factor[i / 2 % 2];
  }
}

// The warp's 16 rows, staged at `staging` (+ panels), to the valid rows of the
// output; `row` is the first's in the tile.
template <typename S>
__device__ __forceinline__ void StoreOutput(
    const PrefillParams& p, const Item& item, int row,
    const float (&out)[S::kOutParts][S::kOutColumns / 2], uint32_t staging) {
  const int lane = threadIdx.x % kWarpSize;
  const int matrix = lane / 8, r = matrix % 2 * 8 + lane % 8;
#pragma unroll
  for (int j = 0; j < S::kHeadSize / 8; j += 2) {
    const float(&o)[S::kOutColumns / 2] = out[j * 8 / S::kOutColumns];
    const int n = j % (S::kOutColumns / 8) * 4;
    const int chunk = j + matrix / 2;
    StoreMatrix4(staging + chunk / 8 * S::kQueryPanel + r * kRowBytes +
                     ((chunk ^ r) & 7) * 16,
                 PackBf16(o[n], o[n + 1]), PackBf16(o[n + 2], o[n + 3]),
                 PackBf16(o[n + 4], o[n + 5]), PackBf16(o[n + 6], o[n + 7]));
  }
  __syncwarp();
  constexpr int kChunks = S::kHeadSize / 8;
#pragma unroll
  for (int i = lane; i < 16 * kChunks; i += kWarpSize) {
    const int from = i / kChunks, chunk = i % kChunks;
    const int token = (row + from) / p.group;
    const int head = row + from - token * p.group;
    if (token >= item.tokens) continue;
    const uint4 x = LoadShared16(staging + chunk / 8 * S::kQueryPanel +
                                 from * kRowBytes + ((chunk ^ from) & 7) * 16);
    *reinterpret_cast<uint4*>(
        p.out + (item.row + token) * p.out_stride +
        int64_t{item.kv_head * p.group + head} * S::kHeadSize + chunk * 8) = x;
  }
  __syncwarp();
}

template <typename S>
__device__ __forceinline__ void Consume(const PrefillParams& p, int consumer,
                                        uint32_t shared, Pipeline* pipeline) {
  const int thread = threadIdx.x % kWarpgroup;
  const int warp = thread / kWarpSize, lane = thread % kWarpSize;
  // A named barrier per warpgroup says that it is its turn.
  constexpr int kTurns = 2 * kWarpgroup;
  const int my_turn = 1 + consumer;
  const int next_turn = 1 + (consumer + 1) % S::kConsumers;
  if (consumer == S::kConsumers - 1) NamedArrive<kTurns>(next_turn);

  const int warp_row = consumer * 64 + warp * 16;
  const uint32_t my_queries = shared + consumer * 64 * kRowBytes;
  const uint64_t queries = KMajor(my_queries, kPatternBytes);
  const auto keys = [&](int stage) {
    return KMajor(shared + S::kKeysAt + stage * S::kTileBytes, S::kGroupBytes);
  };
  const auto values = [&](int stage) {
    return NMajor(shared + S::kValuesAt + stage * S::kTileBytes, kPatternBytes,
                  S::kGroupBytes);
  };
  // Of what wgmma reads; each lane lets go of the item, which it reads itself.
  const auto release = [&](uint64_t* barrier) {
    if (lane == 0) Arrive(barrier);
  };
  StageCursor key, value;
  int item_phase = 0;
  for (;;) {
    WaitBarrier(&pipeline->item_full, item_phase);
    item_phase ^= 1;
    const Item item = pipeline->item;
    if (item.tokens == 0) return;
    int32_t position[2];
#pragma unroll
    for (int half = 0; half < 2; ++half)
      position[half] =
          item.position + (warp_row + lane / 4 + half * 8) / p.group;
    // Tiles up to `whole_until` and from `whole_from` on are whole for every
    // row of the warpgroup.
    const int32_t whole_until =
        (item.position + consumer * 64 / p.group + 1) / S::kKeys;
    const int32_t whole_from =
        (max(0, item.position + (consumer * 64 + 63) / p.group + 1 - p.window) +
         S::kKeys - 1) /
        S::kKeys;
    Softmax softmax;
    float score[S::kKeys / 2];
    uint32_t weight[S::kKeys / 4];
    float out[S::kOutParts][S::kOutColumns / 2] = {};
    const auto weigh = [&](int32_t t) {
      if (t >= whole_until || t < whole_from)
        Mask<S::kKeys>(score, t * S::kKeys + lane % 4 * 2, position, p.window);
      Weigh<S::kKeys>(score, p.scale, &softmax);
    };
    const auto release_queries = [&](int32_t t) {
      if (S::kOwnStaging && t == item.last_tile) Arrive(&pipeline->item_empty);
    };

    WaitBarrier(&pipeline->key_full[key.stage], key.phase);
    StartScores<S>(score, queries, keys(key.stage));
    WgmmaWait<0>();
    PinRegisters(score);
    release(&pipeline->key_empty[key.stage]);
    release_queries(item.first_tile);
    key.Next();
    weigh(item.first_tile);
    PackWeights<S::kKeys>(score, weight);

    if (item.first_tile < item.last_tile)
      WaitBarrier(&pipeline->key_full[key.stage], key.phase);
    for (int32_t t = item.first_tile + 1; t <= item.last_tile; ++t) {
      NamedSync<kTurns>(my_turn);
      StartScores<S>(score, queries, keys(key.stage));
      Rescale<S>(out, softmax.shrink);
      WaitBarrier(&pipeline->value_full[value.stage], value.phase);
      StartOutput<S>(out, weight, values(value.stage));
      NamedArrive<kTurns>(next_turn);
      WgmmaWait<1>();
      PinRegisters(score);
      release(&pipeline->key_empty[key.stage]);
      release_queries(t);
      key.Next();
      weigh(t);
      PinRegisters(score);
      // Waiting here, rather than where the keys are used, also keeps the
      // compiler from moving the exponentials past the wait below.
      if (t < item.last_tile)
        WaitBarrier(&pipeline->key_full[key.stage], key.phase);
      WgmmaWait<0>();
#pragma unroll
      for (int part = 0; part < S::kOutParts; ++part) PinRegisters(out[part]);
      release(&pipeline->value_empty[value.stage]);
      value.Next();
      PackWeights<S::kKeys>(score, weight);
    }

    Rescale<S>(out, softmax.shrink);
    WaitBarrier(&pipeline->value_full[value.stage], value.phase);
    StartOutput<S>(out, weight, values(value.stage));
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = softmax.sum[half];
      sum += __shfl_xor_sync(kFullWarp, sum, 1);
      sum += __shfl_xor_sync(kFullWarp, sum, 2);
      factor[half] = 1.0f / sum;
    }
    WgmmaWait<0>();
#pragma unroll
    for (int part = 0; part < S::kOutParts; ++part) PinRegisters(out[part]);
    release(&pipeline->value_empty[value.stage]);
    value.Next();
    Rescale<S>(out, factor);
    // Without a staging of its own, the output passes through the queries'
    // place, once no warp needs them.
    if constexpr (!S::kOwnStaging) NamedSync<kWarpgroup>(8 + consumer);
    StoreOutput<S>(p, item, warp_row, out,
                   my_queries + (S::kOwnStaging ? S::kQueryBytes : 0) +
                       warp * 16 * kRowBytes);
    if constexpr (!S::kOwnStaging) {
      FenceSharedForBulk();
      Arrive(&pipeline->item_empty);
    }
  }
}

template <typename S>
__global__ void __launch_bounds__(S::kThreads, 1)
    WgmmaKernel(const __grid_constant__ PrefillMaps maps,
                const __grid_constant__ PrefillParams p) {
  extern __shared__ uint8_t shared_raw[];
  __shared__ Pipeline pipeline;
  const uint32_t shared =
      (SharedAddress(shared_raw) + kAlignment - 1) / kAlignment * kAlignment;
  if (threadIdx.x == 0) {
    constexpr int kConsumerWarps = S::kConsumers * 4;
    InitBarrier(&pipeline.item_full, 1);
    InitBarrier(&pipeline.item_empty, kConsumerWarps * kWarpSize);
    for (int s = 0; s < kStages; ++s) {
      InitBarrier(&pipeline.key_full[s], 1);
      InitBarrier(&pipeline.key_empty[s], kConsumerWarps);
      InitBarrier(&pipeline.value_full[s], 1);
      InitBarrier(&pipeline.value_empty[s], kConsumerWarps);
    }
    FenceBarrierInit();
  }
  __syncthreads();
  GridTrigger();
  GridWait();
  const int warpgroup = threadIdx.x / kWarpgroup;
  if (warpgroup == 0) {
    GiveRegisters<S::kProducerRegisters>();
    if (threadIdx.x < kWarpSize) Produce<S>(p, maps, shared, &pipeline);
  } else {
    TakeRegisters<S::kConsumerRegisters>();
    Consume<S>(p, warpgroup - 1, shared, &pipeline);
  }
}

template <typename S>
absl::Status LaunchWgmma(const OpContext& context,
                         const PagedAttentionArgs& args, PrefillParams params) {
  const int64_t num_tokens = args.batch.num_tokens;
  params.tile_tokens = S::kRows / params.group;
  params.unit = std::min<int32_t>(args.blocks.block_size, S::kKeys);
  params.num_tiles = static_cast<int32_t>(
      NumTiles(num_tokens - params.first_seq,
               params.num_seqs - params.first_seq, params.tile_tokens));
  params.num_items = params.num_tiles * args.num_kv_heads;

  PrefillMaps maps;
  SY_RETURN_IF_ERROR(EncodeSwizzledMap<4>(
      args.q.data, {kPanel, args.num_heads, num_tokens, S::kPanels},
      {S::kHeadSize, args.q.row_stride, kPanel},
      {kPanel, params.group, params.tile_tokens, 1}, &maps.q));
  const int64_t panels = int64_t{args.num_kv_heads} * S::kPanels;
  const auto encode = [&](const void* data, int64_t rows, int64_t panels,
                          int64_t stride, int32_t box_rows, CUtensorMap* map) {
    return EncodeSwizzledMap<4>(data, {kPanel, rows, panels, box_rows / 8},
                                {stride, kPanel, 8 * stride},
                                {kPanel, 8, S::kPanels, box_rows / 8}, map);
  };
  for (const auto& [view, tile, unit] :
       {std::tuple(&args.k, &maps.k_tile, &maps.k_unit),
        std::tuple(&args.v, &maps.v_tile, &maps.v_unit)}) {
    for (const auto& [box_rows, map] :
         {std::pair(S::kKeys, tile), std::pair(params.unit, unit)})
      SY_RETURN_IF_ERROR(encode(view->data, num_tokens, panels,
                                view->row_stride, box_rows, map));
  }
  // The arena's size is not known here; ids vouch for what is read. A block of
  // large vectors may start in the middle of one: more panels reach over.
  SY_RETURN_IF_ERROR(encode(args.blocks.arena, INT32_MAX, 2 * S::kPanels,
                            S::kHeadSize, params.unit, &maps.cache));

  const int num_blocks =
      std::min(AsCuda(context.device)->num_sms(), params.num_items);
  return Launch(context, "PagedAttention (prefill, wgmma)", WgmmaKernel<S>,
                {dim3(num_blocks), dim3(S::kThreads), S::kSharedBytes}, maps,
                params);
}

}  // namespace

bool CanPrefillWgmma(const PagedAttentionArgs& args) {
  const int32_t d = args.head_size;
  // A unit of the cache fills whole groups of eight swizzled rows.
  return args.q.dtype == DType::kBF16 && args.kv_dtype == DType::kBF16 &&
         args.out.dtype == DType::kBF16 && (d == 64 || d == 128 || d == 256) &&
         args.scale > 0 && args.blocks.block_size >= 8 &&
         args.num_heads / args.num_kv_heads <= 64 && AlignedTo(args.q, 16) &&
         AlignedTo(args.k, 16) && AlignedTo(args.v, 16) &&
         AlignedTo(args.out, 16);
}

absl::Status AttentionPrefillWgmma(const OpContext& context,
                                   const PagedAttentionArgs& args,
                                   int32_t first_seq) {
  PrefillParams params = {};
  params.paging = MakePaging(args.blocks, args.num_kv_heads,
                             args.head_size * DTypeBytes(args.kv_dtype));
  params.token_offsets = args.batch.token_offsets;
  params.context_lens = args.batch.context_lens;
  params.first_seq = first_seq;
  params.num_seqs = args.batch.num_seqs;
  params.group = args.num_heads / args.num_kv_heads;
  params.past_the_end = args.batch.num_tokens;
  params.window =
      args.window > 0 ? std::min(args.window, kNoWindow) : kNoWindow;
  params.scale = args.scale * kLog2e;
  params.k = static_cast<const bf16*>(args.k.data);
  params.v = static_cast<const bf16*>(args.v.data);
  params.k_stride = args.k.row_stride;
  params.v_stride = args.v.row_stride;
  params.out = static_cast<bf16*>(args.out.data);
  params.out_stride = args.out.row_stride;
  params.counters = AsCuda(context.device)->counters();
  switch (args.head_size) {
    case 64:
      return LaunchWgmma<Shape<64, 128, 2>>(context, args, params);
    case 128:
      return LaunchWgmma<Shape<128, 128, 2>>(context, args, params);
    default:
      return LaunchWgmma<Shape<256, 64, 2>>(context, args, params);
  }
}

}  // namespace switchyard::internal
