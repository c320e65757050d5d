#include "kernels/rms_norm.h"

#include "kernels/backends.h"
#include "kernels/op_support.h"
#include "kernels/status.h"

namespace switchyard {

absl::Status AddRmsNorm(const OpContext& context, const AddRmsNormArgs& args) {
  internal::ArgChecker check("AddRmsNorm", context);
  const int64_t hidden = args.out.cols;
  check.Matrix("out", args.out, args.out.rows, hidden,
               check.activation_types());
  check.Matrix("residual", args.residual, args.residual.rows, hidden,
               internal::kF32Only);
  check.Require(args.rows != nullptr || args.residual.rows >= args.out.rows,
                "residual has ", args.residual.rows, " rows, out ",
                args.out.rows);
  if (args.delta.data != nullptr) {
    check.Matrix("delta", args.delta, args.delta.rows, hidden,
                 internal::kF32Only | check.activation_types());
    check.Require(
        args.delta_rows != nullptr || args.delta.rows >= args.out.rows,
        "delta has ", args.delta.rows, " rows, out ", args.out.rows);
  }
  check.Pointer("weight", args.weight);
  SY_RETURN_IF_ERROR(check.status());
  if (args.out.empty()) return absl::OkStatus();
  return internal::Dispatch(context, args, internal::AddRmsNormCpu,
                            internal::AddRmsNormCuda);
}

absl::Status GatedRmsNorm(const OpContext& context,
                          const GatedRmsNormArgs& args) {
  internal::ArgChecker check("GatedRmsNorm", context);
  check.Matrix("out", args.out, args.out.rows, args.out.cols,
               check.activation_types());
  check.Matrix("x", args.x, args.out.rows, args.out.cols,
               internal::kF32Only | check.activation_types());
  check.Matrix("gate", args.gate, args.out.rows, args.out.cols,
               check.activation_types());
  check.Require(args.head_dim > 0 && args.out.cols % args.head_dim == 0,
                "head_dim ", args.head_dim, " does not divide the ",
                args.out.cols, " columns");
  check.Pointer("weight", args.weight);
  SY_RETURN_IF_ERROR(check.status());
  if (args.out.empty()) return absl::OkStatus();
  return internal::Dispatch(context, args, internal::GatedRmsNormCpu,
                            internal::GatedRmsNormCuda);
}

}  // namespace switchyard
