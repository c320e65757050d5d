#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/backends.h"
#include "kernels/cpu_math.h"
#include "kernels/cpu_parallel.h"
#include "kernels/sampling.h"

namespace switchyard::internal {
namespace {

// log(sum exp(x)): exponentials in fp32, their sum in double every 256.
double LogSumExp(const float* x, int64_t n) {
  float max = -HUGE_VALF;
  for (int64_t i = 0; i < n; ++i) max = std::max(max, x[i]);
  if (max == -HUGE_VALF) return max;
  constexpr int64_t kRun = 256;
  double sum = 0;
  for (int64_t begin = 0; begin < n; begin += kRun) {
    float terms[kRun] = {};
    const int64_t count = std::min(kRun, n - begin);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) terms[i] = Exp(x[begin + i] - max);
    F8 lanes = {};
    for (int64_t i = 0; i < kRun; i += kLanes) lanes += Load8(terms + i);
    sum += Sum8(lanes);
  }
  return max + std::log(sum);
}

// The `num_top` largest, best first, by insertion: few entries ever move.
void FindTop(const float* x, int64_t n, int32_t num_top, int32_t* ids) {
  int32_t size = 0;
  for (int64_t i = 0; i < n; ++i) {
    // An equal one that came earlier stays ahead.
    if (size == num_top && !(x[i] > x[ids[size - 1]])) continue;
    int32_t place = size < num_top ? size++ : size - 1;
    for (; place > 0 && x[i] > x[ids[place - 1]]; --place) {
      ids[place] = ids[place - 1];
    }
    ids[place] = static_cast<int32_t>(i);
  }
}

}  // namespace

absl::Status JoinShardsCpu(const OpContext& context,
                           const JoinShardsArgs& args) {
  const int64_t rows = args.out.rows, cols = args.out.cols;
  ParallelFor(rows, cols, [&](int64_t row) {
    float* out = args.out.Row<float>(row);
    for (int32_t s = 0; s < args.world_size; ++s) {
      const int64_t begin = s * args.shard_cols;
      const int64_t count = std::min(args.shard_cols, cols - begin);
      if (count <= 0) break;
      std::memcpy(out + begin, args.shards + (s * rows + row) * args.shard_cols,
                  count * sizeof(float));
    }
  });
  return absl::OkStatus();
}

absl::Status LogprobsCpu(const OpContext& context, const LogprobsArgs& args) {
  const int64_t vocab = args.logits.cols;
  for (int64_t row = 0; row < args.logits.rows; ++row) {
    if (args.targets[row] == kNoToken) continue;
    if (args.targets[row] < 0 || args.targets[row] >= vocab) {
      return absl::InvalidArgumentError(
          absl::StrCat("Logprobs: the target of row ", row, " is ",
                       args.targets[row], ", the vocabulary has ", vocab));
    }
  }
  ParallelFor(args.logits.rows, 10 * vocab, [&](int64_t row) {
    const float* logits = args.logits.Row<const float>(row);
    const double log_sum = LogSumExp(logits, vocab);
    const int32_t target = args.targets[row];
    args.target_logprobs[row] =
        target == kNoToken ? NAN : static_cast<float>(logits[target] - log_sum);
    if (args.num_top == 0) return;
    int32_t* ids = args.top_ids + row * args.num_top;
    float* logprobs = args.top_logprobs + row * args.num_top;
    FindTop(logits, vocab, args.num_top, ids);
    for (int32_t i = 0; i < args.num_top; ++i) {
      logprobs[i] = static_cast<float>(logits[ids[i]] - log_sum);
    }
  });
  return absl::OkStatus();
}

}  // namespace switchyard::internal
