// The pass before prefill where the cache is no ring: rotates the new queries
// and keys in place and leaves keys and values in the cache, reading each once.
#include "kernels/backends.h"
#include "kernels/cuda_common.h"
#include "kernels/cuda_paging.h"
#include "kernels/paged_attention_cuda.h"

namespace switchyard::internal {
namespace {

using namespace switchyard::cuda;

constexpr int kThreads = 128;
constexpr int kWidth = 8;  // elements of 16 bytes

struct RotateParams {
  Paging paging;
  const int32_t* token_offsets;
  const int32_t* context_lens;
  const float* table;  // [positions, 2 * half]
  int32_t first_seq, num_seqs;
  int32_t num_heads, num_kv_heads, half;
  bf16* q;
  bf16* k;
  const bf16* v;
  int64_t q_stride, k_stride, v_stride;
};

// Block (row, chunk of a row). A thread rotates 8 pairs of one head of q or k,
// or copies 2 * 8 elements of v.
__global__ void __launch_bounds__(kThreads) RotateKernel(const RotateParams p) {
  GridTrigger();
  GridWait();
  const int32_t per_head = p.half / kWidth;
  const int32_t item = blockIdx.y * kThreads + threadIdx.x;
  int32_t head = item / per_head;
  const int32_t column = item % per_head * kWidth;
  if (head >= p.num_heads + 2 * p.num_kv_heads) return;
  const int32_t row = p.token_offsets[p.first_seq] + blockIdx.x;
  const int32_t seq = SeqOfRow(p.token_offsets, p.first_seq, p.num_seqs, row);
  const int32_t position = p.context_lens[seq] + row - p.token_offsets[seq];

  const bool is_query = head < p.num_heads;
  if (!is_query) head -= p.num_heads;
  const bool is_value = head >= p.num_kv_heads && !is_query;
  if (is_value) head -= p.num_kv_heads;
  const int64_t at = int64_t{head} * 2 * p.half + column;
  std::byte* cached = nullptr;
  if (!is_query) {
    cached = p.paging.Key(p.paging.Id(seq, position), head, position) +
             column * int64_t{sizeof(bf16)};
    if (is_value) cached += p.paging.ValueOffset();
  }
  if (is_value) {
    const bf16* from = p.v + row * p.v_stride + at;
    const uint4 low = *reinterpret_cast<const uint4*>(from);
    const uint4 high = *reinterpret_cast<const uint4*>(from + p.half);
    *reinterpret_cast<uint4*>(cached) = low;
    *reinterpret_cast<uint4*>(cached + p.half * int64_t{sizeof(bf16)}) = high;
    return;
  }
  bf16* x = (is_query ? p.q + row * p.q_stride : p.k + row * p.k_stride) + at;
  const float* angles = p.table + int64_t{position} * 2 * p.half + column;
  float cosine[kWidth], sine[kWidth], first[kWidth], second[kWidth];
  Load<kWidth>(x, first);
  Load<kWidth>(x + p.half, second);
  Load<kWidth>(angles, cosine);
  Load<kWidth>(angles + p.half, sine);
  float out_first[kWidth], out_second[kWidth];
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    out_first[j] = first[j] * cosine[j] - second[j] * sine[j];
    out_second[j] = second[j] * cosine[j] + first[j] * sine[j];
  }
  Store<kWidth>(x, out_first);
  Store<kWidth>(x + p.half, out_second);
  if (is_query) return;
  Store<kWidth>(reinterpret_cast<bf16*>(cached), out_first);
  Store<kWidth>(reinterpret_cast<bf16*>(cached) + p.half, out_second);
}

}  // namespace

bool CanRotateAndAppend(const PagedAttentionArgs& args) {
  return args.blocks.ring_blocks == 0 && args.q.dtype == DType::kBF16 &&
         args.kv_dtype == DType::kBF16 && args.head_size % (2 * kWidth) == 0 &&
         AlignedTo(args.q, 16) && AlignedTo(args.k, 16) &&
         AlignedTo(args.v, 16) &&
         reinterpret_cast<uintptr_t>(args.rope_table) % 16 == 0;
}

absl::Status RotateAndAppendNew(const OpContext& context,
                                const PagedAttentionArgs& args,
                                int32_t first_seq) {
  RotateParams params = {};
  params.paging = MakePaging(args.blocks, args.num_kv_heads,
                             args.head_size * DTypeBytes(args.kv_dtype));
  params.token_offsets = args.batch.token_offsets;
  params.context_lens = args.batch.context_lens;
  params.table = args.rope_table;
  params.first_seq = first_seq;
  params.num_seqs = args.batch.num_seqs;
  params.num_heads = args.num_heads;
  params.num_kv_heads = args.num_kv_heads;
  params.half = args.head_size / 2;
  params.q = static_cast<bf16*>(args.q.data);
  params.k = static_cast<bf16*>(args.k.data);
  params.v = static_cast<const bf16*>(args.v.data);
  params.q_stride = args.q.row_stride;
  params.k_stride = args.k.row_stride;
  params.v_stride = args.v.row_stride;
  const int64_t items =
      int64_t{args.num_heads + 2 * args.num_kv_heads} * (params.half / kWidth);
  // The decodes before first_seq have one row each.
  const int64_t num_rows = args.batch.num_tokens - first_seq;
  return Launch(context, "PagedAttention (rotate and append)", RotateKernel,
                {dim3(num_rows, CeilDiv(items, kThreads)), dim3(kThreads)},
                params);
}

}  // namespace switchyard::internal
