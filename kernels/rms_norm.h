// RMS norms: of the residual stream (with the pending addition and a change of
// row order fused in), and the gated norm of the recurrent mixers.
#ifndef SWITCHYARD_KERNELS_RMS_NORM_H_
#define SWITCHYARD_KERNELS_RMS_NORM_H_

#include "absl/status/status.h"
#include "kernels/op_context.h"
#include "kernels/tensor.h"

namespace switchyard {

// The residual stream stays in batch order; a layer's activations are in the
// order of its mixers' segments. The two row maps move between them, so that
// mixed placements cost no extra pass.
struct AddRmsNormArgs {
  MatrixView residual;  // [num_tokens, hidden] fp32, updated in place
  // [num_delta_rows, hidden] fp32 or the activation type; no data: nothing is
  // added.
  MatrixView delta;
  // [out.rows] residual row of each output row, no row twice; null: the same.
  const int32_t* rows = nullptr;
  // [out.rows] delta row of each output row; null: the output row's index.
  const int32_t* delta_rows = nullptr;
  const float* weight = nullptr;  // [hidden]
  float epsilon = 0;
  MatrixView out;  // [out.rows, hidden] activation type (fp32 or bf16)
};

// For each output row i, with r = rows[i]:
//   residual[r] += delta[delta_rows[i]]
//   out[i] = residual[r] * rsqrt(mean(residual[r]^2) + epsilon) * weight
// Rows of the residual that are not named stay as they are.
absl::Status AddRmsNorm(const OpContext& context, const AddRmsNormArgs& args);

enum class GateActivation : uint8_t { kSilu, kSigmoid };

struct GatedRmsNormArgs {
  // [num_tokens, num_heads * head_dim] fp32 or the activation type.
  MatrixView x;
  MatrixView gate;                // the same shape, any row stride
  const float* weight = nullptr;  // [head_dim]
  float epsilon = 0;
  GateActivation activation = GateActivation::kSilu;
  int32_t head_dim = 0;
  MatrixView out;  // the same shape, activation type
};

// Per token and head: out = x * rsqrt(mean(x^2) + epsilon) * weight *
// activation(gate).
absl::Status GatedRmsNorm(const OpContext& context,
                          const GatedRmsNormArgs& args);

}  // namespace switchyard

#endif  // SWITCHYARD_KERNELS_RMS_NORM_H_
