// What is read off the logits without sampling: joining the ranks' shards, and
// log-probabilities.
#ifndef SWITCHYARD_KERNELS_LOGITS_H_
#define SWITCHYARD_KERNELS_LOGITS_H_

#include "absl/status/status.h"
#include "kernels/op_context.h"
#include "kernels/tensor.h"

namespace switchyard {

struct JoinShardsArgs {
  // [world_size, rows, shard_cols] as all-gathered.
  const float* shards = nullptr;
  int32_t world_size = 0;
  int64_t shard_cols = 0;
  // [rows, cols] fp32, cols <= world_size * shard_cols: padding at the end is
  // dropped.
  MatrixView out;
};

// out[r][s * shard_cols + c] = shards[s][r][c].
absl::Status JoinShards(const OpContext& context, const JoinShardsArgs& args);

struct LogprobsArgs {
  MatrixView logits;                 // [rows, vocab] fp32, untouched
  const int32_t* targets = nullptr;  // [rows] token ids, or kNoToken
  int32_t num_top = 0;               // 0..kMaxTopLogprobs best tokens per row
  float* target_logprobs = nullptr;  // [rows], NaN for kNoToken
  // [rows, num_top], best first; equal logits: the lower id first.
  int32_t* top_ids = nullptr;
  float* top_logprobs = nullptr;  // [rows, num_top]
};

constexpr int32_t kMaxTopLogprobs = 20;

// log softmax(logits) at the targets, and the num_top largest. In a row with a
// NaN or +infinity neither has a meaning, but top_ids are token ids.
absl::Status Logprobs(const OpContext& context, const LogprobsArgs& args);

}  // namespace switchyard

#endif  // SWITCHYARD_KERNELS_LOGITS_H_
