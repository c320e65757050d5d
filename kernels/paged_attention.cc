#include "kernels/paged_attention.h"

#include <algorithm>

#include "kernels/backends.h"
#include "kernels/op_support.h"
#include "kernels/status.h"

namespace switchyard {
namespace {

// What only the host's arrays can tell.
void CheckLengths(const PagedAttentionArgs& args, internal::ArgChecker* check) {
  const VarlenBatch& batch = args.batch;
  if (batch.host_token_offsets == nullptr ||
      batch.host_context_lens == nullptr) {
    return;
  }
  for (int32_t s = 0; s < batch.num_seqs; ++s) {
    const int64_t total = int64_t{batch.host_context_lens[s]} +
                          batch.host_token_offsets[s + 1] -
                          batch.host_token_offsets[s];
    check->Require(total <= args.rope_positions, "sequence ", s, " reaches ",
                   total, " positions, the rope table has ",
                   args.rope_positions);
    check->Require(total <= batch.max_total_tokens, "sequence ", s, " reaches ",
                   total, " positions, batch.max_total_tokens is ",
                   batch.max_total_tokens);
    if (args.blocks.host_begins == nullptr) continue;
    int64_t blocks =
        (total + args.blocks.block_size - 1) / args.blocks.block_size;
    if (args.blocks.ring_blocks > 0) {
      blocks = std::min<int64_t>(blocks, args.blocks.ring_blocks);
    }
    const int32_t entries =
        args.blocks.host_begins[s + 1] - args.blocks.host_begins[s];
    check->Require(blocks <= entries, "sequence ", s, " needs ", blocks,
                   " blocks, its table has ", entries);
  }
}

}  // namespace

absl::Status PagedAttention(const OpContext& context,
                            const PagedAttentionArgs& args) {
  internal::ArgChecker check("PagedAttention", context);
  check.Batch(args.batch);
  check.Require(args.head_size > 0 && args.head_size % 2 == 0, "head_size is ",
                args.head_size, ", should be even");
  check.Require(args.num_kv_heads > 0 && args.num_heads > 0 &&
                    args.num_heads % args.num_kv_heads == 0,
                "num_kv_heads ", args.num_kv_heads,
                " does not divide num_heads ", args.num_heads);
  check.Require(args.kv_dtype == DType::kF32 || args.kv_dtype == DType::kBF16,
                "kv_dtype is ", DTypeName(args.kv_dtype),
                ", should be fp32 or bf16");
  check.Require(args.window >= 0, "window is ", args.window);
  const BlockTables& blocks = args.blocks;
  check.Pointer("blocks.arena", blocks.arena);
  check.Pointer("blocks.ids", blocks.ids);
  check.Require(blocks.block_size > 0 &&
                    (blocks.block_size & (blocks.block_size - 1)) == 0,
                "block_size is ", blocks.block_size,
                ", should be a power of two");
  check.Pointer("blocks.begins", blocks.begins);
  check.Require(blocks.ring_blocks >= 0, "ring_blocks is ", blocks.ring_blocks);
  check.Require(
      blocks.ring_blocks == 0 ||
          (args.window > 0 &&
           int64_t{blocks.ring_blocks} * blocks.block_size >= args.window),
      "a ring of ", blocks.ring_blocks, " blocks of ", blocks.block_size,
      " does not hold a window of ", args.window);
  check.Pointer("rope_table", args.rope_table);
  check.Pointer("batch.positions", args.batch.positions);
  const int64_t kv_cols = int64_t{args.num_kv_heads} * args.head_size;
  const int64_t q_cols = int64_t{args.num_heads} * args.head_size;
  check.Matrix("q", args.q, args.batch.num_tokens, q_cols,
               check.activation_types());
  check.Matrix("k", args.k, args.batch.num_tokens, kv_cols,
               internal::Only(args.q.dtype));
  check.Matrix("v", args.v, args.batch.num_tokens, kv_cols,
               internal::Only(args.q.dtype));
  check.Matrix("out", args.out, args.batch.num_tokens, q_cols,
               internal::Only(args.q.dtype));
  SY_RETURN_IF_ERROR(check.status());
  CheckLengths(args, &check);
  SY_RETURN_IF_ERROR(check.status());
  if (args.batch.num_tokens == 0) return absl::OkStatus();
  return internal::Dispatch(context, args, internal::PagedAttentionCpu,
                            internal::PagedAttentionCuda);
}

}  // namespace switchyard
