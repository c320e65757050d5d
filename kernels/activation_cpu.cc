#include <algorithm>
#include <cmath>

#include "kernels/backends.h"
#include "kernels/cpu_math.h"
#include "kernels/cpu_parallel.h"

namespace switchyard::internal {
namespace {

float Gelu(float x) {
  return 0.5f * x * (1.0f + std::erf(x * 0.70710678118654752f));
}

// 0.5 x (1 + tanh(y)) = x sigmoid(2 y).
float GeluTanh(float x) {
  constexpr float kSqrt2OverPi = 0.79788456080286536f;
  return x * Sigmoid(2.0f * kSqrt2OverPi * (x + 0.044715f * x * x * x));
}

// NaN stays NaN.
float Relu(float x) { return x < 0 ? 0.0f : x; }

template <typename F>
void Apply(const ActivationArgs& args, const F& f) {
  const int64_t width = args.out.cols;
  ParallelFor(args.out.rows, 8 * width, [&](int64_t row) {
    const float* x = args.x.Row<const float>(row);
    float* out = args.out.Row<float>(row);
    if (args.gated) {
      const float* up = x + width;
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) out[c] = f(x[c]) * up[c];
    } else {
#pragma omp simd
      for (int64_t c = 0; c < width; ++c) out[c] = f(x[c]);
    }
  });
}

}  // namespace

absl::Status ActivationCpu(const OpContext& context,
                           const ActivationArgs& args) {
  switch (args.kind) {
    case ActivationKind::kIdentity:
      Apply(args, [](float x) { return x; });
      break;
    case ActivationKind::kSilu:
      Apply(args, [](float x) { return Silu(x); });
      break;
    case ActivationKind::kGelu:
      Apply(args, [](float x) { return Gelu(x); });
      break;
    case ActivationKind::kGeluTanh:
      Apply(args, [](float x) { return GeluTanh(x); });
      break;
    case ActivationKind::kRelu:
      Apply(args, [](float x) { return Relu(x); });
      break;
    case ActivationKind::kSquaredRelu:
      Apply(args, [](float x) { return Relu(x) * Relu(x); });
      break;
  }
  return absl::OkStatus();
}

}  // namespace switchyard::internal
