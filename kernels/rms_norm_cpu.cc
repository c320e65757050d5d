#include <cmath>

#include "kernels/backends.h"
#include "kernels/cpu_math.h"
#include "kernels/cpu_parallel.h"

namespace switchyard::internal {
namespace {

float InverseRms(const float* x, int64_t n, float epsilon) {
  return 1.0f / std::sqrt(Dot(x, x, n) / static_cast<float>(n) + epsilon);
}

}  // namespace

absl::Status AddRmsNormCpu(const OpContext& context,
                           const AddRmsNormArgs& args) {
  const int64_t hidden = args.out.cols;
  ParallelFor(args.out.rows, 4 * hidden, [&](int64_t row) {
    float* residual =
        args.residual.Row<float>(args.rows == nullptr ? row : args.rows[row]);
    if (args.delta.data != nullptr) {
      const float* delta = args.delta.Row<const float>(
          args.delta_rows == nullptr ? row : args.delta_rows[row]);
      for (int64_t c = 0; c < hidden; ++c) residual[c] += delta[c];
    }
    const float scale = InverseRms(residual, hidden, args.epsilon);
    float* out = args.out.Row<float>(row);
    for (int64_t c = 0; c < hidden; ++c) {
      out[c] = residual[c] * scale * args.weight[c];
    }
  });
  return absl::OkStatus();
}

absl::Status GatedRmsNormCpu(const OpContext& context,
                             const GatedRmsNormArgs& args) {
  const int64_t head_dim = args.head_dim;
  const int64_t num_heads = args.out.cols / head_dim;
  ParallelFor(args.out.rows, 12 * args.out.cols, [&](int64_t row) {
    for (int64_t h = 0; h < num_heads; ++h) {
      const float* x = args.x.Row<const float>(row) + h * head_dim;
      const float* gate = args.gate.Row<const float>(row) + h * head_dim;
      float* out = args.out.Row<float>(row) + h * head_dim;
      const float scale = InverseRms(x, head_dim, args.epsilon);
      if (args.activation == GateActivation::kSilu) {
#pragma omp simd
        for (int64_t c = 0; c < head_dim; ++c) {
          out[c] = x[c] * scale * args.weight[c] * Silu(gate[c]);
        }
      } else {
#pragma omp simd
        for (int64_t c = 0; c < head_dim; ++c) {
          out[c] = x[c] * scale * args.weight[c] * Sigmoid(gate[c]);
        }
      }
    }
  });
  return absl::OkStatus();
}

}  // namespace switchyard::internal
