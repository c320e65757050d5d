// A model's architecture, read once from a checkpoint's config.json.
//
// ModelConfig is a plain value: ParseModelConfig or LoadModelConfig validate
// every field, fill in the defaults of the public HF implementation of Apriel2,
// and nothing changes it afterwards. It holds global sizes only; what one
// tensor-parallel rank holds is the business of weight_table.h and
// cache_spec.h. Thread-safe as any const value.
#ifndef SWITCHYARD_MODEL_CONFIG_H_
#define SWITCHYARD_MODEL_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace switchyard {

enum class MixerType { kAttention, kGdn, kKda, kMamba };
// kGelu is exact (erf), kRelu2 is relu(x)^2. An MLP has any but kSigmoid.
enum class ActivationFunction {
  kSilu,
  kGelu,
  kGeluTanh,
  kRelu,
  kRelu2,
  kSigmoid
};

// The word used in config files, protos and messages, e.g. "gdn", "silu".
const char* MixerTypeName(MixerType type);
const char* ActivationName(ActivationFunction activation);

// Softmax attention with grouped KV heads and rotate-half RoPE over the head.
struct AttentionConfig {
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;  // divides num_heads
  int32_t head_size = 0;     // even
  double rope_theta = 0;
  // RoPE's inverse frequencies are rounded to bf16 first, as they are where the
  // public implementation was cast to bf16 as a whole.
  bool bf16_rope_frequencies = false;
  std::optional<int32_t> window_size;  // a query sees this many last positions
  bool q_bias = false;
  bool k_bias = false;
  bool v_bias = false;
  bool o_bias = false;
};

// Gated DeltaNet. Its projections have no biases.
struct GdnConfig {
  int32_t num_value_heads = 32;
  int32_t num_key_heads = 8;  // divides num_value_heads
  int32_t key_head_dim = 64;
  int32_t value_head_dim = 64;
  int32_t conv_kernel_size = 0;
  double norm_epsilon = 1e-5;
};

// Kimi Delta Attention. Its projections have no biases.
struct KdaConfig {
  int32_t num_heads = 32;
  int32_t head_dim = 64;
  int32_t conv_kernel_size = 4;
  double norm_epsilon = 1e-5;
  // kSilu or kSigmoid.
  ActivationFunction gate_activation = ActivationFunction::kSilu;
};

// Mamba 1 with grouped B and x. A head is `state_size` channels: there are
// d_inner / state_size heads of z, C and dt, and d_xb / state_size of x and B,
// each of which serves (d_inner / d_xb) consecutive ones of the former.
struct MambaConfig {
  int32_t d_inner = 0;  // a multiple of d_xb
  int32_t d_xb = 0;     // a multiple of state_size
  int32_t d_conv = 4;
  int32_t state_size = 16;
  int32_t dt_rank = 0;
  bool repeat_kv_before_conv = true;  // else x is convolved, then repeated
  bool conv_bias = false;
  bool dt_proj_bias = false;
  bool linear_biases = false;  // of in_proj, dt_in_proj and out_proj
};

// One token mixer of one layer.
struct MixerConfig {
  std::string name;  // unique in the layer
  std::variant<AttentionConfig, GdnConfig, KdaConfig, MambaConfig> params;

  MixerType type() const { return static_cast<MixerType>(params.index()); }
  // The parameters as T, or null when the mixer is of another type.
  template <typename T>
  const T* As() const {
    return std::get_if<T>(&params);
  }
};

struct MlpConfig {
  int32_t intermediate_size = 0;
  bool gated = false;
  // Of the gate, or of up_proj.
  ActivationFunction activation = ActivationFunction::kSilu;
  bool up_bias = false;    // not gated only
  bool down_bias = false;  // not gated only
};

struct LayerConfig {
  std::string path;  // where config.json describes it: "decoder.block", ...
  bool stochastic = false;  // weights lie under mixer.mixers.NAME.
  // In the file's order; one if not stochastic.
  std::vector<MixerConfig> mixers;
  int32_t main_mixer = 0;  // index into mixers
  MlpConfig mlp;
};

struct ModelConfig {
  std::string model_type;  // "apriel2_text" or "apriel2"
  int32_t hidden_size = 0;
  int32_t vocab_size = 0;
  int32_t max_position_embeddings = 0;  // prompt and completion together
  double norm_epsilon = 0;              // of every RMSNorm of the stack
  bool tie_word_embeddings = false;     // lm_head is embed_tokens
  std::vector<LayerConfig> layers;
  std::vector<int32_t> eos_token_ids;  // sorted, unique; may be empty
  // What this checkpoint has and text serving leaves out, one sentence each, to
  // be shown at start.
  std::vector<std::string> notices;

  int32_t num_layers() const { return static_cast<int32_t>(layers.size()); }
};

// Parses the text of a config.json, and of a generation_config.json when there
// is one (empty: none). `config_name` and `generation_name` stand for the files
// in messages. InvalidArgument names the file, the full path of the field
// (decoder.block.mixer.mixers.gdn.key_heads), what was wrong and what would be
// right; Unimplemented names a valid feature that is not supported.
absl::StatusOr<ModelConfig> ParseModelConfig(
    absl::string_view config_json, absl::string_view generation_json,
    absl::string_view config_name = "config.json",
    absl::string_view generation_name = "generation_config.json");

// Reads DIR/config.json and DIR/generation_config.json. NotFound names the path
// that is missing; other errors as above.
absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& model_dir);

// A stable hash of everything that changes the model's results or its sizes:
// equal on every machine and build for equal configs. `notices` and the
// layers' `path` do not matter.
uint64_t Fingerprint(const ModelConfig& config);

// Whether the model splits over `world_size` ranks. InvalidArgument names the
// layer, mixer and field whose value the world size does not divide. The
// vocabulary may split unevenly, and attention's KV heads and gdn's key heads
// may be fewer than ranks when their number divides the world size: each rank
// then keeps a copy of the one head that its query or value heads use.
absl::Status ValidateTensorParallel(const ModelConfig& config,
                                    int32_t world_size);

}  // namespace switchyard

#endif  // SWITCHYARD_MODEL_CONFIG_H_
