#include "kernels/gated_matmul.h"

#include "kernels/backends.h"
#include "kernels/op_support.h"
#include "kernels/status.h"

namespace switchyard {

absl::Status GatedMatmul(const OpContext& context,
                         const GatedMatmulArgs& args) {
  internal::ArgChecker check("GatedMatmul", context);
  check.Require(args.weight != nullptr && !args.weight->empty(),
                "there is no weight");
  SY_RETURN_IF_ERROR(check.status());
  const int64_t out_features = args.weight->out_features();
  check.Require(out_features % 2 == 0, "the weight has ", out_features,
                " rows, should have as many for up as for gate");
  const internal::DTypes type = internal::Only(args.x.dtype);
  check.Matrix("x", args.x, args.x.rows, args.weight->in_features(),
               check.activation_types());
  check.Matrix("product", args.product, args.x.rows, out_features, type);
  check.Matrix("out", args.out, args.x.rows, out_features / 2, type);
  check.Require(args.out.empty() || (args.out.data != args.x.data &&
                                     args.out.data != args.product.data),
                "out may be neither x nor product");
  SY_RETURN_IF_ERROR(check.status());
  if (args.out.empty()) return absl::OkStatus();
  return internal::Dispatch(context, args, internal::GatedMatmulCpu,
                            internal::GatedMatmulCuda);
}

}  // namespace switchyard
