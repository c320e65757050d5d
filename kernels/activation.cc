#include "kernels/activation.h"

#include "kernels/backends.h"
#include "kernels/op_support.h"
#include "kernels/status.h"

namespace switchyard {

absl::Status Activation(const OpContext& context, const ActivationArgs& args) {
  internal::ArgChecker check("Activation", context);
  const internal::DTypes types = check.activation_types();
  check.Matrix("out", args.out, args.x.rows,
               args.gated ? args.x.cols / 2 : args.x.cols, types);
  check.Matrix("x", args.x, args.out.rows, args.out.cols * (args.gated ? 2 : 1),
               internal::Only(args.out.dtype));
  check.Require(!args.gated || args.x.data != args.out.data,
                "out may not be x when gated");
  SY_RETURN_IF_ERROR(check.status());
  if (args.out.empty()) return absl::OkStatus();
  return internal::Dispatch(context, args, internal::ActivationCpu,
                            internal::ActivationCuda);
}

}  // namespace switchyard
