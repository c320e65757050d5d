// Gated DeltaNet (Yang et al. 2024): short convolution, gated delta rule, gated
// norm.
#ifndef SWITCHYARD_MODEL_MIXERS_GDN_H_
#define SWITCHYARD_MODEL_MIXERS_GDN_H_

#include <memory>

#include "absl/status/statusor.h"
#include "model/cache_spec.h"
#include "model/config.h"
#include "model/mixers/mixer.h"
#include "model/weights.h"

namespace switchyard {

// in_proj_qkvz and in_proj_ba are one product.
absl::StatusOr<std::unique_ptr<Mixer>> LoadGdn(const GdnConfig& config,
                                               const MixerCacheSpec& cache,
                                               const MixerContext& context,
                                               const WeightScope& weights);

}  // namespace switchyard

#endif  // SWITCHYARD_MODEL_MIXERS_GDN_H_
