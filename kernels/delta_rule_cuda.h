// The parts of the CUDA delta rule. Choice between them: delta_rule_cuda.cu.
#ifndef SWITCHYARD_KERNELS_DELTA_RULE_CUDA_H_
#define SWITCHYARD_KERNELS_DELTA_RULE_CUDA_H_

#include "absl/status/status.h"
#include "kernels/delta_rule.h"

namespace switchyard::internal {

// Sequences [first_seq, end_seq), token by token, the state in registers: it is
// read once and written once.
absl::Status DeltaRuleRecurrent(const OpContext& context,
                                const DeltaRuleArgs& args, int32_t first_seq,
                                int32_t end_seq);

}  // namespace switchyard::internal

#endif  // SWITCHYARD_KERNELS_DELTA_RULE_CUDA_H_
