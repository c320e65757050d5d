// From a mixer's config to the mixer.
#ifndef SWITCHYARD_MODEL_MIXERS_LOAD_MIXER_H_
#define SWITCHYARD_MODEL_MIXERS_LOAD_MIXER_H_

#include <memory>

#include "absl/status/statusor.h"
#include "model/cache_spec.h"
#include "model/config.h"
#include "model/mixers/mixer.h"
#include "model/weights.h"

namespace switchyard {

// Loads the mixer that `weights` is the scope of. `cache` is its entry of the
// cache spec. Errors as WeightScope's.
absl::StatusOr<std::unique_ptr<Mixer>> LoadMixer(const MixerConfig& config,
                                                 const MixerCacheSpec& cache,
                                                 const MixerContext& context,
                                                 const WeightScope& weights);

}  // namespace switchyard

#endif  // SWITCHYARD_MODEL_MIXERS_LOAD_MIXER_H_
