// Prefill attention on tensor cores (Dao 2023, "FlashAttention-2"): a block
// takes 128 new rows of one head, and walks over their keys in tiles that lie
// at fixed positions of the sequence, whatever the chunk. Keys before the chunk
// come from the paged cache, the others from the activations. A row's bits
// depend on neither the chunk nor the batch.
#include "kernels/backends.h"
#include "kernels/cuda_common.h"
#include "kernels/cuda_paging.h"
#include "kernels/cuda_ptx.h"
#include "kernels/paged_attention_cuda.h"

namespace switchyard::internal {
namespace {

using namespace switchyard::cuda;

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kTileRows = 16 * kWarps;

template <int D>
constexpr int TileKeys() {
  return D == 256 ? 32 : 64;
}
template <int D>
constexpr int SharedBytes() {  // queries, then two stages of keys and values
  return (kTileRows + 4 * TileKeys<D>()) * D * 2;
}

struct PrefillParams {
  Paging paging;
  const int32_t* token_offsets;
  const int32_t* context_lens;
  int32_t first_seq, num_seqs;
  int32_t group;  // query heads of a KV head
  int32_t window;
  float scale;  // times log2(e)
  const bf16* q;
  const bf16* k;
  const bf16* v;
  int64_t q_stride, k_stride, v_stride;
  bf16* out;
  int64_t out_stride;
};

// Byte offset of 16-byte chunk j of row r; eight rows of one chunk meet
// different banks.
template <int D>
__device__ __forceinline__ uint32_t ChunkOffset(int r, int j) {
  constexpr int kChunks = D / 8;
  if constexpr (D >= 64) return (r * kChunks + (j ^ (r & 7))) * 16;
  if constexpr (D == 32) return (r * kChunks + (j ^ ((r >> 1) & 3))) * 16;
  return (r * kChunks + (j ^ ((r >> 2) & 1))) * 16;
}

template <int D>
__device__ __forceinline__ void CopyQueries(const PrefillParams& p,
                                            const RowTile& tile, int32_t head,
                                            uint32_t shared) {
  constexpr int kChunks = D / 8;
#pragma unroll 4
  for (int i = threadIdx.x; i < kTileRows * kChunks; i += kThreads) {
    const int r = i / kChunks, j = i % kChunks;
    const bool valid = r < tile.rows;
    CopyAsync16(shared + ChunkOffset<D>(r, j),
                p.q + (valid ? tile.row + r : tile.row) * p.q_stride +
                    int64_t{head} * D + j * 8,
                valid);
  }
}

// Positions [tile * TileKeys, ...), of which [begin, end) are wanted; the rest
// become zeros.
template <int D>
__device__ __forceinline__ void CopyKeys(const PrefillParams& p, int32_t seq,
                                         int32_t context, int32_t first_row,
                                         int32_t kv_head, int32_t tile,
                                         int32_t begin, int32_t end,
                                         uint32_t shared) {
  constexpr int kKeys = TileKeys<D>(), kChunks = D / 8;
#pragma unroll
  for (int i = threadIdx.x; i < kKeys * kChunks; i += kThreads) {
    const int r = i / kChunks, j = i % kChunks;
    const int32_t position = tile * kKeys + r;
    const bool valid = position >= begin && position < end;
    const bf16* key = p.k;
    const bf16* value = p.v;
    if (valid && position < context) {
      const std::byte* cached =
          p.paging.Key(p.paging.Id(seq, position), kv_head, position) + j * 16;
      key = reinterpret_cast<const bf16*>(cached);
      value = reinterpret_cast<const bf16*>(cached + p.paging.ValueOffset());
    } else if (valid) {
      const int64_t row = first_row + position - context;
      key = p.k + row * p.k_stride + kv_head * D + j * 8;
      value = p.v + row * p.v_stride + kv_head * D + j * 8;
    }
    const uint32_t offset = ChunkOffset<D>(r, j);
    CopyAsync16(shared + offset, key, valid);
    CopyAsync16(shared + kKeys * D * 2 + offset, value, valid);
  }
}

template <int D>
__global__ void __launch_bounds__(kThreads, 1)
    PrefillKernel(const PrefillParams p) {
  constexpr int kKeys = TileKeys<D>(), kChunks = D / 8;
  constexpr int kStageBytes = 2 * kKeys * D * 2;
  extern __shared__ __align__(128) uint8_t shared[];
  GridTrigger();
  GridWait();
  // Later tiles have more keys: they go first.
  const RowTile tile = FindTile(p.token_offsets, p.first_seq, p.num_seqs,
                                kTileRows, gridDim.y - 1 - blockIdx.y);
  if (tile.rows == 0) return;
  const int32_t head = blockIdx.x, kv_head = head / p.group;
  const int32_t context = p.context_lens[tile.seq];
  const int32_t first_row = p.token_offsets[tile.seq];
  const int32_t first = context + tile.row - first_row;  // position of row 0
  const int32_t begin = p.window > 0 ? max(0, first + 1 - p.window) : 0;
  const int32_t end = first + tile.rows;
  const uint32_t queries = SharedAddress(shared);
  const uint32_t stages = queries + kTileRows * D * 2;
  const auto copy = [&](int32_t t) {
    CopyKeys<D>(p, tile.seq, context, first_row, kv_head, t, begin, end,
                stages + t % 2 * kStageBytes);
  };
  const int32_t first_tile = begin / kKeys;
  const int32_t last_tile = (end - 1) / kKeys;
  CopyQueries<D>(p, tile, head, queries);
  copy(first_tile);
  CommitCopies();

  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int matrix = lane / 8, matrix_row = lane % 8;
  const int32_t row_position[2] = {first + warp * 16 + lane / 4,
                                   first + warp * 16 + lane / 4 + 8};
  float out[kChunks][4] = {};
  float top[2] = {-INFINITY, -INFINITY}, sum[2] = {};

  for (int32_t t = first_tile; t <= last_tile; ++t) {
    WaitCopies<0>();
    __syncthreads();
    if (t < last_tile) copy(t + 1);
    CommitCopies();
    const uint32_t keys = stages + t % 2 * kStageBytes;
    const uint32_t values = keys + kKeys * D * 2;

    float score[kKeys / 8][4] = {};
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      uint32_t query[4];
      LoadMatrix4(query, queries + ChunkOffset<D>(
                                       warp * 16 + matrix % 2 * 8 + matrix_row,
                                       step * 2 + matrix / 2));
#pragma unroll
      for (int n = 0; n < kKeys / 16; ++n) {
        uint32_t key[4];
        LoadMatrix4(key,
                    keys + ChunkOffset<D>(n * 16 + matrix / 2 * 8 + matrix_row,
                                          step * 2 + matrix % 2));
        Mma(score[2 * n], query[0], query[1], query[2], query[3], key[0],
            key[1]);
        Mma(score[2 * n + 1], query[0], query[1], query[2], query[3], key[2],
            key[3]);
      }
    }
    // Whether any row of the block misses any key of the tile.
    const bool partial = (t + 1) * kKeys > first + 1 ||
                         (p.window > 0 && t * kKeys < end - p.window);
    uint32_t weight[kKeys / 8][2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float new_top = top[half];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = score[n][half * 2 + e];
          x *= p.scale;
          if (partial) {
            const int32_t position = t * kKeys + n * 8 + lane % 4 * 2 + e;
            if (position > row_position[half] ||
                (p.window > 0 && position <= row_position[half] - p.window))
              x = -INFINITY;
          }
          new_top = fmaxf(new_top, x);
        }
      }
      new_top = fmaxf(new_top, __shfl_xor_sync(kFullWarp, new_top, 1));
      new_top = fmaxf(new_top, __shfl_xor_sync(kFullWarp, new_top, 2));
      // A row with no key so far keeps -infinity, and weights of zero.
      const float base = new_top == -INFINITY ? 0.0f : new_top;
      const float shrink = exp2f(top[half] - base);
      top[half] = new_top;
      float added = 0;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
        const float low = exp2f(score[n][half * 2] - base);
        const float high = exp2f(score[n][half * 2 + 1] - base);
        added += low + high;
        weight[n][half] = PackBf16(low, high);
      }
      sum[half] = sum[half] * shrink + added;
#pragma unroll
      for (int j = 0; j < kChunks; ++j) {
        out[j][half * 2] *= shrink;
        out[j][half * 2 + 1] *= shrink;
      }
    }
#pragma unroll
    for (int n = 0; n < kKeys / 16; ++n) {
#pragma unroll
      for (int j = 0; j < kChunks; j += 2) {
        uint32_t value[4];
        LoadMatrix4Transposed(
            value, values + ChunkOffset<D>(n * 16 + matrix % 2 * 8 + matrix_row,
                                           j + matrix / 2));
        Mma(out[j], weight[2 * n][0], weight[2 * n][1], weight[2 * n + 1][0],
            weight[2 * n + 1][1], value[0], value[1]);
        Mma(out[j + 1], weight[2 * n][0], weight[2 * n][1],
            weight[2 * n + 1][0], weight[2 * n + 1][1], value[2], value[3]);
      }
    }
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    sum[half] += __shfl_xor_sync(kFullWarp, sum[half], 1);
    sum[half] += __shfl_xor_sync(kFullWarp, sum[half], 2);
    const int row = warp * 16 + lane / 4 + half * 8;
    if (row >= tile.rows) continue;
    bf16* to = p.out + (tile.row + row) * p.out_stride + int64_t{head} * D +
               lane % 4 * 2;
    const float inverse = 1.0f / sum[half];
#pragma unroll
    for (int j = 0; j < kChunks; ++j)
      *reinterpret_cast<uint32_t*>(to + j * 8) =
          PackBf16(out[j][half * 2] * inverse, out[j][half * 2 + 1] * inverse);
  }
}

template <int D>
absl::Status LaunchPrefill(const OpContext& context,
                           const PrefillParams& params, int32_t num_heads,
                           int64_t num_tiles) {
  return Launch(context, "PagedAttention (prefill)", PrefillKernel<D>,
                {dim3(num_heads, num_tiles), dim3(kThreads), SharedBytes<D>()},
                params);
}

}  // namespace

bool CanPrefill(const PagedAttentionArgs& args) {
  const int32_t d = args.head_size;
  return args.q.dtype == DType::kBF16 && args.kv_dtype == DType::kBF16 &&
         args.out.dtype == DType::kBF16 &&
         (d == 16 || d == 32 || d == 64 || d == 128 || d == 256) &&
         AlignedTo(args.q, 16) && AlignedTo(args.k, 16) &&
         AlignedTo(args.v, 16) && AlignedTo(args.out, 4);
}

absl::Status AttentionPrefill(const OpContext& context,
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
  params.window = args.window;
  params.scale = args.scale * kLog2e;
  params.q = static_cast<const bf16*>(args.q.data);
  params.k = static_cast<const bf16*>(args.k.data);
  params.v = static_cast<const bf16*>(args.v.data);
  params.q_stride = args.q.row_stride;
  params.k_stride = args.k.row_stride;
  params.v_stride = args.v.row_stride;
  params.out = static_cast<bf16*>(args.out.data);
  params.out_stride = args.out.row_stride;
  const int64_t num_tiles =
      NumTiles(args.batch.num_tokens - first_seq,
               args.batch.num_seqs - first_seq, kTileRows);
  switch (args.head_size) {
    case 16:
      return LaunchPrefill<16>(context, params, args.num_heads, num_tiles);
    case 32:
      return LaunchPrefill<32>(context, params, args.num_heads, num_tiles);
    case 64:
      return LaunchPrefill<64>(context, params, args.num_heads, num_tiles);
    case 128:
      return LaunchPrefill<128>(context, params, args.num_heads, num_tiles);
    default:
      return LaunchPrefill<256>(context, params, args.num_heads, num_tiles);
  }
}

}  // namespace switchyard::internal
