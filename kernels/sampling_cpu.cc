#include "kernels/sampling_cpu.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/backends.h"
#include "kernels/cpu_parallel.h"

namespace switchyard::internal {
namespace {

void ApplyBiasAndPenalties(const SamplingArgs& args, const SamplingRow& row,
                           int64_t vocab, float* logits) {
  for (int32_t i = row.bias_begin; i < row.bias_end; ++i) {
    logits[args.bias_ids[i]] += args.bias_values[i];
  }
  if (row.counts_row >= 0) {
    const uint16_t* counts = args.counts + row.counts_row * vocab;
    for (int64_t t = 0; t < vocab; ++t) {
      if (counts[t] == 0) continue;
      const int generated = counts[t] & ~kCountsPromptBit;
      float& l = logits[t];
      l = l > 0 ? l / row.repetition_penalty : l * row.repetition_penalty;
      l -= row.frequency_penalty * generated +
           row.presence_penalty * (generated > 0 ? 1.0f : 0.0f);
    }
  }
  for (int64_t t = 0; t < vocab; ++t) {
    if (std::isnan(logits[t])) logits[t] = -HUGE_VALF;
  }
}

void CountToken(const SamplingArgs& args, const SamplingRow& row, int64_t vocab,
                int32_t token) {
  if (row.counts_row < 0 || token == kNoToken) return;
  uint16_t& count = args.counts[row.counts_row * vocab + token];
  if ((count & ~kCountsPromptBit) != (kCountsPromptBit - 1)) ++count;
}

int32_t SampleRow(const SamplingRow& row, int64_t vocab, float* logits) {
  const int64_t best = std::max_element(logits, logits + vocab) - logits;
  const float max = logits[best];
  if (!std::isfinite(max)) return kNoToken;
  if (row.temperature == 0) return static_cast<int32_t>(best);
  for (int64_t t = 0; t < vocab; ++t) {
    logits[t] = (logits[t] - max) / row.temperature;
  }
  const float min_logit = static_cast<float>(std::log(double{row.min_p}));
  const bool by_top_k = row.top_k > 0 && row.top_k < vocab;
  if (!by_top_k && row.top_p >= 1) {
    return DrawFromAll(row, logits, vocab, min_logit);
  }
  return DrawFrom(row, KeepTop(row, logits, vocab), min_logit);
}

}  // namespace

absl::Status SampleCpu(const OpContext& context, const SamplingArgs& args) {
  const int64_t vocab = args.logits.cols;
  for (int64_t r = 0; r < args.logits.rows; ++r) {
    const SamplingRow& row = args.rows[r];
    for (int32_t i = row.bias_begin; i < row.bias_end; ++i) {
      if (args.bias_ids[i] < 0 || args.bias_ids[i] >= vocab) {
        return absl::InvalidArgumentError(
            absl::StrCat("Sample: row ", r, " has a bias for token ",
                         args.bias_ids[i], ", the vocabulary has ", vocab));
      }
    }
  }
  ParallelFor(args.logits.rows, 32 * vocab, [&](int64_t r) {
    const SamplingRow& row = args.rows[r];
    float* logits = args.logits.Row<float>(r);
    ApplyBiasAndPenalties(args, row, vocab, logits);
    args.token_ids[r] = SampleRow(row, vocab, logits);
    CountToken(args, row, vocab, args.token_ids[r]);
  });
  return absl::OkStatus();
}

}  // namespace switchyard::internal
