#include "kernels/selective_scan.h"

#include "kernels/backends.h"
#include "kernels/op_support.h"
#include "kernels/status.h"

namespace switchyard {

absl::Status SelectiveScan(const OpContext& context,
                           const SelectiveScanArgs& args) {
  internal::ArgChecker check("SelectiveScan", context);
  check.Batch(args.batch);
  check.Slots(args.state);
  const int64_t rows = args.batch.num_tokens;
  const int64_t d_inner = args.dt.cols;
  check.Require(args.state_size > 0, "state_size is ", args.state_size);
  check.Require(args.num_heads > 0 && d_inner % args.num_heads == 0,
                "num_heads ", args.num_heads, " does not divide the ", d_inner,
                " channels");
  check.Require(args.num_b_heads > 0 && args.num_heads % args.num_b_heads == 0,
                "num_b_heads ", args.num_b_heads, " does not divide num_heads ",
                args.num_heads);
  check.Require(args.num_x_heads == args.num_heads ||
                    args.num_x_heads == args.num_b_heads,
                "num_x_heads is ", args.num_x_heads,
                ", should be num_heads or num_b_heads");
  SY_RETURN_IF_ERROR(check.status());
  const internal::DTypes activation = internal::Only(args.out.dtype);
  check.Matrix("out", args.out, rows, d_inner, check.activation_types());
  check.Matrix("x", args.x, rows, d_inner / args.num_heads * args.num_x_heads,
               activation);
  check.Matrix("dt", args.dt, rows, d_inner, internal::kF32Only | activation);
  check.Matrix("b", args.b, rows, int64_t{args.num_b_heads} * args.state_size,
               activation);
  check.Matrix("c", args.c, rows, int64_t{args.num_heads} * args.state_size,
               activation);
  check.Matrix("z", args.z, rows, d_inner, activation);
  check.Pointer("a_log", args.a_log);
  check.Pointer("d", args.d);
  SY_RETURN_IF_ERROR(check.status());
  if (args.out.empty()) return absl::OkStatus();
  return internal::Dispatch(context, args, internal::SelectiveScanCpu,
                            internal::SelectiveScanCuda);
}

}  // namespace switchyard
