#include <algorithm>
#include <cstring>

#include "kernels/backends.h"
#include "kernels/cpu_parallel.h"
#include "kernels/dtype.h"

namespace switchyard::internal {

absl::Status EmbeddingCpu(const OpContext& context, const EmbeddingArgs& args) {
  const int64_t hidden = args.out.cols;
  ParallelFor(args.out.rows, hidden, [&](int64_t row) {
    float* out = args.out.Row<float>(row);
    const int64_t local = int64_t{args.token_ids[row]} - args.vocab_begin;
    if (local < 0 || local >= args.table.rows) {
      std::fill(out, out + hidden, 0.0f);
      return;
    }
    if (args.table.dtype == DType::kF32) {
      std::memcpy(out, args.table.Row<const float>(local),
                  hidden * sizeof(float));
      return;
    }
    const uint16_t* in = args.table.Row<const uint16_t>(local);
    if (args.table.dtype == DType::kBF16) {
      for (int64_t c = 0; c < hidden; ++c) out[c] = BF16ToFloat(in[c]);
    } else {
      for (int64_t c = 0; c < hidden; ++c) out[c] = F16ToFloat(in[c]);
    }
  });
  return absl::OkStatus();
}

}  // namespace switchyard::internal
