// The parts of the CUDA attention. Choice between them:
// paged_attention_cuda.cu.
#ifndef SWITCHYARD_KERNELS_PAGED_ATTENTION_CUDA_H_
#define SWITCHYARD_KERNELS_PAGED_ATTENTION_CUDA_H_

#include "absl/status/status.h"
#include "kernels/paged_attention.h"

namespace switchyard::internal {

// ---- One new token per sequence: bound by reading the cache once ----
// Rotates, attends and appends the first `num_decodes` sequences. Launches the
// same grid whatever the lengths.
bool CanDecode(const PagedAttentionArgs& args);
absl::Status AttentionDecode(const OpContext& context,
                             const PagedAttentionArgs& args);

// ---- Sequences [first_seq, num_seqs): tensor cores ----
// REQUIRES: q and k are rotated. Appends nothing.
// By warpgroup instructions and the bulk tensor copy: bf16 heads of 64, 128 and
// 256, blocks of at least 8 positions, at most 64 query heads per KV head.
bool CanPrefillWgmma(const PagedAttentionArgs& args);
absl::Status AttentionPrefillWgmma(const OpContext& context,
                                   const PagedAttentionArgs& args,
                                   int32_t first_seq);
// By warp instructions: bf16 heads of 16, 32, 64, 128 and 256.
bool CanPrefill(const PagedAttentionArgs& args);
absl::Status AttentionPrefill(const OpContext& context,
                              const PagedAttentionArgs& args,
                              int32_t first_seq);

// ---- The same for any type and head size: a warp per query and head ----
absl::Status AttentionGeneral(const OpContext& context,
                              const PagedAttentionArgs& args,
                              int32_t first_seq);

// ---- The passes around these three ----
// Rotates q and k of sequences [first_seq, num_seqs) in place, and leaves the
// new keys and values in the cache: bf16 vectors of whole 32 bytes, no ring.
bool CanRotateAndAppend(const PagedAttentionArgs& args);
absl::Status RotateAndAppendNew(const OpContext& context,
                                const PagedAttentionArgs& args,
                                int32_t first_seq);
// Rotates q and k of sequences [first_seq, num_seqs) in place.
absl::Status RotateNew(const OpContext& context, const PagedAttentionArgs& args,
                       int32_t first_seq);
// Leaves their new keys and values in the cache; with a ring, those that later
// ones of the same chunk do not overwrite.
absl::Status AppendNew(const OpContext& context, const PagedAttentionArgs& args,
                       int32_t first_seq);

}  // namespace switchyard::internal

#endif  // SWITCHYARD_KERNELS_PAGED_ATTENTION_CUDA_H_
