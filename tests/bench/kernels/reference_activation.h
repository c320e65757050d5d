// The activations in double, by their definitions: what tests and benchmarks
// compare ops with.
#ifndef SWITCHYARD_TESTS_BENCH_KERNELS_REFERENCE_ACTIVATION_H_
#define SWITCHYARD_TESTS_BENCH_KERNELS_REFERENCE_ACTIVATION_H_

#include <cmath>

#include "kernels/activation.h"

namespace switchyard {

inline double ReferenceActivation(ActivationKind kind, double x) {
  switch (kind) {
    case ActivationKind::kIdentity:
      return x;
    case ActivationKind::kSilu:
      return x / (1 + std::exp(-x));
    case ActivationKind::kGelu:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case ActivationKind::kGeluTanh:
      return 0.5 * x *
             (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case ActivationKind::kRelu:
      return x > 0 ? x : 0;
    case ActivationKind::kSquaredRelu:
      return x > 0 ? x * x : 0;
  }
  return NAN;
}

}  // namespace switchyard

#endif  // SWITCHYARD_TESTS_BENCH_KERNELS_REFERENCE_ACTIVATION_H_
