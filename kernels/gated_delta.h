// What a gdn or kda mixer does between its input and its output product.
#ifndef SWITCHYARD_KERNELS_GATED_DELTA_H_
#define SWITCHYARD_KERNELS_GATED_DELTA_H_

#include "absl/status/status.h"
#include "kernels/causal_conv.h"
#include "kernels/delta_rule.h"
#include "kernels/matmul.h"
#include "kernels/op_context.h"
#include "kernels/rms_norm.h"

namespace switchyard {

// Five ops, one after another. All have the same batch; rule.q, k and v are
// columns of conv.out, which is conv.x, and norm.x is rule.out.
struct GatedDeltaArgs {
  // kda: the second halves of two low-rank projections, to rule.alpha and to
  // norm.gate. Without a weight those are columns of the input product.
  MatmulArgs decay;
  MatmulArgs gate;
  CausalConvArgs conv;
  DeltaRuleArgs rule;
  GatedRmsNormArgs norm;
};

// The states and norm.out are as the five ops leave them, up to rounding; what
// passes between the ops is scratch, undefined afterwards. A device may have
// one kernel for all, where every sequence has one new token.
absl::Status GatedDelta(const OpContext& context, const GatedDeltaArgs& args);

}  // namespace switchyard

#endif  // SWITCHYARD_KERNELS_GATED_DELTA_H_
