// The mixers of one block of config.json. Names and defaults are those of the
// public HF implementation (ServiceNow/Fast-LLM,
// fast_llm_external_models/apriel2/modeling_apriel2.py). Internal to the config
// parser.
#ifndef SWITCHYARD_MODEL_MIXER_PARSE_H_
#define SWITCHYARD_MODEL_MIXER_PARSE_H_

#include <cstdint>

#include "absl/strings/string_view.h"
#include "model/config.h"
#include "model/config_reader.h"

namespace switchyard {

// What no field of a real model reaches; keeps every product within int64.
inline constexpr int32_t kMaxWidth = 1 << 22;  // of any activation
inline constexpr int32_t kMaxPositions = 1 << 30;

// Reads block.mixer, stochastic or not, into the layer's mixers, main_mixer and
// stochastic. Errors go to the reader's.
void ParseMixers(ObjectReader in, int32_t hidden_size, LayerConfig* layer);

// {"bias": {"enabled": true | false | null}} of the linear layer `layer`.
bool ParseLayerBias(ObjectReader& in, absl::string_view layer, bool otherwise);

}  // namespace switchyard

#endif  // SWITCHYARD_MODEL_MIXER_PARSE_H_
