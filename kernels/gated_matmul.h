// The first half of a gated MLP.
#ifndef SWITCHYARD_KERNELS_GATED_MATMUL_H_
#define SWITCHYARD_KERNELS_GATED_MATMUL_H_

#include "absl/status/status.h"
#include "kernels/activation.h"
#include "kernels/matmul.h"
#include "kernels/op_context.h"
#include "kernels/tensor.h"

namespace switchyard {

struct GatedMatmulArgs {
  MatrixView x;  // [num_tokens, in_features] activation type, any row stride
  const WeightMatrix* weight = nullptr;  // [2 * width, in_features]: gate, up
  const float* bias = nullptr;           // [2 * width] fp32, or null
  ActivationKind kind = ActivationKind::kSilu;
  // [num_tokens, 2 * width] of x's type, anywhere but in x and out: scratch,
  // undefined afterwards.
  MatrixView product;
  MatrixView out;  // [num_tokens, width] of x's type
};

// out = f(gate) * up with gate | up = x W^T + bias: the same bits as a Matmul
// to `product` and a gated Activation of that, in one kernel where a device has
// one.
absl::Status GatedMatmul(const OpContext& context, const GatedMatmulArgs& args);

}  // namespace switchyard

#endif  // SWITCHYARD_KERNELS_GATED_MATMUL_H_
