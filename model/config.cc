#include "model/config.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "kernels/status.h"

namespace switchyard {
namespace {

// Far above any real one, and small enough to read whole.
constexpr size_t kMaxConfigBytes = size_t{16} << 20;

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    const int error = errno;
    return absl::Status(
        error == ENOENT ? absl::StatusCode::kNotFound
                        : absl::StatusCode::kFailedPrecondition,
        absl::StrCat("cannot open ", path, ": ", std::strerror(error)));
  }
  std::string text(kMaxConfigBytes + 1, '\0');
  file.read(&text[0], text.size());
  text.resize(file.gcount());
  if (file.bad()) {
    return absl::FailedPreconditionError(absl::StrCat("cannot read ", path));
  }
  if (text.size() > kMaxConfigBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": is larger than ", kMaxConfigBytes, " bytes"));
  }
  return text;
}

// FNV-1a over a canonical sequence of fields. Each field goes in with its
// width, so that no two different sequences look alike.
class Hasher {
 public:
  void Add(int64_t value) { Bytes(&value, sizeof(value)); }
  void Add(double value) { Bytes(&value, sizeof(value)); }
  void Add(const std::string& value) {
    Add(static_cast<int64_t>(value.size()));
    Bytes(value.data(), value.size());
  }
  uint64_t hash() const { return hash_; }

 private:
  void Bytes(const void* data, size_t size) {
    const auto* bytes = static_cast<const unsigned char*>(data);
    for (size_t i = 0; i < size; ++i) {
      hash_ = (hash_ ^ bytes[i]) * 0x100000001b3u;
    }
  }

  uint64_t hash_ = 0xcbf29ce484222325u;
};

struct AddParams {
  Hasher& hash;

  template <typename... T>
  void All(const T&... values) const {
    (Add(values), ...);
  }
  void Add(double value) const { hash.Add(value); }
  void Add(int32_t value) const { hash.Add(int64_t{value}); }
  void Add(bool value) const { hash.Add(int64_t{value}); }

  void operator()(const AttentionConfig& c) const {
    All(c.num_heads, c.num_kv_heads, c.head_size, c.rope_theta,
        c.bf16_rope_frequencies, c.window_size.value_or(0), c.q_bias, c.k_bias,
        c.v_bias, c.o_bias);
  }
  void operator()(const GdnConfig& c) const {
    All(c.num_value_heads, c.num_key_heads, c.key_head_dim, c.value_head_dim,
        c.conv_kernel_size, c.norm_epsilon);
  }
  void operator()(const KdaConfig& c) const {
    All(c.num_heads, c.head_dim, c.conv_kernel_size, c.norm_epsilon,
        static_cast<int32_t>(c.gate_activation));
  }
  void operator()(const MambaConfig& c) const {
    All(c.d_inner, c.d_xb, c.d_conv, c.state_size, c.dt_rank,
        c.repeat_kv_before_conv, c.conv_bias, c.dt_proj_bias, c.linear_biases);
  }
};

// One check of ValidateTensorParallel after the other, the first failure wins.
class SplitCheck {
 public:
  SplitCheck(const LayerConfig& layer, int32_t layer_id, int32_t world_size)
      : layer_(layer), layer_id_(layer_id), world_size_(world_size) {}

  // `field` is the path below `owner` in config.json.
  void Divides(const std::string& owner, absl::string_view field,
               int32_t value) {
    if (value % world_size_ != 0) Fail(owner, field, value, "divide");
  }
  // Also fine: fewer than ranks, each on the same number of ranks.
  void DividesOrReplicates(const std::string& owner, absl::string_view field,
                           int32_t value) {
    if (value % world_size_ != 0 && world_size_ % value != 0) {
      Fail(owner, field, value, "divide, or be a multiple of,");
    }
  }

  void Check(const MixerConfig& mixer) {
    const std::string owner =
        layer_.stochastic ? absl::StrCat("mixer.mixers.", mixer.name) : "mixer";
    if (const auto* attention = mixer.As<AttentionConfig>()) {
      Divides(owner, "heads", attention->num_heads);
      DividesOrReplicates(owner, "head_groups", attention->num_kv_heads);
    } else if (const auto* gdn = mixer.As<GdnConfig>()) {
      Divides(owner, "value_heads", gdn->num_value_heads);
      DividesOrReplicates(owner, "key_heads", gdn->num_key_heads);
    } else if (const auto* kda = mixer.As<KdaConfig>()) {
      Divides(owner, "heads", kda->num_heads);
    } else if (const auto* mamba = mixer.As<MambaConfig>()) {
      // d_inner / state_size is a multiple of this one.
      Divides(owner, "d_xb / state_size", mamba->d_xb / mamba->state_size);
    }
  }

  const absl::Status& status() const { return status_; }

 private:
  void Fail(const std::string& owner, absl::string_view field, int32_t value,
            absl::string_view relation) {
    if (!status_.ok()) return;
    status_ = absl::InvalidArgumentError(
        absl::StrCat("the tensor-parallel size ", world_size_, " must ",
                     relation, " ", layer_.path, ".", owner, ".", field, " = ",
                     value, " (layer ", layer_id_, ")"));
  }

  const LayerConfig& layer_;
  const int32_t layer_id_;
  const int32_t world_size_;
  absl::Status status_;
};

}  // namespace

const char* MixerTypeName(MixerType type) {
  switch (type) {
    case MixerType::kAttention:
      return "attention";
    case MixerType::kGdn:
      return "gdn";
    case MixerType::kKda:
      return "kda";
    case MixerType::kMamba:
      return "mamba";
  }
  return "?";
}

const char* ActivationName(ActivationFunction activation) {
  switch (activation) {
    case ActivationFunction::kSilu:
      return "silu";
    case ActivationFunction::kGelu:
      return "gelu";
    case ActivationFunction::kGeluTanh:
      return "gelu_pytorch_tanh";
    case ActivationFunction::kRelu:
      return "relu";
    case ActivationFunction::kRelu2:
      return "relu2";
    case ActivationFunction::kSigmoid:
      return "sigmoid";
  }
  return "?";
}

absl::StatusOr<ModelConfig> LoadModelConfig(const std::string& model_dir) {
  const std::string config_path = absl::StrCat(model_dir, "/config.json");
  const std::string generation_path =
      absl::StrCat(model_dir, "/generation_config.json");
  SY_ASSIGN_OR_RETURN(const std::string config_json, ReadFile(config_path));
  absl::StatusOr<std::string> generation_json = ReadFile(generation_path);
  if (absl::IsNotFound(generation_json.status())) generation_json = "";
  if (!generation_json.ok()) return generation_json.status();
  return ParseModelConfig(config_json, *generation_json, config_path,
                          generation_path);
}

uint64_t Fingerprint(const ModelConfig& config) {
  Hasher hash;
  const AddParams add{hash};
  add.All(config.hidden_size, config.vocab_size, config.max_position_embeddings,
          config.norm_epsilon, config.tie_word_embeddings, config.num_layers());
  for (const LayerConfig& layer : config.layers) {
    add.All(layer.stochastic, layer.main_mixer,
            static_cast<int32_t>(layer.mixers.size()));
    for (const MixerConfig& mixer : layer.mixers) {
      hash.Add(mixer.name);
      add.All(static_cast<int32_t>(mixer.type()));
      std::visit(add, mixer.params);
    }
    add.All(layer.mlp.intermediate_size, layer.mlp.gated,
            static_cast<int32_t>(layer.mlp.activation), layer.mlp.up_bias,
            layer.mlp.down_bias);
  }
  for (const int32_t id : config.eos_token_ids) add.All(id);
  return hash.hash();
}

absl::Status ValidateTensorParallel(const ModelConfig& config,
                                    int32_t world_size) {
  if (world_size < 1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the tensor-parallel size must be at least 1, is ", world_size));
  }
  for (int32_t i = 0; i < config.num_layers(); ++i) {
    const LayerConfig& layer = config.layers[i];
    SplitCheck check(layer, i, world_size);
    for (const MixerConfig& mixer : layer.mixers) check.Check(mixer);
    check.Divides("mlp", "intermediate_size", layer.mlp.intermediate_size);
    SY_RETURN_IF_ERROR(check.status());
  }
  return absl::OkStatus();
}

}  // namespace switchyard
