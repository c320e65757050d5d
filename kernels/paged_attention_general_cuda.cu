// Attention of any element type and head size, a warp per query and head; and
// the passes around prefill: rotation of the new rows, and their way into the
// cache.
#include "kernels/backends.h"
#include "kernels/cuda_common.h"
#include "kernels/cuda_paging.h"
#include "kernels/paged_attention_cuda.h"

namespace switchyard::internal {
namespace {

using namespace switchyard::cuda;

constexpr int kMaxHeadSize = 512;
constexpr int kLaneColumns = kMaxHeadSize / kWarpSize;
constexpr int kThreads = 128;

struct GeneralParams {
  Paging paging;
  const int32_t* token_offsets;
  const int32_t* context_lens;
  int32_t first_seq, num_seqs;
  int32_t num_heads, num_kv_heads, head_size, window;
  float scale;
};

// Lane l holds columns l, l + 32, ... of the query, a key or the output.
template <typename T, typename C>
__global__ void __launch_bounds__(kThreads)
    GeneralKernel(const GeneralParams p, MatrixView q, MatrixView k,
                  MatrixView v, MatrixView out, int64_t num_items) {
  GridTrigger();
  GridWait();
  const int64_t item =
      (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarpSize;
  if (item >= num_items) return;
  const int lane = threadIdx.x % kWarpSize;
  const int32_t row =
      p.token_offsets[p.first_seq] + static_cast<int32_t>(item / p.num_heads);
  const int32_t head = static_cast<int32_t>(item % p.num_heads);
  const int32_t kv_head = head / (p.num_heads / p.num_kv_heads);
  const int32_t seq = SeqOfRow(p.token_offsets, p.first_seq, p.num_seqs, row);
  const int32_t first_row = p.token_offsets[seq];
  const int32_t context = p.context_lens[seq];
  const int32_t position = context + row - first_row;
  const int32_t begin = p.window > 0 ? max(0, position + 1 - p.window) : 0;

  float query[kLaneColumns], x[kLaneColumns] = {};
  const T* query_row = RowOf<T>(q, row) + int64_t{head} * p.head_size;
#pragma unroll
  for (int i = 0; i < kLaneColumns; ++i) {
    const int column = i * kWarpSize + lane;
    query[i] = column < p.head_size ? ToFloat(query_row[column]) * p.scale : 0;
  }
  float top = -INFINITY, sum = 0;
  const auto attend = [&](const auto* key, const auto* value) {
    float score = 0;
#pragma unroll
    for (int i = 0; i < kLaneColumns; ++i) {
      const int column = i * kWarpSize + lane;
      if (column < p.head_size) score += query[i] * ToFloat(key[column]);
    }
    score = WarpSum(score);
    const float new_top = fmaxf(top, score);
    const float shrink = expf(top - new_top), weight = expf(score - new_top);
    top = new_top;
    sum = sum * shrink + weight;
#pragma unroll
    for (int i = 0; i < kLaneColumns; ++i) {
      const int column = i * kWarpSize + lane;
      if (column < p.head_size)
        x[i] = x[i] * shrink + weight * ToFloat(value[column]);
    }
  };
  for (int32_t i = begin; i < context; ++i) {
    const std::byte* key = p.paging.Key(p.paging.Id(seq, i), kv_head, i);
    attend(reinterpret_cast<const C*>(key),
           reinterpret_cast<const C*>(key + p.paging.ValueOffset()));
  }
  for (int32_t i = max(begin, context); i <= position; ++i) {
    const int64_t new_row = first_row + i - context;
    attend(RowOf<T>(k, new_row) + int64_t{kv_head} * p.head_size,
           RowOf<T>(v, new_row) + int64_t{kv_head} * p.head_size);
  }
  T* out_row = RowOf<T>(out, row) + int64_t{head} * p.head_size;
#pragma unroll
  for (int i = 0; i < kLaneColumns; ++i) {
    const int column = i * kWarpSize + lane;
    if (column < p.head_size) out_row[column] = FromFloat<T>(x[i] / sum);
  }
}

// Block (row, chunk of columns).
template <typename T, typename C>
__global__ void AppendKernel(const GeneralParams p, MatrixView k, MatrixView v,
                             int32_t ring_positions) {
  GridTrigger();
  GridWait();
  const int32_t row = p.token_offsets[p.first_seq] + blockIdx.x;
  const int32_t column = blockIdx.y * blockDim.x + threadIdx.x;
  if (column >= p.num_kv_heads * p.head_size) return;
  const int32_t seq = SeqOfRow(p.token_offsets, p.first_seq, p.num_seqs, row);
  const int32_t position = p.context_lens[seq] + row - p.token_offsets[seq];
  if (ring_positions > 0 && row + ring_positions < p.token_offsets[seq + 1])
    return;
  std::byte* key =
      p.paging.Key(p.paging.Id(seq, position), column / p.head_size, position);
  const int32_t i = column % p.head_size;
  reinterpret_cast<C*>(key)[i] =
      FromFloat<C>(ToFloat(RowOf<T>(k, row)[column]));
  reinterpret_cast<C*>(key + p.paging.ValueOffset())[i] =
      FromFloat<C>(ToFloat(RowOf<T>(v, row)[column]));
}

GeneralParams MakeParams(const PagedAttentionArgs& args, int32_t first_seq) {
  return {MakePaging(args.blocks, args.num_kv_heads,
                     args.head_size * DTypeBytes(args.kv_dtype)),
          args.batch.token_offsets,
          args.batch.context_lens,
          first_seq,
          args.batch.num_seqs,
          args.num_heads,
          args.num_kv_heads,
          args.head_size,
          args.window,
          args.scale};
}

// Rows of sequences [first_seq, num_seqs): the decodes before them have one row
// each.
int64_t NumRows(const PagedAttentionArgs& args, int32_t first_seq) {
  return args.batch.num_tokens - first_seq;
}

template <typename F>
absl::Status DispatchTypes(const PagedAttentionArgs& args, F&& f) {
  return DispatchActivation(args.q.dtype, "PagedAttention", [&](auto tag) {
    return DispatchActivation(
        args.kv_dtype, "PagedAttention",
        [&](auto cache_tag) { return f(tag, cache_tag); });
  });
}

}  // namespace

absl::Status AttentionGeneral(const OpContext& context,
                              const PagedAttentionArgs& args,
                              int32_t first_seq) {
  if (args.head_size > kMaxHeadSize) {
    return absl::UnimplementedError(
        absl::StrCat("PagedAttention: head size ", args.head_size,
                     " on CUDA; at most ", kMaxHeadSize));
  }
  const int64_t num_items = NumRows(args, first_seq) * args.num_heads;
  return DispatchTypes(args, [&](auto tag, auto cache_tag) {
    return Launch(
        context, "PagedAttention (general)",
        GeneralKernel<typename decltype(tag)::type,
                      typename decltype(cache_tag)::type>,
        {dim3(CeilDiv(num_items, kThreads / kWarpSize)), dim3(kThreads)},
        MakeParams(args, first_seq), args.q, args.k, args.v, args.out,
        num_items);
  });
}

absl::Status RotateNew(const OpContext& context, const PagedAttentionArgs& args,
                       int32_t first_seq) {
  RopeArgs rope;
  rope.head_size = args.head_size;
  rope.positions = args.batch.positions + first_seq;
  rope.table = args.rope_table;
  rope.num_positions = args.rope_positions;
  const int64_t num_rows = NumRows(args, first_seq);
  rope.x = args.q.Rows(first_seq, num_rows);
  SY_RETURN_IF_ERROR(RopeCuda(context, rope));
  rope.x = args.k.Rows(first_seq, num_rows);
  return RopeCuda(context, rope);
}

absl::Status AppendNew(const OpContext& context, const PagedAttentionArgs& args,
                       int32_t first_seq) {
  const int64_t num_rows = NumRows(args, first_seq);
  const int64_t columns = int64_t{args.num_kv_heads} * args.head_size;
  return DispatchTypes(args, [&](auto tag, auto cache_tag) {
    return Launch(context, "PagedAttention (append)",
                  AppendKernel<typename decltype(tag)::type,
                               typename decltype(cache_tag)::type>,
                  {dim3(num_rows, CeilDiv(columns, 256)), dim3(256)},
                  MakeParams(args, first_seq), args.k, args.v,
                  args.blocks.ring_blocks * args.blocks.block_size);
  });
}

}  // namespace switchyard::internal
