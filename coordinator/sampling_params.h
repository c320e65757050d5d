// Validation and defaults of a request's sampling parameters. Every default
// lives here.
#ifndef SWITCHYARD_COORDINATOR_SAMPLING_PARAMS_H_
#define SWITCHYARD_COORDINATOR_SAMPLING_PARAMS_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "switchyard/v1/generation.pb.h"

namespace switchyard {

inline constexpr uint32_t kMaxLogprobs = 20;  // that workers can find
inline constexpr int kMaxStopTokenIds = 1024;
inline constexpr float kMaxLogitBias = 100.0f;

// What an operator lets one request ask for.
struct RequestLimits {
  // Unset: whatever leaves room for a token in the model's context.
  std::optional<uint32_t> max_prompt_tokens;
  int max_stop_strings = 16;
  int max_stop_string_bytes = 1024;  // each
  uint32_t max_logprobs = kMaxLogprobs;
  int max_logit_biases = 1024;
};

// Checks every field that is set against the ranges of generation.proto and
// the limits.
// InvalidArgument names the field as the client wrote it (`sampling.top_p`),
// its value and the range. `vocab_size` is the model's.
absl::Status ValidateSamplingParams(const v1::SamplingParams& params,
                                    uint32_t vocab_size,
                                    const RequestLimits& limits = {});

struct SamplingDefaults {
  std::vector<uint32_t> eos_token_ids;
  uint32_t context_room = 0;  // tokens that fit behind the prompt
  uint64_t seed = 0;          // for a request that brings none
};

// The parameters as workers get them: every field is set, except that
// `logprobs` and `prompt_logprobs` stay unset when none are wanted.
// `max_tokens` is at most the context room, `min_tokens` at most `max_tokens`;
// `stop_token_ids` is ascending without duplicates and holds EOS unless it is
// ignored.
// REQUIRES: ValidateSamplingParams(params, ...) is OK.
v1::SamplingParams ResolveSamplingParams(const v1::SamplingParams& params,
                                         const SamplingDefaults& defaults);

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_SAMPLING_PARAMS_H_
