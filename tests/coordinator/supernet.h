// Small made-up models for tests of the coordinator's bookkeeping.
#ifndef SWITCHYARD_TESTS_COORDINATOR_SUPERNET_H_
#define SWITCHYARD_TESTS_COORDINATOR_SUPERNET_H_

#include <vector>

#include "model/cache_spec.h"
#include "model/config.h"
#include "model/placement.h"

namespace switchyard {

// Mixers of every layer of MakeSupernet, by index.
enum SupernetMixer : int32_t {
  kAttention = 0,  // "attention"
  kWindow = 1,     // "window", of 10 positions
  kGdn = 2,        // "gdn"
  kKda = 3,        // "kda"
  kMamba = 4,      // "mamba"
};
inline constexpr int32_t kNumSupernetMixers = 5;

// Every layer offers all five; units of all five differ in size.
inline ModelConfig MakeSupernet(int num_layers) {
  AttentionConfig attention;
  attention.num_heads = 2;
  attention.num_kv_heads = 2;
  attention.head_size = 16;
  AttentionConfig window = attention;
  window.num_kv_heads = 1;
  window.window_size = 10;
  GdnConfig gdn;
  gdn.num_value_heads = 4;
  gdn.num_key_heads = 2;
  gdn.key_head_dim = 8;
  gdn.value_head_dim = 16;
  gdn.conv_kernel_size = 4;
  KdaConfig kda;
  kda.num_heads = 2;
  kda.head_dim = 16;
  MambaConfig mamba;
  mamba.d_inner = 48;
  mamba.d_xb = 48;
  mamba.dt_rank = 2;

  LayerConfig layer;
  layer.path = "decoder.block";
  layer.stochastic = true;
  layer.mixers = {{"attention", attention},
                  {"window", window},
                  {"gdn", gdn},
                  {"kda", kda},
                  {"mamba", mamba}};
  ModelConfig config;
  config.model_type = "apriel2_text";
  config.hidden_size = 32;
  config.vocab_size = 64;
  config.max_position_embeddings = 4096;
  config.layers.assign(num_layers, layer);
  return config;
}

// Blocks of 4 positions.
inline CacheSpec MakeSpec(const ModelConfig& config) {
  CacheSpecOptions options;
  options.block_size = 4;
  return CacheSpec::Create(config, options).value();
}

inline Placement MakePlacement(const ModelConfig& config,
                               const std::vector<int32_t>& mixers) {
  return Placement::FromIndices(config, mixers).value();
}

}  // namespace switchyard

#endif  // SWITCHYARD_TESTS_COORDINATOR_SUPERNET_H_
