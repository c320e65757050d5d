// Causal grouped-query attention over a paged KV cache, with an optional
// sliding window: prefill chunks and decodes in one call. Rotates, attends and
// appends.
#ifndef SWITCHYARD_KERNELS_PAGED_ATTENTION_H_
#define SWITCHYARD_KERNELS_PAGED_ATTENTION_H_

#include "absl/status/status.h"
#include "kernels/op_context.h"
#include "kernels/tensor.h"
#include "kernels/varlen.h"

namespace switchyard {

struct PagedAttentionArgs {
  VarlenBatch batch;
  BlockTables blocks;
  DType kv_dtype = DType::kF32;  // of the cache: fp32 or bf16
  int32_t num_heads = 0;         // of this rank
  int32_t num_kv_heads = 0;      // of this rank; divides num_heads
  int32_t head_size = 0;
  // A query sees this many positions, itself included; 0: all.
  int32_t window = 0;
  float scale = 0;  // of the scores

  // Views of the fused projection, before RoPE; q and k are scratch afterwards.
  MatrixView q;  // [num_tokens, num_heads * head_size] activation type
  MatrixView k;  // [num_tokens, num_kv_heads * head_size]
  MatrixView v;  // [num_tokens, num_kv_heads * head_size]
  const float* rope_table = nullptr;  // [rope_positions, head_size], see rope.h
  int64_t rope_positions = 0;

  MatrixView out;  // [num_tokens, num_heads * head_size] activation type
};

// Per sequence with c positions in the cache and new rows at positions c, c+1,
// ...: rotates q and k, attends each query at position p to the keys at
// positions (p - window, p] of the cache and the new rows, softmax in fp32, and
// leaves the new keys (rotated) and values in the cache. With a ring, positions
// that fell out of the window are overwritten, never read. REQUIRES: the block
// tables cover every position of the sequence.
absl::Status PagedAttention(const OpContext& context,
                            const PagedAttentionArgs& args);

}  // namespace switchyard

#endif  // SWITCHYARD_KERNELS_PAGED_ATTENTION_H_
