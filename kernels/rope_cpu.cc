#include <cmath>

#include "absl/strings/str_cat.h"
#include "kernels/backends.h"
#include "kernels/cpu_parallel.h"

namespace switchyard::internal {

absl::Status RopeCpu(const OpContext& context, const RopeArgs& args) {
  for (int64_t row = 0; row < args.x.rows; ++row) {
    if (args.positions[row] < 0 || args.positions[row] >= args.num_positions) {
      return absl::InvalidArgumentError(absl::StrCat(
          "Rope: row ", row, " is at position ", args.positions[row],
          ", the table has ", args.num_positions));
    }
  }
  const int64_t half = args.head_size / 2;
  const int64_t num_heads = args.x.cols / args.head_size;
  ParallelFor(args.x.rows, 3 * args.x.cols, [&](int64_t row) {
    const float* cosine =
        args.table + int64_t{args.positions[row]} * args.head_size;
    const float* sine = cosine + half;
    for (int64_t h = 0; h < num_heads; ++h) {
      float* x1 = args.x.Row<float>(row) + h * args.head_size;
      float* x2 = x1 + half;
#pragma omp simd
      for (int64_t i = 0; i < half; ++i) {
        const float a = x1[i], b = x2[i];
        x1[i] = std::fma(a, cosine[i], -(b * sine[i]));
        x2[i] = std::fma(b, cosine[i], a * sine[i]);
      }
    }
  });
  return absl::OkStatus();
}

}  // namespace switchyard::internal
