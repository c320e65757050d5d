#include "coordinator/sampling_params.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "kernels/status.h"

namespace switchyard {
namespace {

constexpr float kDefaultTemperature = 1.0f;
constexpr float kDefaultTopP = 1.0f;
constexpr float kDefaultRepetitionPenalty = 1.0f;
constexpr float kMaxPenalty = 2.0f;

// With as many digits as it takes to tell it from its neighbours.
std::string Text(float value) {
  const std::string text = absl::StrCat(value);
  float read = 0;
  return !absl::SimpleAtof(text, &read) || read == value
             ? text
             : absl::StrFormat("%.9g", value);
}

template <typename Integer>
std::string Text(Integer value) {
  return absl::StrCat(value);
}

template <typename Number>
absl::Status Invalid(absl::string_view field, absl::string_view range,
                     Number value) {
  return absl::InvalidArgumentError(absl::StrCat(
      "sampling.", field, " must be ", range, ", and is ", Text(value)));
}

absl::Status CheckProbabilities(const v1::SamplingParams& params) {
  const float temperature = params.temperature();
  if (params.has_temperature() &&
      !(std::isfinite(temperature) && temperature >= 0))
    return Invalid("temperature", "a finite number of at least 0", temperature);
  if (params.has_top_p() && !(params.top_p() > 0 && params.top_p() <= 1))
    return Invalid("top_p", "above 0 and at most 1", params.top_p());
  if (params.has_min_p() && !(params.min_p() >= 0 && params.min_p() <= 1))
    return Invalid("min_p", "from 0 to 1", params.min_p());
  return absl::OkStatus();
}

absl::Status CheckPenalties(const v1::SamplingParams& params) {
  const float frequency = params.frequency_penalty();
  const float presence = params.presence_penalty();
  const float repetition = params.repetition_penalty();
  if (params.has_frequency_penalty() && !(std::abs(frequency) <= kMaxPenalty))
    return Invalid("frequency_penalty", "from -2 to 2", frequency);
  if (params.has_presence_penalty() && !(std::abs(presence) <= kMaxPenalty))
    return Invalid("presence_penalty", "from -2 to 2", presence);
  if (params.has_repetition_penalty() &&
      !(std::isfinite(repetition) && repetition > 0))
    return Invalid("repetition_penalty", "a finite number above 0", repetition);
  return absl::OkStatus();
}

absl::Status CheckEnds(const v1::SamplingParams& params, uint32_t vocab_size,
                       const RequestLimits& limits) {
  if (params.has_max_tokens() && params.max_tokens() == 0)
    return Invalid("max_tokens", "at least 1", 0);
  if (params.has_max_tokens() && params.min_tokens() > params.max_tokens()) {
    return Invalid(
        "min_tokens",
        absl::StrCat("at most max_tokens, which is ", params.max_tokens()),
        params.min_tokens());
  }
  if (params.stop_size() > limits.max_stop_strings) {
    return Invalid(
        "stop", absl::StrCat("at most ", limits.max_stop_strings, " strings"),
        params.stop_size());
  }
  for (int i = 0; i < params.stop_size(); ++i) {
    const size_t size = params.stop(i).size();
    if (size == 0 || size > static_cast<size_t>(limits.max_stop_string_bytes)) {
      return Invalid(
          absl::StrCat("stop[", i, "]"),
          absl::StrCat("from 1 to ", limits.max_stop_string_bytes, " bytes"),
          size);
    }
  }
  if (params.stop_token_ids_size() > kMaxStopTokenIds) {
    return Invalid("stop_token_ids",
                   absl::StrCat("at most ", kMaxStopTokenIds, " ids"),
                   params.stop_token_ids_size());
  }
  for (int i = 0; i < params.stop_token_ids_size(); ++i) {
    if (params.stop_token_ids(i) >= vocab_size) {
      return Invalid(absl::StrCat("stop_token_ids[", i, "]"),
                     absl::StrCat("below the vocabulary size ", vocab_size),
                     params.stop_token_ids(i));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckLogits(const v1::SamplingParams& params, uint32_t vocab_size,
                         const RequestLimits& limits) {
  const std::string most = absl::StrCat("at most ", limits.max_logprobs);
  if (params.logprobs() > limits.max_logprobs)
    return Invalid("logprobs", most, params.logprobs());
  if (params.prompt_logprobs() > limits.max_logprobs)
    return Invalid("prompt_logprobs", most, params.prompt_logprobs());
  if (static_cast<int64_t>(params.logit_bias().size()) >
      limits.max_logit_biases) {
    return Invalid(
        "logit_bias",
        absl::StrCat("at most ", limits.max_logit_biases, " entries"),
        params.logit_bias().size());
  }
  for (const auto& [id, bias] : params.logit_bias()) {
    if (id >= vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("sampling.logit_bias has the token id ", id,
                       ", and must be below the vocabulary size ", vocab_size));
    }
    if (!(std::abs(bias) <= kMaxLogitBias)) {
      return Invalid(
          absl::StrCat("logit_bias[", id, "]"),
          absl::StrCat("from ", -kMaxLogitBias, " to ", kMaxLogitBias), bias);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateSamplingParams(const v1::SamplingParams& params,
                                    uint32_t vocab_size,
                                    const RequestLimits& limits) {
  SY_RETURN_IF_ERROR(CheckProbabilities(params));
  SY_RETURN_IF_ERROR(CheckPenalties(params));
  SY_RETURN_IF_ERROR(CheckEnds(params, vocab_size, limits));
  return CheckLogits(params, vocab_size, limits);
}

v1::SamplingParams ResolveSamplingParams(const v1::SamplingParams& params,
                                         const SamplingDefaults& defaults) {
  v1::SamplingParams resolved = params;
  if (!params.has_temperature()) resolved.set_temperature(kDefaultTemperature);
  if (!params.has_top_p()) resolved.set_top_p(kDefaultTopP);
  if (!params.has_repetition_penalty())
    resolved.set_repetition_penalty(kDefaultRepetitionPenalty);
  // The others' default is zero; setting what is read sets the presence.
  resolved.set_top_k(params.top_k());
  resolved.set_min_p(params.min_p());
  resolved.set_frequency_penalty(params.frequency_penalty());
  resolved.set_presence_penalty(params.presence_penalty());
  const uint32_t max_tokens =
      params.has_max_tokens()
          ? std::min(params.max_tokens(), defaults.context_room)
          : defaults.context_room;
  resolved.set_max_tokens(max_tokens);
  resolved.set_min_tokens(std::min(params.min_tokens(), max_tokens));
  if (!params.has_seed()) resolved.set_seed(defaults.seed);
  if (!params.has_skip_special_tokens()) resolved.set_skip_special_tokens(true);

  auto* stops = resolved.mutable_stop_token_ids();
  if (!params.ignore_eos())
    stops->Add(defaults.eos_token_ids.begin(), defaults.eos_token_ids.end());
  std::sort(stops->begin(), stops->end());
  stops->erase(std::unique(stops->begin(), stops->end()), stops->end());
  return resolved;
}

}  // namespace switchyard
