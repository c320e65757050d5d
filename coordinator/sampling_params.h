// Validation and defaults of a request's sampling parameters. Every default
// lives here.
#ifndef SWITCHYARD_COORDINATOR_SAMPLING_PARAMS_H_
#define SWITCHYARD_COORDINATOR_SAMPLING_PARAMS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "switchyard/v1/generation.pb.h"

namespace switchyard {

inline constexpr uint32_t kMaxLogprobs = 20;
inline constexpr int kMaxStopStrings = 16;
inline constexpr size_t kMaxStopStringBytes = 1024;
inline constexpr int kMaxStopTokenIds = 1024;
inline constexpr int kMaxLogitBiases = 1024;
inline constexpr float kMaxLogitBias = 100.0f;

// Checks every field that is set against the ranges of generation.proto.
// InvalidArgument names the field as the client wrote it (`sampling.top_p`),
// its value and the range. `vocab_size` is the model's.
absl::Status ValidateSamplingParams(const v1::SamplingParams& params,
                                    uint32_t vocab_size);

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
