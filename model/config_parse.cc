// config.json -> ModelConfig. Names and defaults are those of the public HF
// implementation (ServiceNow/Fast-LLM, fast_llm_external_models/apriel2:
// configuration_apriel2.py, modeling_apriel2.py).
#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/status.h"
#include "model/config.h"
#include "model/config_reader.h"
#include "model/strict_json.h"

namespace switchyard {
namespace {

constexpr int32_t kMaxLayers = 1024;
constexpr size_t kMaxMixers = 64;  // of one layer
constexpr int32_t kMaxHeads = 1 << 16;
constexpr int32_t kMaxHeadDim = 1 << 14;
constexpr int32_t kMaxWidth = 1 << 22;  // of any activation of the model
constexpr int32_t kMaxVocabSize = 1 << 26;
constexpr int32_t kMaxPositions = 1 << 30;
constexpr int32_t kMaxConvKernel = 64;

// `whole` must be a multiple of `part`.
void RequireMultiple(ObjectReader& in, absl::string_view whole_key,
                     int32_t whole, absl::string_view part_key, int32_t part) {
  if (part > 0 && whole % part == 0) return;
  in.Invalid(whole_key, absl::StrCat("must be a multiple of ", part_key, " (",
                                     part, "), is ", whole));
}

void RequireWidth(ObjectReader& in, absl::string_view key, int64_t width) {
  if (width <= kMaxWidth) return;
  in.Invalid(key, absl::StrCat("makes a width of ", width,
                               ", which is over the limit of ", kMaxWidth));
}

// {"bias": {"enabled": true | false | null}} of a linear layer.
bool LayerBias(ObjectReader& in, absl::string_view layer, bool otherwise) {
  ObjectReader linear = in.ObjectOrEmpty(layer);
  ObjectReader bias = linear.ObjectOrEmpty("bias");
  const bool enabled = bias.BoolOr("enabled", otherwise);
  bias.RejectUnknown();
  linear.RejectUnknown();
  return enabled;
}

void RequireSilu(ObjectReader& in) {
  const std::string activation = in.StringOr("activation", "silu");
  if (activation != "silu" && activation != "swish") {
    in.Unsupported("activation", absl::StrCat("\"", Printable(activation),
                                              "\" is not supported; silu is"));
  }
}

// The short convolution of gdn and kda; its kernel size.
int32_t ParseConvolution(ObjectReader conv, int32_t default_kernel_size) {
  const int32_t kernel_size =
      default_kernel_size == 0
          ? conv.Int("kernel_size", 2, kMaxConvKernel)
          : conv.IntOr("kernel_size", default_kernel_size, 2, kMaxConvKernel);
  RequireSilu(conv);
  ObjectReader bias = conv.ObjectOrEmpty("bias");
  if (bias.BoolOr("enabled", false)) {
    bias.Unsupported("enabled", "true is not supported");
  }
  bias.RejectUnknown();
  conv.RejectUnknown();
  return kernel_size;
}

AttentionConfig ParseAttention(ObjectReader& in) {
  AttentionConfig attention;
  attention.num_heads = in.Int("heads", 1, kMaxHeads);
  attention.num_kv_heads =
      in.IntOr("head_groups", attention.num_heads, 1, kMaxHeads);
  attention.head_size = in.Int("head_size", 2, kMaxHeadDim);
  RequireMultiple(in, "heads", attention.num_heads, "head_groups",
                  attention.num_kv_heads);
  if (attention.head_size % 2 != 0) {
    in.Invalid("head_size", absl::StrCat("must be even for rotary embeddings, "
                                         "is ",
                                         attention.head_size));
  }
  RequireWidth(in, "heads", int64_t{attention.num_heads} * attention.head_size);
  if (in.Has("window_size")) {
    attention.window_size = in.Int("window_size", 1, kMaxPositions);
  }
  in.Ignore({"window_size"});

  const bool biases = in.BoolOr("add_linear_biases", false);
  attention.q_bias = LayerBias(in, "query_layer", biases);
  attention.k_bias = LayerBias(in, "key_layer", biases);
  attention.v_bias = LayerBias(in, "value_layer", biases);
  attention.o_bias = LayerBias(in, "dense_layer", biases);

  ObjectReader rotary = in.Object("rotary");
  const std::string type = rotary.String("type");
  if (type == "llama3" || type == "yarn" || type == "pixtral_2d" ||
      type == "default_2d" || type == "none") {
    rotary.Unsupported("type", absl::StrCat("\"", type,
                                            "\" is not supported; mistral_1d "
                                            "and default are"));
  } else if (type != "mistral_1d" && type != "default") {
    rotary.Invalid("type", absl::StrCat("must be mistral_1d or default, is \"",
                                        Printable(type), "\""));
  }
  attention.rope_theta = rotary.PositiveDouble("theta");
  rotary.RejectUnknown();

  if (!in.BoolOr("causal", true)) {
    in.Unsupported("causal", "false is not supported in a text decoder");
  }
  // Tells documents of one packed training sequence apart; one sequence is one
  // document here.
  in.Ignore({"cross_document_attention"});
  return attention;
}

GdnConfig ParseGdn(ObjectReader& in) {
  GdnConfig gdn;
  gdn.num_value_heads =
      in.IntOr("value_heads", gdn.num_value_heads, 1, kMaxHeads);
  gdn.num_key_heads = in.IntOr("key_heads", gdn.num_key_heads, 1, kMaxHeads);
  gdn.key_head_dim = in.IntOr("key_head_dim", gdn.key_head_dim, 1, kMaxHeadDim);
  gdn.value_head_dim =
      in.IntOr("value_head_dim", gdn.value_head_dim, 1, kMaxHeadDim);
  RequireMultiple(in, "value_heads", gdn.num_value_heads, "key_heads",
                  gdn.num_key_heads);
  RequireWidth(in, "key_heads", int64_t{gdn.num_key_heads} * gdn.key_head_dim);
  RequireWidth(in, "value_heads",
               int64_t{gdn.num_value_heads} * gdn.value_head_dim);
  gdn.conv_kernel_size = ParseConvolution(in.Object("convolution_layer"), 0);
  gdn.norm_epsilon = in.PositiveDoubleOr("norm_eps", gdn.norm_epsilon);
  return gdn;
}

KdaConfig ParseKda(ObjectReader& in) {
  KdaConfig kda;
  kda.num_heads = in.IntOr("heads", kda.num_heads, 1, kMaxHeads);
  kda.head_dim = in.IntOr("head_dim", kda.head_dim, 1, kMaxHeadDim);
  RequireWidth(in, "heads", int64_t{kda.num_heads} * kda.head_dim);
  kda.conv_kernel_size = ParseConvolution(in.ObjectOrEmpty("convolution_layer"),
                                          kda.conv_kernel_size);

  ObjectReader norm = in.ObjectOrEmpty("normalization");
  kda.norm_epsilon = norm.PositiveDoubleOr("epsilon", kda.norm_epsilon);
  const std::string activation = norm.StringOr("activation", "silu");
  if (activation == "sigmoid") {
    kda.gate_activation = Activation::kSigmoid;
  } else if (activation != "silu" && activation != "swish") {
    norm.Invalid("activation", absl::StrCat("must be silu or sigmoid, is \"",
                                            Printable(activation), "\""));
  }
  const std::string type = norm.StringOr("type", "gated_rms_norm");
  if (type != "gated_rms_norm" && type != "rms_norm") {
    norm.Unsupported("type", absl::StrCat("\"", Printable(type),
                                          "\" is not supported; rms_norm is"));
  }
  norm.RejectUnknown();
  return kda;
}

MambaConfig ParseMamba(ObjectReader& in, int32_t hidden_size) {
  MambaConfig mamba;
  const int32_t expand = in.IntOr("expand", 2, 1, 64);
  mamba.d_inner = in.IntOr(
      "d_inner", std::min<int64_t>(int64_t{expand} * hidden_size, kMaxWidth), 1,
      kMaxWidth);
  mamba.d_xb = in.IntOr("d_xb", hidden_size, 1, kMaxWidth);
  mamba.d_conv = in.IntOr("d_conv", mamba.d_conv, 2, kMaxConvKernel);
  mamba.state_size = in.IntOr("state_size", mamba.state_size, 1, kMaxHeadDim);
  const bool auto_rank = in.Value("dt_rank") == "auto" || !in.Has("dt_rank");
  mamba.dt_rank =
      auto_rank ? (hidden_size + 15) / 16 : in.Int("dt_rank", 1, kMaxWidth);
  RequireMultiple(in, "d_xb", mamba.d_xb, "state_size", mamba.state_size);
  RequireMultiple(in, "d_inner", mamba.d_inner, "d_xb", mamba.d_xb);
  mamba.repeat_kv_before_conv =
      in.BoolOr("repeat_kv_before_conv", mamba.repeat_kv_before_conv);
  mamba.conv_bias = in.Bool("conv_bias");
  mamba.dt_proj_bias = in.Bool("dt_proj_bias");
  mamba.linear_biases = in.BoolOr("add_linear_biases", false);
  // Only for the initialisation of new weights.
  in.Ignore({"dt_min", "dt_max", "dt_init", "dt_scale", "dt_init_floor"});
  return mamba;
}

// A mixer that is not stochastic, as the type it names.
MixerConfig ParseMixer(ObjectReader in, std::string name, int32_t hidden_size) {
  MixerConfig mixer;
  mixer.name = std::move(name);
  const std::string type = in.StringOr("type", "attention");
  if (type == "attention") {
    mixer.params = ParseAttention(in);
  } else if (type == "gdn") {
    mixer.params = ParseGdn(in);
  } else if (type == "kda") {
    mixer.params = ParseKda(in);
  } else if (type == "mamba") {
    mixer.params = ParseMamba(in, hidden_size);
  } else if (type == "stochastic") {
    in.Invalid("type", "must not be stochastic inside a stochastic mixer");
  } else {
    in.Invalid("type",
               absl::StrCat("must be attention, gdn, kda, mamba or stochastic, "
                            "is \"",
                            Printable(type), "\""));
  }
  in.Ignore({"init"});  // how training filled the weights
  in.RejectUnknown();
  return mixer;
}

void ParseStochasticMixer(ObjectReader in, int32_t hidden_size,
                          LayerConfig* layer) {
  in.Ignore({"type", "init", "sampling_strategy", "sampling_weights"});
  layer->stochastic = true;
  ObjectReader mixers = in.Object("mixers");
  const std::vector<std::string> names = mixers.Keys();
  if (names.empty() || names.size() > kMaxMixers) {
    in.Invalid("mixers", absl::StrCat("must have from 1 to ", kMaxMixers,
                                      " mixers, has ", names.size()));
    return;
  }
  for (const std::string& name : names) {
    if (name.empty() || absl::StrContains(name, ".") ||
        absl::StrContains(name, ",")) {
      mixers.Invalid(name,
                     "is not a mixer name: it must not be empty or have "
                     "a dot or a comma");
    }
    layer->mixers.push_back(ParseMixer(mixers.Object(name), name, hidden_size));
  }
  const std::string main = in.StringOr("main_mixer_name", names.front());
  const auto it = std::find(names.begin(), names.end(), main);
  if (it == names.end()) {
    in.Invalid("main_mixer_name",
               absl::StrCat("must be one of ", absl::StrJoin(names, ", "),
                            ", is \"", Printable(main), "\""));
    return;
  }
  layer->main_mixer = static_cast<int32_t>(it - names.begin());
  in.RejectUnknown();
}

Activation ParseMlpActivation(ObjectReader& in) {
  static const auto* known = new std::map<std::string, Activation>{
      {"silu", Activation::kSilu},
      {"swish", Activation::kSilu},
      {"gelu", Activation::kGelu},
      {"gelu_new", Activation::kGeluTanh},
      {"gelu_pytorch_tanh", Activation::kGeluTanh},
      {"relu", Activation::kRelu},
      {"relu2", Activation::kRelu2}};
  const std::string name = in.StringOr("activation", "silu");
  const auto it = known->find(name);
  if (it != known->end()) return it->second;
  in.Invalid("activation",
             absl::StrCat("must be silu, gelu, gelu_pytorch_tanh, relu or "
                          "relu2, is \"",
                          Printable(name), "\""));
  return Activation::kSilu;
}

MlpConfig ParseMlp(ObjectReader in) {
  MlpConfig mlp;
  const std::string type = in.StringOr("type", "mlp");
  if (type != "mlp") {
    in.Invalid("type",
               absl::StrCat("must be mlp, is \"", Printable(type), "\""));
  }
  mlp.intermediate_size = in.Int("intermediate_size", 1, kMaxWidth);
  mlp.gated = in.BoolOr("gated", false);
  mlp.activation = ParseMlpActivation(in);
  const bool biases = in.BoolOr("add_linear_biases", false);
  mlp.up_bias = LayerBias(in, "layer_1", biases);
  mlp.down_bias = LayerBias(in, "layer_2", biases);
  if (mlp.gated && (mlp.up_bias || mlp.down_bias)) {
    // The public implementation drops them without a word.
    in.Unsupported("gated", "true is not supported together with biases");
  }
  in.Ignore({"init"});
  in.RejectUnknown();
  return mlp;
}

void RequireRmsNorm(ObjectReader& norm) {
  const std::string type = norm.StringOr("type", "rms_norm");
  if (type == "layer_norm") {
    norm.Unsupported("type", "layer_norm is not supported; rms_norm is");
  } else if (type != "rms_norm") {
    norm.Invalid(
        "type", absl::StrCat("must be rms_norm, is \"", Printable(type), "\""));
  }
}

LayerConfig ParseBlock(ObjectReader in, std::string path, ModelConfig* config) {
  LayerConfig layer;
  layer.path = std::move(path);
  ObjectReader mixer = in.Object("mixer");
  const std::string type = mixer.StringOr("type", "attention");
  if (type == "stochastic") {
    ParseStochasticMixer(mixer, config->hidden_size, &layer);
  } else {
    layer.mixers.push_back(ParseMixer(mixer, type, config->hidden_size));
  }
  layer.mlp = ParseMlp(in.Object("mlp"));

  ObjectReader norm = in.ObjectOrEmpty("normalization");
  RequireRmsNorm(norm);
  const double epsilon = norm.PositiveDoubleOr("epsilon", config->norm_epsilon);
  if (epsilon != config->norm_epsilon) {
    config->notices.push_back(absl::StrCat(
        norm.Path("epsilon"), " (", epsilon,
        ") is not used: as in the public implementation, every RMSNorm takes "
        "head.normalization.epsilon (",
        config->norm_epsilon, ")."));
  }
  norm.Ignore({"init"});
  norm.RejectUnknown();
  in.Ignore({"init"});
  in.RejectUnknown();
  return layer;
}

void ParsePattern(ObjectReader& decoder, int32_t num_blocks,
                  ModelConfig* config) {
  ObjectReader blocks = decoder.Object("blocks");
  std::map<std::string, LayerConfig> by_name;
  for (const std::string& name : blocks.Keys()) {
    by_name[name] = ParseBlock(blocks.Object(name),
                               absl::StrCat("decoder.blocks.", name), config);
  }
  const ObjectReader::Json& pattern = decoder.Value("pattern");
  if (!pattern.is_array() || pattern.empty()) {
    decoder.Invalid("pattern", "must be a list of block names");
    return;
  }
  std::vector<const LayerConfig*> cycle;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const auto it = pattern[i].is_string()
                        ? by_name.find(pattern[i].get<std::string>())
                        : by_name.end();
    if (it == by_name.end()) {
      decoder.Invalid(absl::StrCat("pattern[", i, "]"),
                      "must be the name of one of decoder.blocks");
      return;
    }
    cycle.push_back(&it->second);
  }
  for (int32_t i = 0; i < num_blocks; ++i) {
    config->layers.push_back(*cycle[i % cycle.size()]);
  }
}

void ParseDecoder(ObjectReader decoder, ModelConfig* config) {
  const std::string type = decoder.StringOr("type", "fixed");
  const int32_t num_blocks = decoder.Int("num_blocks", 1, kMaxLayers);
  if (type == "fixed") {
    config->layers.assign(num_blocks, ParseBlock(decoder.Object("block"),
                                                 "decoder.block", config));
  } else if (type == "pattern") {
    ParsePattern(decoder, num_blocks, config);
  } else {
    decoder.Invalid("type", absl::StrCat("must be fixed or pattern, is \"",
                                         Printable(type), "\""));
  }
  decoder.Ignore({"init"});
  decoder.RejectUnknown();
}

// eos_token_id: a number, a list of numbers, or null.
std::vector<int32_t> ParseEos(ObjectReader& in, int32_t vocab_size) {
  const ObjectReader::Json& value = in.Value("eos_token_id");
  std::vector<int32_t> ids;
  const auto add = [&](const ObjectReader::Json& id) {
    if (!id.is_number_integer() || id < 0 || id >= vocab_size) {
      in.Invalid("eos_token_id",
                 absl::StrCat("must be a token id below vocab_size (",
                              vocab_size, ") or a list of them"));
      return;
    }
    ids.push_back(id.get<int32_t>());
  };
  if (value.is_array()) {
    for (const ObjectReader::Json& id : value) add(id);
  } else if (!value.is_null()) {
    add(value);
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

void ParseTop(ObjectReader in, ModelConfig* config) {
  config->model_type = in.String("model_type");
  if (config->model_type != "apriel2_text" && config->model_type != "apriel2") {
    in.Invalid("model_type",
               absl::StrCat("must be apriel2_text or apriel2, is \"",
                            Printable(config->model_type), "\""));
  }
  config->hidden_size = in.Int("hidden_size", 1, kMaxWidth);
  config->vocab_size = in.Int("vocab_size", 1, kMaxVocabSize);
  config->tie_word_embeddings = in.BoolOr("tie_word_embeddings", false);

  ObjectReader embeddings = in.ObjectOrEmpty("embeddings");
  config->max_position_embeddings =
      in.Has("embeddings")
          ? embeddings.Int("max_position_embeddings", 1, kMaxPositions)
          : 2048;
  embeddings.RejectUnknown();

  ObjectReader head = in.ObjectOrEmpty("head");
  ObjectReader norm = in.Has("head") ? head.Object("normalization")
                                     : head.ObjectOrEmpty("normalization");
  RequireRmsNorm(norm);
  config->norm_epsilon = in.Has("head") ? norm.PositiveDouble("epsilon") : 1e-5;
  norm.RejectUnknown();
  head.RejectUnknown();

  ParseDecoder(in.Object("decoder"), config);
  config->eos_token_ids = ParseEos(in, config->vocab_size);

  if (in.Has("vision_encoder")) {
    if (config->model_type != "apriel2") {
      in.Invalid("vision_encoder", "belongs to model_type apriel2 only");
    }
    config->notices.push_back(
        "The checkpoint is multimodal (vision_encoder): its text decoder is "
        "served, images are not.");
  }
  in.Ignore({"vision_encoder", "image_token_index"});
  if (in.Has("quantization_config")) {
    in.Unsupported("quantization_config", "is not supported");
  }
  in.Ignore({"quantization_config",
             // Bookkeeping of the HF library.
             "_attn_implementation", "_attn_implementation_autoset",
             "_commit_hash", "_name_or_path", "architectures",
             "attn_implementation", "auto_map", "bos_token_id", "dtype",
             "finetuning_task", "id2label", "initializer_range", "label2id",
             "name_or_path", "output_attentions", "output_hidden_states",
             "pad_token_id", "problem_type", "return_dict", "tokenizer_class",
             "torch_dtype", "torchscript", "transformers_version",
             "use_cache"});
  in.RejectUnknown();
}

}  // namespace

absl::StatusOr<ModelConfig> ParseModelConfig(
    absl::string_view config_json, absl::string_view generation_json,
    absl::string_view config_name, absl::string_view generation_name) {
  ModelConfig config;
  SY_ASSIGN_OR_RETURN(const nlohmann::ordered_json json,
                      ParseOrderedJsonObject(config_json, config_name));
  ConfigErrors errors(config_name);
  ParseTop(ObjectReader(json, "", &errors), &config);
  SY_RETURN_IF_ERROR(errors.status());

  if (!generation_json.empty()) {
    SY_ASSIGN_OR_RETURN(
        const nlohmann::ordered_json generation,
        ParseOrderedJsonObject(generation_json, generation_name));
    ConfigErrors generation_errors(generation_name);
    ObjectReader in(generation, "", &generation_errors);
    if (in.Has("eos_token_id")) {
      config.eos_token_ids = ParseEos(in, config.vocab_size);
    }
    SY_RETURN_IF_ERROR(generation_errors.status());
  }
  return config;
}

}  // namespace switchyard
