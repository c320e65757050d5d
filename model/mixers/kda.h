// Kimi Delta Attention (2025): the delta rule with one decay per key channel;
// decay and output gate come from low-rank projections.
#ifndef SWITCHYARD_MODEL_MIXERS_KDA_H_
#define SWITCHYARD_MODEL_MIXERS_KDA_H_

#include <memory>

#include "absl/status/statusor.h"
#include "model/cache_spec.h"
#include "model/config.h"
#include "model/mixers/mixer.h"
#include "model/weights.h"

namespace switchyard {

// Everything that reads the mixer's input is one product.
absl::StatusOr<std::unique_ptr<Mixer>> LoadKda(const KdaConfig& config,
                                               const MixerCacheSpec& cache,
                                               const MixerContext& context,
                                               const WeightScope& weights);

}  // namespace switchyard

#endif  // SWITCHYARD_MODEL_MIXERS_KDA_H_
