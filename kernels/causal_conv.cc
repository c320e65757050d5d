#include "kernels/causal_conv.h"

#include "kernels/backends.h"
#include "kernels/op_support.h"
#include "kernels/status.h"

namespace switchyard {

absl::Status CausalConv(const OpContext& context, const CausalConvArgs& args) {
  internal::ArgChecker check("CausalConv", context);
  check.Batch(args.batch);
  check.Slots(args.state);
  check.Matrix("x", args.x, args.batch.num_tokens, args.x.cols,
               check.activation_types());
  check.Matrix("out", args.out, args.batch.num_tokens, args.x.cols,
               internal::Only(args.x.dtype));
  check.Require(args.kernel_size >= 2, "kernel_size is ", args.kernel_size,
                ", should be at least 2");
  check.Pointer("weight", args.weight);
  SY_RETURN_IF_ERROR(check.status());
  if (args.out.empty()) return absl::OkStatus();
  return internal::Dispatch(context, args, internal::CausalConvCpu,
                            internal::CausalConvCuda);
}

}  // namespace switchyard
