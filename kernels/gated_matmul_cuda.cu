#include "kernels/backends.h"
#include "kernels/matmul_cuda.h"
#include "kernels/status.h"

namespace switchyard::internal {

absl::Status GatedMatmulCuda(const OpContext& context,
                             const GatedMatmulArgs& args) {
  if (ServesWide(context, args.x, *args.weight))
    return GatedMatmulWide(context, args);
  if (!context.batch_invariant && CanStream(args.x, *args.weight))
    return GatedMatmulStreaming(context, args);
  SY_RETURN_IF_ERROR(
      MatmulCuda(context, {args.x, args.weight, args.bias, args.product}));
  return ActivationCuda(context, {args.kind, args.product, true, args.out});
}

}  // namespace switchyard::internal
