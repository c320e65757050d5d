#include "worker/worker_sequence.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/logits.h"
#include "kernels/status.h"

namespace switchyard {
namespace {

// Collects the first field that does not hold.
class FieldChecker {
 public:
  explicit FieldChecker(uint64_t sequence_id) : id_(sequence_id) {}

  template <typename... Parts>
  void Require(bool holds, const Parts&... message) {
    if (holds || !status_.ok()) return;
    status_ = absl::InvalidArgumentError(
        absl::StrCat("sequence ", id_, ": ", message...));
  }
  const absl::Status& status() const { return status_; }

 private:
  uint64_t id_;
  absl::Status status_;
};

std::vector<TokenBias> ToVector(const std::map<int32_t, float>& bias) {
  std::vector<TokenBias> values;
  for (const auto& [token_id, value] : bias)
    values.push_back({token_id, value});
  return values;
}

SequenceSampling ReadSampling(const v1::SamplingParams& params, uint64_t seed,
                              int32_t vocab_size, FieldChecker& check) {
  SequenceSampling sampling;
  SamplingRow& row = sampling.row;
  row.temperature = params.has_temperature() ? params.temperature() : 1.0f;
  row.top_p = params.has_top_p() ? params.top_p() : 1.0f;
  row.min_p = params.min_p();
  // A top_k of the vocabulary or more keeps everything, as 0 does.
  row.top_k = params.top_k() < static_cast<uint32_t>(vocab_size)
                  ? static_cast<int32_t>(params.top_k())
                  : 0;
  row.frequency_penalty = params.frequency_penalty();
  row.presence_penalty = params.presence_penalty();
  row.repetition_penalty =
      params.has_repetition_penalty() ? params.repetition_penalty() : 1.0f;
  row.seed = seed;
  check.Require(std::isfinite(row.temperature) && row.temperature >= 0,
                "temperature is ", row.temperature, ", should be at least 0");
  check.Require(row.top_p > 0 && row.top_p <= 1, "top_p is ", row.top_p,
                ", should be in (0, 1]");
  check.Require(row.min_p >= 0 && row.min_p <= 1, "min_p is ", row.min_p,
                ", should be in [0, 1]");
  check.Require(std::isfinite(row.frequency_penalty), "frequency_penalty is ",
                row.frequency_penalty, ", should be finite");
  check.Require(std::isfinite(row.presence_penalty), "presence_penalty is ",
                row.presence_penalty, ", should be finite");
  check.Require(
      std::isfinite(row.repetition_penalty) && row.repetition_penalty > 0,
      "repetition_penalty is ", row.repetition_penalty, ", should be positive");
  sampling.has_penalties = row.frequency_penalty != 0 ||
                           row.presence_penalty != 0 ||
                           row.repetition_penalty != 1;

  sampling.min_tokens = static_cast<int32_t>(std::min<uint32_t>(
      params.min_tokens(), std::numeric_limits<int32_t>::max()));
  const auto num_top = [&](uint32_t value, const char* field) {
    check.Require(value <= kMaxTopLogprobs, field, " is ", value,
                  ", should be at most ", kMaxTopLogprobs);
    return std::min(static_cast<int32_t>(value), vocab_size);
  };
  if (params.has_logprobs()) {
    sampling.num_logprobs = num_top(params.logprobs(), "logprobs");
  }
  if (params.has_prompt_logprobs()) {
    sampling.num_prompt_logprobs =
        num_top(params.prompt_logprobs(), "prompt_logprobs");
  }

  std::map<int32_t, float> bias;
  for (const auto& [token_id, value] : params.logit_bias()) {
    check.Require(token_id < static_cast<uint32_t>(vocab_size),
                  "logit_bias has token id ", token_id, ", the vocabulary has ",
                  vocab_size);
    check.Require(!std::isnan(value), "logit_bias of token id ", token_id,
                  " is NaN");
    bias[static_cast<int32_t>(token_id)] = value;
  }
  sampling.bias = ToVector(bias);
  if (sampling.min_tokens > 0) {
    for (uint32_t token_id : params.stop_token_ids()) {
      check.Require(token_id < static_cast<uint32_t>(vocab_size),
                    "stop_token_ids has ", token_id, ", the vocabulary has ",
                    vocab_size);
      bias[static_cast<int32_t>(token_id)] =
          -std::numeric_limits<float>::infinity();
    }
    sampling.early_bias = ToVector(bias);
  }
  return sampling;
}

}  // namespace

absl::StatusOr<WorkerSequence> MakeWorkerSequence(
    const v1::SequenceStart& start, const Placement& placement,
    const SequenceLimits& limits) {
  FieldChecker check(start.sequence_id());
  check.Require(start.token_ids_size() > 0, "token_ids is empty");
  check.Require(start.token_ids_size() <= limits.max_context_tokens,
                "token_ids has ", start.token_ids_size(),
                " tokens, max_context_tokens is ", limits.max_context_tokens);
  check.Require(start.num_prompt_tokens() >= 1 &&
                    start.num_prompt_tokens() <=
                        static_cast<uint32_t>(start.token_ids_size()),
                "num_prompt_tokens is ", start.num_prompt_tokens(), " of ",
                start.token_ids_size(), " tokens");
  WorkerSequence sequence{start.sequence_id(),     {}, 0, 0, {},
                          SequenceCache(placement)};
  sequence.tokens.reserve(start.token_ids_size());
  for (uint32_t token_id : start.token_ids()) {
    check.Require(token_id < static_cast<uint32_t>(limits.vocab_size),
                  "token_ids has ", token_id, ", the vocabulary has ",
                  limits.vocab_size);
    sequence.tokens.push_back(static_cast<int32_t>(token_id));
  }
  sequence.num_prompt_tokens = static_cast<int32_t>(start.num_prompt_tokens());
  sequence.sampling =
      ReadSampling(start.sampling(), start.seed(), limits.vocab_size, check);
  SY_RETURN_IF_ERROR(check.status());
  return sequence;
}

}  // namespace switchyard
