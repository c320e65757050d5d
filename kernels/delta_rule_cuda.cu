// DeltaRule on CUDA: which kernel serves which sequences.
#include "kernels/backends.h"
#include "kernels/delta_rule_cuda.h"

namespace switchyard::internal {

absl::Status DeltaRuleCuda(const OpContext& context,
                           const DeltaRuleArgs& args) {
  return DeltaRuleRecurrent(context, args, 0, args.batch.num_seqs);
}

}  // namespace switchyard::internal
