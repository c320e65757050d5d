// The parts of the CUDA step of GatedDelta. Choice between them:
// gated_delta_step_cuda.cu.
#ifndef SWITCHYARD_KERNELS_GATED_DELTA_CUDA_H_
#define SWITCHYARD_KERNELS_GATED_DELTA_CUDA_H_

#include "absl/status/status.h"
#include "kernels/gated_delta.h"

namespace switchyard::internal {

// Whether ProjectGates serves the two products.
bool CanProjectGates(const MatmulArgs& decay, const MatmulArgs& gate);
// Both products in one launch. REQUIRES: CanProjectGates(decay, gate).
absl::Status ProjectGates(const OpContext& context, const MatmulArgs& decay,
                          const MatmulArgs& gate);

}  // namespace switchyard::internal

#endif  // SWITCHYARD_KERNELS_GATED_DELTA_CUDA_H_
