// PagedAttention on CUDA: which kernel serves which sequences.
#include "kernels/backends.h"
#include "kernels/paged_attention_cuda.h"
#include "kernels/status.h"

namespace switchyard::internal {

absl::Status PagedAttentionCuda(const OpContext& context,
                                const PagedAttentionArgs& args) {
  // The decode kernel splits a sequence by what else there is to do, so a
  // batch-invariant run sends one-token sequences through prefill.
  int32_t first_seq = 0;
  if (args.batch.num_decodes > 0 && !context.batch_invariant &&
      CanDecode(args)) {
    SY_RETURN_IF_ERROR(AttentionDecode(context, args));
    first_seq = args.batch.num_decodes;
  }
  if (first_seq == args.batch.num_seqs) return absl::OkStatus();
  // A ring's places for the new rows still hold what the first of them see.
  const bool append_first = CanRotateAndAppend(args);
  SY_RETURN_IF_ERROR(append_first ? RotateAndAppendNew(context, args, first_seq)
                                  : RotateNew(context, args, first_seq));
  SY_RETURN_IF_ERROR(
      CanPrefillWgmma(args) ? AttentionPrefillWgmma(context, args, first_seq)
      : CanPrefill(args)    ? AttentionPrefill(context, args, first_seq)
                            : AttentionGeneral(context, args, first_seq));
  return append_first ? absl::OkStatus() : AppendNew(context, args, first_seq);
}

}  // namespace switchyard::internal
