// Softmax attention with grouped KV heads, RoPE and an optional window, over a
// paged cache.
#ifndef SWITCHYARD_MODEL_MIXERS_ATTENTION_H_
#define SWITCHYARD_MODEL_MIXERS_ATTENTION_H_

#include <memory>

#include "absl/status/statusor.h"
#include "model/cache_spec.h"
#include "model/config.h"
#include "model/mixers/mixer.h"
#include "model/weights.h"

namespace switchyard {

// q, k and v are one product.
absl::StatusOr<std::unique_ptr<Mixer>> LoadAttention(
    const AttentionConfig& config, const MixerCacheSpec& cache,
    const MixerContext& context, const WeightScope& weights);

}  // namespace switchyard

#endif  // SWITCHYARD_MODEL_MIXERS_ATTENTION_H_
