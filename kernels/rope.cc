#include "kernels/rope.h"

#include <cmath>

#include "kernels/backends.h"
#include "kernels/dtype.h"
#include "kernels/op_support.h"
#include "kernels/status.h"

namespace switchyard {

std::vector<float> MakeRopeTable(int64_t num_positions, int32_t head_size,
                                 double theta, bool bf16_frequencies) {
  const int32_t half = head_size / 2;
  std::vector<double> frequencies(half);
  for (int32_t i = 0; i < half; ++i) {
    frequencies[i] = std::pow(theta, -2.0 * i / head_size);
    if (bf16_frequencies) {
      frequencies[i] =
          BF16ToFloat(FloatToBF16(static_cast<float>(frequencies[i])));
    }
  }
  std::vector<float> table(num_positions * head_size);
  for (int64_t p = 0; p < num_positions; ++p) {
    float* row = table.data() + p * head_size;
    for (int32_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(p) * frequencies[i];
      row[i] = static_cast<float>(std::cos(angle));
      row[half + i] = static_cast<float>(std::sin(angle));
    }
  }
  return table;
}

absl::Status Rope(const OpContext& context, const RopeArgs& args) {
  internal::ArgChecker check("Rope", context);
  check.Matrix("x", args.x, args.x.rows, args.x.cols, check.activation_types());
  check.Require(args.head_size > 0 && args.head_size % 2 == 0, "head_size is ",
                args.head_size, ", should be even");
  check.Require(args.head_size <= 0 || args.x.cols % args.head_size == 0,
                "head_size ", args.head_size, " does not divide the ",
                args.x.cols, " columns of x");
  check.Require(args.num_positions > 0, "the table has no positions");
  if (args.x.rows > 0) check.Pointer("positions", args.positions);
  check.Pointer("table", args.table);
  SY_RETURN_IF_ERROR(check.status());
  if (args.x.empty()) return absl::OkStatus();
  return internal::Dispatch(context, args, internal::RopeCpu,
                            internal::RopeCuda);
}

}  // namespace switchyard
