#include "model/mixer_parse.h"

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "model/strict_json.h"

namespace switchyard {
namespace {

constexpr size_t kMaxMixers = 64;  // of one layer
constexpr int32_t kMaxHeads = 1 << 16;
constexpr int32_t kMaxHeadDim = 1 << 14;
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
  attention.q_bias = ParseLayerBias(in, "query_layer", biases);
  attention.k_bias = ParseLayerBias(in, "key_layer", biases);
  attention.v_bias = ParseLayerBias(in, "value_layer", biases);
  attention.o_bias = ParseLayerBias(in, "dense_layer", biases);

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
  const std::string frequencies = rotary.StringOr("inv_freq_dtype", "float32");
  if (frequencies != "float32" && frequencies != "bfloat16") {
    rotary.Invalid("inv_freq_dtype",
                   absl::StrCat("must be float32 or bfloat16, is \"",
                                Printable(frequencies), "\""));
  }
  attention.bf16_rope_frequencies = frequencies == "bfloat16";
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
    kda.gate_activation = ActivationFunction::kSigmoid;
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

}  // namespace

bool ParseLayerBias(ObjectReader& in, absl::string_view layer, bool otherwise) {
  ObjectReader linear = in.ObjectOrEmpty(layer);
  ObjectReader bias = linear.ObjectOrEmpty("bias");
  const bool enabled = bias.BoolOr("enabled", otherwise);
  bias.RejectUnknown();
  linear.RejectUnknown();
  return enabled;
}

void ParseMixers(ObjectReader in, int32_t hidden_size, LayerConfig* layer) {
  const std::string type = in.StringOr("type", "attention");
  if (type == "stochastic") {
    ParseStochasticMixer(std::move(in), hidden_size, layer);
  } else {
    layer->mixers.push_back(ParseMixer(std::move(in), type, hidden_size));
  }
}

}  // namespace switchyard
