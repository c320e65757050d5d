#include "kernels/embedding.h"

#include "kernels/backends.h"
#include "kernels/op_support.h"
#include "kernels/status.h"

namespace switchyard {

absl::Status Embedding(const OpContext& context, const EmbeddingArgs& args) {
  internal::ArgChecker check("Embedding", context);
  check.Matrix("table", args.table, args.table.rows, args.out.cols,
               internal::kFloats);
  check.Matrix("out", args.out, args.out.rows, args.table.cols,
               internal::kF32Only);
  check.Require(args.vocab_begin >= 0, "vocab_begin is ", args.vocab_begin);
  if (args.out.rows > 0) check.Pointer("token_ids", args.token_ids);
  SY_RETURN_IF_ERROR(check.status());
  if (args.out.empty()) return absl::OkStatus();
  return internal::Dispatch(context, args, internal::EmbeddingCpu,
                            internal::EmbeddingCuda);
}

}  // namespace switchyard
