// What a config that is no good is refused with.
#include <gtest/gtest.h>

#include <random>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "model/config.h"
#include "tests/model/config_json.h"
#include "tests/model/random_config.h"

namespace switchyard {
namespace {

// One edit of a good config, and what the error must say.
struct BadField {
  const char* name;
  const char* pointer;  // into apriel2-tiny's or zoo-stochastic5's config
  const char* value;    // JSON; null: erase the field
  const char* message;  // after "config.json: "
  absl::StatusCode code = absl::StatusCode::kInvalidArgument;
};

constexpr char kMixers[] = "/decoder/block/mixer/mixers";
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;

// "@" stands for the path of the mixers.
const BadField kBadFields[] = {
    {"ModelType", "/model_type", R"("llama")", "model_type must be apriel2"},
    {"NoModelType", "/model_type", nullptr, "model_type is missing"},
    {"HiddenSizeText", "/hidden_size", R"("256")",
     "hidden_size must be an integer, is \"256\""},
    {"HiddenSizeReal", "/hidden_size", "256.0",
     "hidden_size must be an integer, is 256.0"},
    {"HiddenSizeZero", "/hidden_size", "0",
     "hidden_size must be from 1 to 4194304, is 0"},
    {"HiddenSizeHuge", "/hidden_size", "18446744073709551615",
     "hidden_size must be from 1 to"},
    {"NoHiddenSize", "/hidden_size", nullptr, "hidden_size is missing"},
    {"NoVocab", "/vocab_size", nullptr, "vocab_size is missing"},
    {"TieText", "/tie_word_embeddings", R"("yes")",
     "tie_word_embeddings must be true or false, is \"yes\""},
    {"Positions", "/embeddings/max_position_embeddings", nullptr,
     "embeddings.max_position_embeddings is missing"},
    {"EmbeddingsUnknown", "/embeddings/scale", "2",
     "embeddings.scale is not a known field"},
    {"HeadEpsilon", "/head/normalization/epsilon", nullptr,
     "head.normalization.epsilon is missing"},
    {"HeadEpsilonNegative", "/head/normalization/epsilon", "-1",
     "head.normalization.epsilon must be positive, is -1"},
    {"HeadLayerNorm", "/head/normalization/type", R"("layer_norm")",
     "head.normalization.type layer_norm is not supported", kUnimplemented},
    {"HeadIsAList", "/head", "[]", "head must be an object, is a list"},
    {"Eos", "/eos_token_id", "[1, -2]", "eos_token_id must be a token id"},
    {"EosText", "/eos_token_id", R"("</s>")",
     "eos_token_id must be a token id"},
    {"TopUnknown", "/logit_scale", "0.5", "logit_scale is not a known field"},
    {"Quantized", "/quantization_config", R"({"bits": 4})",
     "quantization_config is not supported", kUnimplemented},
    {"NoDecoder", "/decoder", nullptr, "decoder is missing"},
    {"DecoderType", "/decoder/type", R"("tree")",
     "decoder.type must be fixed or pattern, is \"tree\""},
    {"NumBlocks", "/decoder/num_blocks", nullptr,
     "decoder.num_blocks is missing"},
    {"NumBlocksHuge", "/decoder/num_blocks", "1000000",
     "decoder.num_blocks must be from 1 to 1024, is 1000000"},
    {"NoBlock", "/decoder/block", nullptr, "decoder.block is missing"},
    {"NoMixer", "/decoder/block/mixer", nullptr,
     "decoder.block.mixer is missing"},
    {"NoMlp", "/decoder/block/mlp", nullptr, "decoder.block.mlp is missing"},
    {"BlockUnknown", "/decoder/block/adapter", "{}",
     "decoder.block.adapter is not a known field"},
    {"NormType", "/decoder/block/normalization/type", R"("batch")",
     "decoder.block.normalization.type must be rms_norm, is \"batch\""},
    {"MlpType", "/decoder/block/mlp/type", R"("moe")",
     "decoder.block.mlp.type must be mlp, is \"moe\""},
    {"MlpSize", "/decoder/block/mlp/intermediate_size", nullptr,
     "decoder.block.mlp.intermediate_size is missing"},
    {"MlpActivation", "/decoder/block/mlp/activation", R"("mish")",
     "decoder.block.mlp.activation must be silu, gelu"},
    {"MlpGatedBias", "/decoder/block/mlp/add_linear_biases", "true",
     "decoder.block.mlp.gated true is not supported together with biases",
     kUnimplemented},
    {"MlpUnknown", "/decoder/block/mlp/experts", "8",
     "decoder.block.mlp.experts is not a known field"},
    {"MixerTypeUnknown", "/decoder/block/mixer/type", R"("rwkv")",
     "decoder.block.mixer.type must be attention, gdn, kda, mamba"},
    {"NoMixers", "@", "{}",
     "decoder.block.mixer.mixers must have from 1 to 64 mixers, has 0"},
    {"MainMixer", "/decoder/block/mixer/main_mixer_name", R"("hyena")",
     "decoder.block.mixer.main_mixer_name must be one of attention, gdn, kda, "
     "mamba, swa, is \"hyena\""},
    {"StochasticUnknown", "/decoder/block/mixer/temperature", "1",
     "decoder.block.mixer.temperature is not a known field"},
    {"NestedStochastic", "@/gdn/type", R"("stochastic")",
     "decoder.block.mixer.mixers.gdn.type must not be stochastic"},
    {"NestedType", "@/gdn/type", R"("retnet")",
     "decoder.block.mixer.mixers.gdn.type must be attention"},
    {"DottedName", "@/a.b", R"({"type": "kda"})",
     "decoder.block.mixer.mixers.a.b is not a mixer name"},
    {"Heads", "@/attention/heads", nullptr,
     "decoder.block.mixer.mixers.attention.heads is missing"},
    {"HeadSize", "@/attention/head_size", nullptr,
     "decoder.block.mixer.mixers.attention.head_size is missing"},
    {"OddHeadSize", "@/attention/head_size", "15",
     "decoder.block.mixer.mixers.attention.head_size must be even"},
    {"HeadGroups", "@/attention/head_groups", "3",
     "decoder.block.mixer.mixers.attention.heads must be a multiple of "
     "head_groups (3), is 8"},
    {"NoRotary", "@/attention/rotary", nullptr,
     "decoder.block.mixer.mixers.attention.rotary is missing"},
    {"RotaryType", "@/attention/rotary/type", R"("alibi")",
     "decoder.block.mixer.mixers.attention.rotary.type must be mistral_1d"},
    {"RotaryYarn", "@/attention/rotary/type", R"("yarn")",
     "decoder.block.mixer.mixers.attention.rotary.type \"yarn\" is not "
     "supported",
     kUnimplemented},
    {"RotaryTheta", "@/attention/rotary/theta", nullptr,
     "decoder.block.mixer.mixers.attention.rotary.theta is missing"},
    {"RotaryFrequencies", "@/attention/rotary/inv_freq_dtype", R"("float16")",
     "decoder.block.mixer.mixers.attention.rotary.inv_freq_dtype must be "
     "float32 or bfloat16"},
    {"RotaryUnknown", "@/attention/rotary/scale", "8",
     "decoder.block.mixer.mixers.attention.rotary.scale is not a known field"},
    {"NotCausal", "@/attention/causal", "false",
     "decoder.block.mixer.mixers.attention.causal false is not supported",
     kUnimplemented},
    {"Window", "@/swa/window_size", "0",
     "decoder.block.mixer.mixers.swa.window_size must be from 1"},
    {"BiasShape", "@/swa/query_layer", "true",
     "decoder.block.mixer.mixers.swa.query_layer must be an object, is true"},
    {"BiasEnabled", "@/swa/query_layer", R"({"bias": {"enabled": 1}})",
     "decoder.block.mixer.mixers.swa.query_layer.bias.enabled must be true or "
     "false, is 1"},
    {"BiasUnknown", "@/swa/query_layer", R"({"lora": {}})",
     "decoder.block.mixer.mixers.swa.query_layer.lora is not a known field"},
    {"AttentionUnknown", "@/attention/softmax_scale_power", "1",
     "decoder.block.mixer.mixers.attention.softmax_scale_power is not a known "
     "field"},
    {"GdnKeyHeads", "@/gdn/key_heads", "3",
     "decoder.block.mixer.mixers.gdn.value_heads must be a multiple of "
     "key_heads (3), is 8"},
    {"GdnKeyHeadsText", "@/gdn/key_heads", R"("4")",
     "decoder.block.mixer.mixers.gdn.key_heads must be an integer"},
    {"GdnValueHeads", "@/gdn/value_heads", "0",
     "decoder.block.mixer.mixers.gdn.value_heads must be from 1"},
    {"GdnKeyDim", "@/gdn/key_head_dim", "-1",
     "decoder.block.mixer.mixers.gdn.key_head_dim must be from 1"},
    {"GdnValueDim", "@/gdn/value_head_dim", "99999999",
     "decoder.block.mixer.mixers.gdn.value_head_dim must be from 1"},
    {"GdnConvolution", "@/gdn/convolution_layer", nullptr,
     "decoder.block.mixer.mixers.gdn.convolution_layer is missing"},
    {"GdnKernel", "@/gdn/convolution_layer/kernel_size", nullptr,
     "decoder.block.mixer.mixers.gdn.convolution_layer.kernel_size is missing"},
    {"GdnConvActivation", "@/gdn/convolution_layer/activation", R"("relu")",
     "decoder.block.mixer.mixers.gdn.convolution_layer.activation \"relu\" is "
     "not supported",
     kUnimplemented},
    {"GdnConvBias", "@/gdn/convolution_layer/bias", R"({"enabled": true})",
     "decoder.block.mixer.mixers.gdn.convolution_layer.bias.enabled true is "
     "not supported",
     kUnimplemented},
    {"GdnEpsilon", "@/gdn/norm_eps", "0",
     "decoder.block.mixer.mixers.gdn.norm_eps must be positive, is 0"},
    {"GdnUnknown", "@/gdn/gate", "true",
     "decoder.block.mixer.mixers.gdn.gate is not a known field"},
    {"KdaHeads", "@/kda/heads", "0",
     "decoder.block.mixer.mixers.kda.heads must be from 1"},
    {"KdaActivation", "@/kda/normalization/activation", R"("tanh")",
     "decoder.block.mixer.mixers.kda.normalization.activation must be silu or "
     "sigmoid, is \"tanh\""},
    {"KdaEpsilon", "@/kda/normalization/epsilon", R"("small")",
     "decoder.block.mixer.mixers.kda.normalization.epsilon must be a number"},
    {"KdaUnknown", "@/kda/value_dim", "3",
     "decoder.block.mixer.mixers.kda.value_dim is not a known field"},
    {"MambaConvBias", "@/mamba/conv_bias", nullptr,
     "decoder.block.mixer.mixers.mamba.conv_bias is missing"},
    {"MambaDtBias", "@/mamba/dt_proj_bias", nullptr,
     "decoder.block.mixer.mixers.mamba.dt_proj_bias is missing"},
    {"MambaXb", "@/mamba/d_xb", "40",
     "decoder.block.mixer.mixers.mamba.d_xb must be a multiple of state_size "
     "(16), is 40"},
    {"MambaInner", "@/mamba/d_inner", "96",
     "decoder.block.mixer.mixers.mamba.d_inner must be a multiple of d_xb "
     "(64), is 96"},
    {"MambaRank", "@/mamba/dt_rank", R"("half")",
     "decoder.block.mixer.mixers.mamba.dt_rank must be an integer"},
    {"MambaKernel", "@/mamba/d_conv", "1",
     "decoder.block.mixer.mixers.mamba.d_conv must be from 2 to 64, is 1"},
    {"MambaUnknown", "@/mamba/num_heads", "3",
     "decoder.block.mixer.mixers.mamba.num_heads is not a known field"},
};

class BadFieldTest : public testing::TestWithParam<BadField> {};

TEST_P(BadFieldTest, IsNamed) {
  const BadField& bad = GetParam();
  Json json = ReadJson("zoo-stochastic5/config.json");
  std::string pointer = bad.pointer;
  if (pointer[0] == '@') pointer = kMixers + pointer.substr(1);
  const Pointer path(pointer);
  if (bad.value == nullptr) {
    ASSERT_TRUE(json.contains(path)) << pointer;
    json[path.parent_pointer()].erase(path.back());
  } else {
    json[path] = Json::parse(bad.value);
  }
  const absl::Status status = Parse(json).status();
  EXPECT_EQ(status.code(), bad.code) << status;
  EXPECT_TRUE(absl::StartsWith(status.message(),
                               absl::StrCat("config.json: ", bad.message)))
      << status;
}

INSTANTIATE_TEST_SUITE_P(Fields, BadFieldTest, testing::ValuesIn(kBadFields),
                         [](const auto& info) { return info.param.name; });

TEST(ConfigErrorTest, NamesWhatIsWrongInAPattern) {
  const Json good = ReadJson("zoo-pattern/config.json");
  Json json = good;
  json["decoder"]["pattern"][1] = "nobody";
  EXPECT_EQ(Parse(json).status().message(),
            "config.json: decoder.pattern[1] must be the name of one of "
            "decoder.blocks");
  json["decoder"]["pattern"] = Json::array();
  EXPECT_EQ(Parse(json).status().message(),
            "config.json: decoder.pattern must be a list of block names");
  json = good;
  json["decoder"].erase("blocks");
  EXPECT_EQ(Parse(json).status().message(),
            "config.json: decoder.blocks is missing");
  json = good;
  json["decoder"]["blocks"]["mamba"]["mixer"]["d_xb"] = 7;
  EXPECT_TRUE(absl::StartsWith(
      Parse(json).status().message(),
      "config.json: decoder.blocks.mamba.mixer.d_xb must be a multiple"));
}

TEST(ConfigErrorTest, RefusesWhatIsNotAJsonObject) {
  for (const std::string text :
       {"", "{", "[]", "3", "{\"a\": 1,}", "\xff\xfe"}) {
    const absl::Status status = ParseModelConfig(text, "").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_TRUE(absl::StartsWith(status.message(), "config.json: ")) << status;
  }
  EXPECT_EQ(
      ParseModelConfig(R"({"a": {"b": 1, "b": 2}})", "").status().message(),
      "config.json: has the key \"b\" twice in one object");
  const std::string deep =
      "{\"a\":" + std::string(1000, '[') + std::string(1000, ']') + "}";
  EXPECT_EQ(ParseModelConfig(deep, "").status().message(),
            "config.json: is nested deeper than 64 levels");
}

TEST(ConfigErrorTest, NamesTheFileThatIsNotThere) {
  const absl::Status status = LoadModelConfig("no/such/dir").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(status.message(),
            "cannot open no/such/dir/config.json: No such file or directory");
}

TEST(ConfigErrorTest, TellsWhichDivisorFailed) {
  const ModelConfig tiny = Load("apriel2-tiny");
  // At 4, two KV heads and two gdn key heads are replicated.
  for (const int32_t world_size : {1, 2, 4}) {
    EXPECT_TRUE(ValidateTensorParallel(tiny, world_size).ok());
  }
  EXPECT_EQ(ValidateTensorParallel(tiny, 3).message(),
            "the tensor-parallel size 3 must divide "
            "decoder.block.mixer.mixers.attention.heads = 4 (layer 0)");
  EXPECT_FALSE(ValidateTensorParallel(tiny, 0).ok());

  const ModelConfig pattern = Load("zoo-pattern");
  EXPECT_TRUE(ValidateTensorParallel(pattern, 2).ok());
  EXPECT_EQ(ValidateTensorParallel(pattern, 4).message(),
            "the tensor-parallel size 4 must divide "
            "decoder.blocks.attn.mixer.heads = 6 (layer 0)");

  ModelConfig mlp = tiny;
  mlp.layers[3].mlp.intermediate_size = 511;
  EXPECT_EQ(ValidateTensorParallel(mlp, 2).message(),
            "the tensor-parallel size 2 must divide "
            "decoder.block.mlp.intermediate_size = 511 (layer 3)");
  ModelConfig kv = Load("zoo-stochastic5");
  std::get<AttentionConfig>(kv.layers[1].mixers[0].params).num_kv_heads = 1;
  EXPECT_TRUE(ValidateTensorParallel(kv, 4).ok());  // replicated
  std::get<MambaConfig>(kv.layers[1].mixers[3].params).d_xb = 32;
  EXPECT_EQ(ValidateTensorParallel(kv, 4).message(),
            "the tensor-parallel size 4 must divide "
            "decoder.block.mixer.mixers.mamba.d_xb / state_size = 2 (layer 1)");
}

// Whatever single value is replaced by nonsense, the answer is a config or one
// line that names the file.
TEST(ConfigErrorTest, AnyDamagedFieldIsAnErrorOrHarmless) {
  std::mt19937 random(7);
  const Json nonsense[] = {
      nullptr, -1, 0, 3.5, "x", Json::array(), Json::object(), 1 << 30, true};
  for (int i = 0; i < 300; ++i) {
    const Json json = RandomConfigJson(random);
    const Json flat = json.flatten();
    for (const auto& item : flat.items()) {
      Json damaged = json;
      damaged[Pointer(item.key())] = nonsense[random() % 9];
      const auto config = Parse(damaged);
      if (config.ok()) continue;
      EXPECT_TRUE(absl::StartsWith(config.status().message(), "config.json: "));
      EXPECT_FALSE(absl::StrContains(config.status().message(), "\n"));
    }
  }
}

}  // namespace
}  // namespace switchyard
