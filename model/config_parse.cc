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

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/status.h"
#include "model/config.h"
#include "model/config_reader.h"
#include "model/mixer_parse.h"
#include "model/strict_json.h"

namespace switchyard {
namespace {

constexpr int32_t kMaxLayers = 1024;
constexpr int32_t kMaxVocabSize = 1 << 26;

ActivationFunction ParseMlpActivation(ObjectReader& in) {
  static const auto* known = new std::map<std::string, ActivationFunction>{
      {"silu", ActivationFunction::kSilu},
      {"swish", ActivationFunction::kSilu},
      {"gelu", ActivationFunction::kGelu},
      {"gelu_new", ActivationFunction::kGeluTanh},
      {"gelu_pytorch_tanh", ActivationFunction::kGeluTanh},
      {"relu", ActivationFunction::kRelu},
      {"relu2", ActivationFunction::kRelu2}};
  const std::string name = in.StringOr("activation", "silu");
  const auto it = known->find(name);
  if (it != known->end()) return it->second;
  in.Invalid("activation",
             absl::StrCat("must be silu, gelu, gelu_pytorch_tanh, relu or "
                          "relu2, is \"",
                          Printable(name), "\""));
  return ActivationFunction::kSilu;
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
  mlp.up_bias = ParseLayerBias(in, "layer_1", biases);
  mlp.down_bias = ParseLayerBias(in, "layer_2", biases);
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

// `ignored_epsilons` collects the fields that are read and not used.
LayerConfig ParseBlock(ObjectReader in, std::string path,
                       const ModelConfig* config,
                       std::vector<std::string>* ignored_epsilons) {
  LayerConfig layer;
  layer.path = std::move(path);
  ParseMixers(in.Object("mixer"), config->hidden_size, &layer);
  layer.mlp = ParseMlp(in.Object("mlp"));

  ObjectReader norm = in.ObjectOrEmpty("normalization");
  RequireRmsNorm(norm);
  const double epsilon = norm.PositiveDoubleOr("epsilon", config->norm_epsilon);
  if (epsilon != config->norm_epsilon) {
    ignored_epsilons->push_back(norm.Path("epsilon"));
  }
  norm.Ignore({"init"});
  norm.RejectUnknown();
  in.Ignore({"init"});
  in.RejectUnknown();
  return layer;
}

void ParsePattern(ObjectReader& decoder, int32_t num_blocks,
                  ModelConfig* config,
                  std::vector<std::string>* ignored_epsilons) {
  ObjectReader blocks = decoder.Object("blocks");
  std::map<std::string, LayerConfig> by_name;
  for (const std::string& name : blocks.Keys()) {
    by_name[name] =
        ParseBlock(blocks.Object(name), absl::StrCat("decoder.blocks.", name),
                   config, ignored_epsilons);
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
  std::vector<std::string> ignored_epsilons;
  if (type == "fixed") {
    config->layers.assign(
        num_blocks, ParseBlock(decoder.Object("block"), "decoder.block", config,
                               &ignored_epsilons));
  } else if (type == "pattern") {
    ParsePattern(decoder, num_blocks, config, &ignored_epsilons);
  } else {
    decoder.Invalid("type", absl::StrCat("must be fixed or pattern, is \"",
                                         Printable(type), "\""));
  }
  decoder.Ignore({"init"});
  decoder.RejectUnknown();
  if (!ignored_epsilons.empty()) {
    config->notices.push_back(absl::StrCat(
        "As in the public implementation, every RMSNorm takes "
        "head.normalization.epsilon (",
        config->norm_epsilon,
        "); not used: ", absl::StrJoin(ignored_epsilons, ", "), "."));
  }
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
