#include "model/config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <string>

#include "absl/strings/match.h"
#include "tests/model/config_json.h"
#include "tests/model/random_config.h"

namespace switchyard {
namespace {

TEST(ConfigTest, ReadsTheTrainedSupernet) {
  const ModelConfig config = Load("apriel2-tiny");
  EXPECT_EQ(config.model_type, "apriel2_text");
  EXPECT_EQ(config.hidden_size, 256);
  EXPECT_EQ(config.vocab_size, 2048);
  EXPECT_EQ(config.max_position_embeddings, 4096);
  EXPECT_EQ(config.norm_epsilon, 1e-5);
  EXPECT_FALSE(config.tie_word_embeddings);
  EXPECT_EQ(config.eos_token_ids, std::vector<int32_t>{2});
  EXPECT_TRUE(config.notices.empty());
  ASSERT_EQ(config.num_layers(), 6);
  const LayerConfig& layer = config.layers[5];
  EXPECT_TRUE(layer.stochastic);
  EXPECT_EQ(layer.main_mixer, 0);
  ASSERT_EQ(layer.mixers.size(), 4);
  EXPECT_EQ(layer.mixers[1].name, "gdn");  // in the file's order
  EXPECT_EQ(layer.mixers[3].name, "sliding_window");
  EXPECT_EQ(layer.mixers[3].type(), MixerType::kAttention);
  EXPECT_EQ(layer.mixers[3].As<AttentionConfig>()->window_size, 64);
  EXPECT_FALSE(layer.mixers[0].As<AttentionConfig>()->window_size.has_value());
  EXPECT_EQ(layer.mixers[0].As<GdnConfig>(), nullptr);
  EXPECT_TRUE(layer.mlp.gated);
  EXPECT_EQ(layer.mlp.intermediate_size, 512);
}

TEST(ConfigTest, ReadsAPatternWithBiasOverrides) {
  const ModelConfig config = Load("zoo-pattern");
  ASSERT_EQ(config.num_layers(), 7);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_EQ(config.norm_epsilon, 1e-6);
  EXPECT_EQ(config.layers[5].path, "decoder.blocks.attn");
  EXPECT_FALSE(config.layers[0].stochastic);
  EXPECT_EQ(config.layers[0].mixers[0].name, "attention");
  const auto& swa = *config.layers[4].mixers[0].As<AttentionConfig>();
  EXPECT_TRUE(swa.q_bias && swa.v_bias);
  EXPECT_FALSE(swa.k_bias || swa.o_bias);
  const auto& attention = *config.layers[0].mixers[0].As<AttentionConfig>();
  EXPECT_TRUE(attention.q_bias && attention.k_bias && attention.v_bias &&
              attention.o_bias);
  EXPECT_EQ(attention.rope_theta, 1e6);
  const auto& kda = *config.layers[2].mixers[0].As<KdaConfig>();
  EXPECT_EQ(kda.gate_activation, ActivationFunction::kSigmoid);
  EXPECT_EQ(kda.norm_epsilon, 1e-6);
  const auto& mamba = *config.layers[3].mixers[0].As<MambaConfig>();
  EXPECT_FALSE(mamba.repeat_kv_before_conv);
  EXPECT_EQ(config.layers[3].mlp.activation, ActivationFunction::kGelu);
  EXPECT_TRUE(config.layers[1].mlp.up_bias && config.layers[1].mlp.down_bias);
  // The blocks' epsilon differs from the one in force, which is said.
  ASSERT_FALSE(config.notices.empty());
  EXPECT_TRUE(absl::StrContains(config.notices[0], "normalization.epsilon"));
}

TEST(ConfigTest, TakesTheDefaultsOfThePublicImplementation) {
  Json json = ReadJson("zoo-stochastic5/config.json");
  Json& mixers = json["decoder"]["block"]["mixer"]["mixers"];
  mixers = {
      {"g", {{"type", "gdn"}, {"convolution_layer", {{"kernel_size", 3}}}}},
      {"k", {{"type", "kda"}}},
      {"m", {{"type", "mamba"}, {"conv_bias", true}, {"dt_proj_bias", false}}},
      {"a",
       {{"heads", 4},
        {"head_size", 8},
        {"rotary", {{"type", "default"}, {"theta", 5}}}}}};
  json["decoder"]["block"]["mixer"].erase("main_mixer_name");
  json["decoder"]["block"]["mlp"] = {{"intermediate_size", 12}};
  const auto config = Parse(json);
  ASSERT_TRUE(config.ok()) << config.status();
  const LayerConfig& layer = config->layers[0];
  EXPECT_EQ(layer.main_mixer, 0);
  const auto& gdn = *layer.mixers[0].As<GdnConfig>();
  EXPECT_EQ(gdn.num_value_heads, 32);
  EXPECT_EQ(gdn.num_key_heads, 8);
  EXPECT_EQ(gdn.key_head_dim, 64);
  EXPECT_EQ(gdn.value_head_dim, 64);
  EXPECT_EQ(gdn.norm_epsilon, 1e-5);
  const auto& kda = *layer.mixers[1].As<KdaConfig>();
  EXPECT_EQ(kda.num_heads, 32);
  EXPECT_EQ(kda.head_dim, 64);
  EXPECT_EQ(kda.conv_kernel_size, 4);
  EXPECT_EQ(kda.gate_activation, ActivationFunction::kSilu);
  const auto& mamba = *layer.mixers[2].As<MambaConfig>();
  EXPECT_EQ(mamba.d_inner, 256);  // 2 * hidden_size
  EXPECT_EQ(mamba.d_xb, 128);
  EXPECT_EQ(mamba.dt_rank, 8);  // hidden_size / 16
  EXPECT_EQ(mamba.d_conv, 4);
  EXPECT_EQ(mamba.state_size, 16);
  EXPECT_TRUE(mamba.repeat_kv_before_conv && mamba.conv_bias);
  const auto& attention = *layer.mixers[3].As<AttentionConfig>();
  EXPECT_EQ(attention.num_kv_heads, 4);
  EXPECT_FALSE(attention.q_bias);
  EXPECT_FALSE(layer.mlp.gated);
  EXPECT_EQ(layer.mlp.activation, ActivationFunction::kSilu);
}

TEST(ConfigTest, StopTokensComeFromTheGenerationConfigFirst) {
  Json json = ReadJson("apriel2-tiny/config.json");
  EXPECT_EQ(Parse(json, R"({"eos_token_id": [7, 5, 7]})")->eos_token_ids,
            (std::vector<int32_t>{5, 7}));
  EXPECT_EQ(Parse(json, R"({"eos_token_id": null})")->eos_token_ids,
            std::vector<int32_t>{2});
  json["eos_token_id"] = nullptr;
  EXPECT_TRUE(Parse(json)->eos_token_ids.empty());
  EXPECT_EQ(Parse(json, R"({"eos_token_id": 4096})").status().message(),
            "generation_config.json: eos_token_id must be a token id below "
            "vocab_size (2048) or a list of them");
}

TEST(ConfigTest, ServesTheTextOfAMultimodalCheckpointAndSaysSo) {
  Json json = ReadJson("apriel2-tiny/config.json");
  json["vision_encoder"] = {{"hidden_size", 12}, {"anything", {1, 2}}};
  json["image_token_index"] = 9;
  EXPECT_FALSE(Parse(json).ok());  // not in a text model
  json["model_type"] = "apriel2";
  const auto config = Parse(json);
  ASSERT_TRUE(config.ok()) << config.status();
  ASSERT_EQ(config->notices.size(), 1);
  EXPECT_TRUE(absl::StrContains(config->notices[0], "vision_encoder"));
}

TEST(ConfigTest, FingerprintTellsModelsApart) {
  const Json good = ReadJson("zoo-stochastic5/config.json");
  const uint64_t original = Fingerprint(*Parse(good));
  EXPECT_EQ(original, Fingerprint(*Parse(good)));
  std::set<uint64_t> seen = {original};
  const std::pair<const char*, Json> edits[] = {
      {"/hidden_size", 256},
      {"/vocab_size", 321},
      {"/tie_word_embeddings", true},
      {"/embeddings/max_position_embeddings", 511},
      {"/head/normalization/epsilon", 1e-6},
      {"/eos_token_id", 3},
      {"/decoder/num_blocks", 4},
      {"/decoder/block/mlp/gated", false},
      {"/decoder/block/mlp/activation", "gelu"},
      {"/decoder/block/mlp/intermediate_size", 96},
      {"/decoder/block/mixer/main_mixer_name", "gdn"},
      {"/decoder/block/mixer/mixers/swa/window_size", 17},
      {"/decoder/block/mixer/mixers/swa/rotary/theta", 2e4},
      {"/decoder/block/mixer/mixers/swa/rotary/inv_freq_dtype", "float32"},
      {"/decoder/block/mixer/mixers/swa/add_linear_biases", true},
      {"/decoder/block/mixer/mixers/gdn/key_heads", 2},
      {"/decoder/block/mixer/mixers/kda/normalization/activation", "sigmoid"},
      {"/decoder/block/mixer/mixers/mamba/repeat_kv_before_conv", false}};
  for (const auto& [pointer, value] : edits) {
    Json json = good;
    json[Pointer(pointer)] = value;
    const auto config = Parse(json);
    ASSERT_TRUE(config.ok()) << pointer << ": " << config.status();
    EXPECT_TRUE(seen.insert(Fingerprint(*config)).second) << pointer;
  }
  Json json = good;
  json["transformers_version"] = "9";
  EXPECT_EQ(Fingerprint(*Parse(json)), original);
}

// A coordinator and a worker of different builds must agree.
TEST(ConfigTest, FingerprintIsStable) {
  EXPECT_EQ(Fingerprint(Load("apriel2-tiny")), 805234527601006643u);
}

TEST(ConfigTest, AnyGeneratedConfigParsesAndSplits) {
  std::mt19937 random(20231123);
  for (int i = 0; i < 2000; ++i) {
    const Json json = RandomConfigJson(random);
    const auto config = Parse(json);
    ASSERT_TRUE(config.ok()) << config.status() << "\n" << json.dump(1);
    EXPECT_EQ(config->num_layers(), json["decoder"]["num_blocks"]);
    for (const int32_t world_size : {1, 2, 4}) {
      EXPECT_TRUE(ValidateTensorParallel(*config, world_size).ok())
          << ValidateTensorParallel(*config, world_size) << json.dump(1);
    }
    EXPECT_EQ(Fingerprint(*config), Fingerprint(*Parse(json)));
    for (const LayerConfig& layer : config->layers) {
      EXPECT_LT(layer.main_mixer, layer.mixers.size());
    }
  }
}

}  // namespace
}  // namespace switchyard
