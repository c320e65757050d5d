// DeltaRule on CUDA: which kernel serves which sequences, and how much of the
// chunked form goes into one launch.
#include <algorithm>

#include "kernels/backends.h"
#include "kernels/cuda_common.h"
#include "kernels/cuda_paging.h"
#include "kernels/delta_rule_chunk_cuda.h"
#include "kernels/delta_rule_cuda.h"

namespace switchyard::internal {
namespace {

using cuda::AlignedTo;

// A chunk of 32 heads takes 18 us (gdn) or 24 us (kda) on an H100, a token of
// the recurrence 1.8 or 2.5 us: from here on the longest prompt is worth it.
constexpr int32_t kMinChunkedTokens = 10;

// What the chunked kernels are written for.
bool ChunksFit(const DeltaRuleArgs& args) {
  return args.q.dtype == DType::kBF16 && args.key_dim == DeltaChunks::kDim &&
         args.value_dim == DeltaChunks::kDim && AlignedTo(args.q, 16) &&
         AlignedTo(args.k, 16) && AlignedTo(args.v, 16) &&
         AlignedTo(args.out, 4) &&
         (args.decay == DecayKind::kPerHead ||
          args.num_key_heads == args.num_value_heads);
}

// Sequences [first_seq, num_seqs), in as many launches as the scratch takes.
absl::Status RunChunked(const OpContext& context, const DeltaRuleArgs& args,
                        int32_t first_seq) {
  const int32_t* offsets = args.batch.host_token_offsets;
  const int32_t num_seqs = args.batch.num_seqs;
  const int64_t bytes_per_tile = DeltaChunks::BytesPerTile(args);
  const int64_t all_tiles =
      cuda::NumTiles(offsets[num_seqs] - offsets[first_seq],
                     num_seqs - first_seq, DeltaChunks::kTokens);
  const int64_t max_tiles =
      std::min(all_tiles, kOpScratchBytes / bytes_per_tile);
  if (max_tiles == 0) {
    return absl::UnimplementedError(
        absl::StrCat("DeltaRule: a chunk of ", args.num_value_heads,
                     " heads takes ", bytes_per_tile,
                     " bytes of scratch on CUDA; there are ", kOpScratchBytes));
  }
  const int64_t mark = context.workspace->used();
  DeltaChunks chunks;
  chunks.heads = context.workspace->Allocate(max_tiles * bytes_per_tile);
  chunks.keys = chunks.heads + max_tiles * args.num_value_heads *
                                   int64_t{DeltaChunks::kHeadBytes};
  context.workspace->Rewind(mark);

  // The next tile to do is `tile` of sequence `seq`.
  int32_t seq = first_seq, tile = 0;
  while (seq < num_seqs) {
    // The tile after `other`'s last, in the numbering that starts at `seq`.
    const auto tiles_before = [&](int32_t other) {
      return (offsets[other] - offsets[seq]) / DeltaChunks::kTokens +
             (other - seq);
    };
    const auto end_of = [&](int32_t other) {
      return tiles_before(other) +
             static_cast<int32_t>(cuda::CeilDiv(
                 offsets[other + 1] - offsets[other], DeltaChunks::kTokens));
    };
    const int32_t limit = tile + static_cast<int32_t>(max_tiles);
    chunks.first_seq = seq;
    chunks.first_tile = tile;
    int32_t last = seq;
    while (last + 1 < num_seqs && tiles_before(last + 1) < limit) ++last;
    chunks.end_seq = last + 1;
    chunks.num_tiles = std::min(end_of(last), limit) - tile;
    if (chunks.num_tiles > 0) {
      SY_RETURN_IF_ERROR(DeltaRulePrepare(context, args, chunks));
      SY_RETURN_IF_ERROR(DeltaRuleScan(context, args, chunks));
    }
    if (end_of(last) <= limit) {
      seq = last + 1;
      tile = 0;
    } else {
      tile = limit - tiles_before(last);
      seq = last;
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status DeltaRuleCuda(const OpContext& context,
                           const DeltaRuleArgs& args) {
  const VarlenBatch& batch = args.batch;
  const bool wanted =
      args.algorithm == DeltaRuleAlgorithm::kChunked ||
      (args.algorithm == DeltaRuleAlgorithm::kAuto &&
       !context.batch_invariant && batch.max_new_tokens >= kMinChunkedTokens);
  if (!wanted || batch.num_decodes == batch.num_seqs || !ChunksFit(args))
    return DeltaRuleRecurrent(context, args, 0, batch.num_seqs);
  if (batch.num_decodes > 0)
    SY_RETURN_IF_ERROR(DeltaRuleRecurrent(context, args, 0, batch.num_decodes));
  return RunChunked(context, args, batch.num_decodes);
}

}  // namespace switchyard::internal
