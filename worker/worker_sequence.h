// WorkerSequence: what a rank knows of one sequence between steps.
#ifndef SWITCHYARD_WORKER_WORKER_SEQUENCE_H_
#define SWITCHYARD_WORKER_WORKER_SEQUENCE_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/sampling.h"
#include "model/placement.h"
#include "switchyard/v1/worker.pb.h"
#include "worker/cache_store.h"

namespace switchyard {

struct TokenBias {
  int32_t token_id = 0;
  float value = 0;
};

// A sequence's sampling parameters, checked and in the form the op takes.
struct SequenceSampling {
  // All but what a step decides: counts_row, draw and the range of biases.
  SamplingRow row;
  bool has_penalties = false;
  int32_t min_tokens = 0;
  std::optional<int32_t> num_logprobs;         // unset: none wanted
  std::optional<int32_t> num_prompt_logprobs;  // unset: none wanted
  // By token id, no id twice. The second forbids the stop tokens as well, for
  // as long as fewer than min_tokens have been generated.
  std::vector<TokenBias> bias;
  std::vector<TokenBias> early_bias;
};

struct WorkerSequence {
  uint64_t id = 0;
  // The prompt, then the generated ones that have arrived on the host.
  std::vector<int32_t> tokens;
  int32_t num_prompt_tokens = 0;
  int32_t num_cached = 0;  // positions [0, num_cached) are in the cache
  SequenceSampling sampling;
  SequenceCache cache;
  int32_t counts_row = -1;  // of the sampler's; -1: no penalties
  // Where its newest sampled token is kept on the device.
  int32_t token_slot = -1;
  // Tokens that steps under way sample: behind `tokens`, values unknown here.
  int32_t num_pending = 0;
  // Tells it from an earlier sequence of the same id.
  uint64_t incarnation = 0;

  int32_t num_tokens() const {
    return static_cast<int32_t>(tokens.size()) + num_pending;
  }
  int32_t num_generated() const { return num_tokens() - num_prompt_tokens; }
};

struct SequenceLimits {
  int32_t vocab_size = 0;
  int32_t max_context_tokens = 0;
};

// InvalidArgument names the sequence and the field.
absl::StatusOr<WorkerSequence> MakeWorkerSequence(
    const v1::SequenceStart& start, const Placement& placement,
    const SequenceLimits& limits);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_WORKER_SEQUENCE_H_
