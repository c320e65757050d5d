#include "kernels/gated_delta.h"

#include "kernels/backends.h"
#include "kernels/status.h"

namespace switchyard {

absl::Status GatedDelta(const OpContext& context, const GatedDeltaArgs& args) {
  if (context.cuda() && internal::CanStepGatedDelta(context, args))
    return internal::StepGatedDelta(context, args);
  for (const MatmulArgs& product : {args.decay, args.gate}) {
    if (product.weight != nullptr) SY_RETURN_IF_ERROR(Matmul(context, product));
  }
  SY_RETURN_IF_ERROR(CausalConv(context, args.conv));
  SY_RETURN_IF_ERROR(DeltaRule(context, args.rule));
  return GatedRmsNorm(context, args.norm);
}

}  // namespace switchyard
