// Element-wise activations of the MLP.
#ifndef SWITCHYARD_KERNELS_ACTIVATION_H_
#define SWITCHYARD_KERNELS_ACTIVATION_H_

#include "absl/status/status.h"
#include "kernels/op_context.h"
#include "kernels/tensor.h"

namespace switchyard {

// kGelu is exact (erf); kGeluTanh its tanh approximation; kSquaredRelu is
// relu(x)^2.
enum class ActivationKind : uint8_t {
  kIdentity,
  kSilu,
  kGelu,
  kGeluTanh,
  kRelu,
  kSquaredRelu
};

struct ActivationArgs {
  ActivationKind kind = ActivationKind::kSilu;
  // [num_tokens, width], or gated: [num_tokens, 2 * width], gate first, then
  // up.
  MatrixView x;
  bool gated = false;
  // [num_tokens, width] activation type; may be x when not gated.
  MatrixView out;
};

// out = f(x), or gated: out = f(gate) * up.
absl::Status Activation(const OpContext& context, const ActivationArgs& args);

}  // namespace switchyard

#endif  // SWITCHYARD_KERNELS_ACTIVATION_H_
