#include "model/mixers/load_mixer.h"

#include "kernels/check.h"
#include "model/mixers/attention.h"
#include "model/mixers/gdn.h"
#include "model/mixers/kda.h"
#include "model/mixers/mamba.h"

namespace switchyard {

absl::StatusOr<std::unique_ptr<Mixer>> LoadMixer(const MixerConfig& config,
                                                 const MixerCacheSpec& cache,
                                                 const MixerContext& context,
                                                 const WeightScope& weights) {
  switch (config.type()) {
    case MixerType::kAttention:
      return LoadAttention(*config.As<AttentionConfig>(), cache, context,
                           weights);
    case MixerType::kGdn:
      return LoadGdn(*config.As<GdnConfig>(), cache, context, weights);
    case MixerType::kKda:
      return LoadKda(*config.As<KdaConfig>(), cache, context, weights);
    case MixerType::kMamba:
      return LoadMamba(*config.As<MambaConfig>(), cache, context, weights);
  }
  SY_CHECK(false);
}

}  // namespace switchyard
