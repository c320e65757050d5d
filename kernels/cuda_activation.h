// The activations as functions on the device.
#ifndef SWITCHYARD_KERNELS_CUDA_ACTIVATION_H_
#define SWITCHYARD_KERNELS_CUDA_ACTIVATION_H_

#include "kernels/activation.h"
#include "kernels/cuda_common.h"

namespace switchyard::cuda {

template <ActivationKind Kind>
__device__ __forceinline__ float Activate(float x) {
  if constexpr (Kind == ActivationKind::kSilu) return Silu(x);
  if constexpr (Kind == ActivationKind::kGelu)
    return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
  if constexpr (Kind == ActivationKind::kGeluTanh)
    return 0.5f * x *
           (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
  if constexpr (Kind == ActivationKind::kRelu) return fmaxf(x, 0.0f);
  if constexpr (Kind == ActivationKind::kSquaredRelu) {
    const float positive = fmaxf(x, 0.0f);
    return positive * positive;
  }
  return x;
}

// For where the kind is known at run time only; the same bits.
__device__ __forceinline__ float Activate(ActivationKind kind, float x) {
  switch (kind) {
    case ActivationKind::kIdentity:
      return x;
    case ActivationKind::kSilu:
      return Activate<ActivationKind::kSilu>(x);
    case ActivationKind::kGelu:
      return Activate<ActivationKind::kGelu>(x);
    case ActivationKind::kGeluTanh:
      return Activate<ActivationKind::kGeluTanh>(x);
    case ActivationKind::kRelu:
      return Activate<ActivationKind::kRelu>(x);
    case ActivationKind::kSquaredRelu:
      return Activate<ActivationKind::kSquaredRelu>(x);
  }
  return x;
}

}  // namespace switchyard::cuda

#endif  // SWITCHYARD_KERNELS_CUDA_ACTIVATION_H_
