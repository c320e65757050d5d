// Mamba 1 (Gu & Dao 2023) with grouped B and x.
#ifndef SWITCHYARD_MODEL_MIXERS_MAMBA_H_
#define SWITCHYARD_MODEL_MIXERS_MAMBA_H_

#include <memory>

#include "absl/status/statusor.h"
#include "model/cache_spec.h"
#include "model/config.h"
#include "model/mixers/mixer.h"
#include "model/weights.h"

namespace switchyard {

// in_proj and dt_in_proj are one product. Where x is repeated before the
// convolution, its rows of in_proj are repeated at load, so that the product
// yields the repeated x.
absl::StatusOr<std::unique_ptr<Mixer>> LoadMamba(const MambaConfig& config,
                                                 const MixerCacheSpec& cache,
                                                 const MixerContext& context,
                                                 const WeightScope& weights);

}  // namespace switchyard

#endif  // SWITCHYARD_MODEL_MIXERS_MAMBA_H_
