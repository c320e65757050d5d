#include "kernels/backends.h"
#include "kernels/status.h"

namespace switchyard::internal {

absl::Status GatedMatmulCpu(const OpContext& context,
                            const GatedMatmulArgs& args) {
  SY_RETURN_IF_ERROR(
      MatmulCpu(context, {args.x, args.weight, args.bias, args.product}));
  return ActivationCpu(context, {args.kind, args.product, true, args.out});
}

}  // namespace switchyard::internal
