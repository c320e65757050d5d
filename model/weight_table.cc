#include "model/weight_table.h"

#include <algorithm>
#include <optional>

#include "kernels/check.h"

namespace switchyard {
namespace {

Shard Whole() { return Shard{}; }

Shard Rows(std::vector<ShardSegment> segments) {
  return Shard{ShardAxis::kRows, std::move(segments), false};
}

// All rows (or columns), in groups of `group_size`.
Shard RowsByGroup(int64_t num_groups, int64_t group_size) {
  return Rows({{0, num_groups, group_size}});
}

Shard ColumnsByGroup(int64_t num_groups, int64_t group_size) {
  return Shard{ShardAxis::kCols, {{0, num_groups, group_size}}, false};
}

// Consecutive segments, each of its own heads.
struct Heads {
  int64_t num = 0;
  int64_t size = 0;  // rows of one
};

Shard RowsBySegment(std::initializer_list<Heads> segments) {
  std::vector<ShardSegment> cut;
  int64_t begin = 0;
  for (const Heads& heads : segments) {
    cut.push_back({begin, heads.num, heads.size});
    begin += heads.num * heads.size;
  }
  return Rows(std::move(cut));
}

// Collects the tensors of one model.
class Enumerator {
 public:
  explicit Enumerator(const ModelConfig& config)
      : config_(config), h_(config.hidden_size) {}

  std::vector<TensorSpec> Run() && {
    const Shard vocab{ShardAxis::kRows, {{0, config_.vocab_size, 1}}, true};
    Add("model.embed_tokens.weight", TensorRole::kEmbedding,
        {config_.vocab_size, h_}, vocab);
    for (layer_ = 0; layer_ < config_.num_layers(); ++layer_) AddLayer();
    layer_ = -1;
    prefix_.clear();
    Add("model.norm.weight", TensorRole::kFinalNorm, {h_}, Whole());
    if (!config_.tie_word_embeddings) {
      Add("lm_head.weight", TensorRole::kLmHead, {config_.vocab_size, h_},
          vocab);
    }
    return std::move(tensors_);
  }

 private:
  // Tensors of two dimensions are GEMM operands unless AddParameter adds them.
  void Add(const std::string& name, TensorRole role, std::vector<int64_t> shape,
           Shard shard) {
    AddParameter(name, role, std::move(shape), std::move(shard));
    tensors_.back().is_matrix = tensors_.back().shape.size() == 2;
  }

  void AddParameter(const std::string& name, TensorRole role,
                    std::vector<int64_t> shape, Shard shard) {
    TensorSpec spec;
    spec.name = prefix_ + name;
    spec.role = role;
    spec.layer = layer_;
    spec.mixer = mixer_;
    spec.shape = std::move(shape);
    spec.shard = std::move(shard);
    tensors_.push_back(std::move(spec));
  }

  void AddLayer() {
    const LayerConfig& layer = config_.layers[layer_];
    const std::string block =
        "model.decoder.blocks." + std::to_string(layer_) + ".";
    prefix_ = block;
    Add("input_layernorm.weight", TensorRole::kInputNorm, {h_}, Whole());
    for (size_t i = 0; i < layer.mixers.size(); ++i) {
      mixer_ = static_cast<int32_t>(i);
      prefix_ = block + "mixer.";
      if (layer.stochastic) prefix_ += "mixers." + layer.mixers[i].name + ".";
      std::visit([this](const auto& params) { AddMixer(params); },
                 layer.mixers[i].params);
    }
    mixer_ = -1;
    prefix_ = block;
    Add("post_attention_layernorm.weight", TensorRole::kPostAttentionNorm, {h_},
        Whole());
    AddMlp(layer.mlp);
  }

  void AddMlp(const MlpConfig& mlp) {
    const int64_t width = mlp.intermediate_size;
    if (mlp.gated) {
      Add("mlp.gate_proj.weight", TensorRole::kMlpGate, {width, h_},
          RowsByGroup(width, 1));
    }
    Add("mlp.up_proj.weight", TensorRole::kMlpUp, {width, h_},
        RowsByGroup(width, 1));
    if (mlp.up_bias) {
      Add("mlp.up_proj.bias", TensorRole::kMlpUpBias, {width},
          RowsByGroup(width, 1));
    }
    Add("mlp.down_proj.weight", TensorRole::kMlpDown, {h_, width},
        ColumnsByGroup(width, 1));
    if (mlp.down_bias) {
      Add("mlp.down_proj.bias", TensorRole::kMlpDownBias, {h_}, Whole());
    }
  }

  void AddMixer(const AttentionConfig& c) {
    const int64_t q_width = int64_t{c.num_heads} * c.head_size;
    const int64_t kv_width = int64_t{c.num_kv_heads} * c.head_size;
    const Shard q_heads = RowsByGroup(c.num_heads, c.head_size);
    const Shard kv_heads = RowsByGroup(c.num_kv_heads, c.head_size);
    Add("q_proj.weight", TensorRole::kQProj, {q_width, h_}, q_heads);
    if (c.q_bias) Add("q_proj.bias", TensorRole::kQBias, {q_width}, q_heads);
    Add("k_proj.weight", TensorRole::kKProj, {kv_width, h_}, kv_heads);
    if (c.k_bias) Add("k_proj.bias", TensorRole::kKBias, {kv_width}, kv_heads);
    Add("v_proj.weight", TensorRole::kVProj, {kv_width, h_}, kv_heads);
    if (c.v_bias) Add("v_proj.bias", TensorRole::kVBias, {kv_width}, kv_heads);
    Add("o_proj.weight", TensorRole::kOutProj, {h_, q_width},
        ColumnsByGroup(c.num_heads, c.head_size));
    if (c.o_bias) Add("o_proj.bias", TensorRole::kOutBias, {h_}, Whole());
  }

  void AddMixer(const GdnConfig& c) {
    const Heads key{c.num_key_heads, c.key_head_dim};
    const Heads value{c.num_value_heads, c.value_head_dim};
    const Heads gate{c.num_value_heads, 1};
    const int64_t key_dim = key.num * key.size;
    const int64_t value_dim = value.num * value.size;
    Add("in_proj_qkvz.weight", TensorRole::kQkvzProj,
        {2 * key_dim + 2 * value_dim, h_},
        RowsBySegment({key, key, value, value}));
    Add("in_proj_ba.weight", TensorRole::kBaProj, {2 * gate.num, h_},
        RowsBySegment({gate, gate}));
    Add("convolution.weight", TensorRole::kConv,
        {2 * key_dim + value_dim, 1, c.conv_kernel_size},
        RowsBySegment({key, key, value}));
    Add("dt_bias", TensorRole::kDtBias, {gate.num}, RowsBySegment({gate}));
    Add("A_log", TensorRole::kALog, {gate.num}, RowsBySegment({gate}));
    Add("norm.weight", TensorRole::kGateNorm, {c.value_head_dim}, Whole());
    Add("out_proj.weight", TensorRole::kOutProj, {h_, value_dim},
        ColumnsByGroup(value.num, value.size));
  }

  void AddMixer(const KdaConfig& c) {
    const int64_t width = int64_t{c.num_heads} * c.head_dim;
    const Shard heads = RowsByGroup(c.num_heads, c.head_dim);
    Add("q_proj.weight", TensorRole::kQProj, {width, h_}, heads);
    Add("k_proj.weight", TensorRole::kKProj, {width, h_}, heads);
    Add("v_proj.weight", TensorRole::kVProj, {width, h_}, heads);
    const std::vector<int64_t> conv = {width, 1, c.conv_kernel_size};
    Add("q_conv.weight", TensorRole::kQConv, conv, heads);
    Add("k_conv.weight", TensorRole::kKConv, conv, heads);
    Add("v_conv.weight", TensorRole::kVConv, conv, heads);
    Add("f_a_proj.weight", TensorRole::kFAProj, {c.head_dim, h_}, Whole());
    Add("f_b_proj.weight", TensorRole::kFBProj, {width, c.head_dim}, heads);
    Add("g_a_proj.weight", TensorRole::kGAProj, {c.head_dim, h_}, Whole());
    Add("g_b_proj.weight", TensorRole::kGBProj, {width, c.head_dim}, heads);
    Add("beta_proj.weight", TensorRole::kBetaProj, {c.num_heads, h_},
        RowsByGroup(c.num_heads, 1));
    Add("A_log", TensorRole::kALog, {c.num_heads}, RowsByGroup(c.num_heads, 1));
    Add("dt_bias", TensorRole::kDtBias, {width}, heads);
    Add("norm.weight", TensorRole::kGateNorm, {c.head_dim}, Whole());
    Add("o_proj.weight", TensorRole::kOutProj, {h_, width},
        ColumnsByGroup(c.num_heads, c.head_dim));
  }

  void AddMixer(const MambaConfig& c) {
    const Heads inner{c.d_inner / c.state_size, c.state_size};  // z, C, dt
    const Heads xb{c.d_xb / c.state_size, c.state_size};        // x, B
    const Heads conv = c.repeat_kv_before_conv ? inner : xb;
    const Shard inner_rows = RowsBySegment({inner});
    const Shard in_rows = RowsBySegment({inner, xb, xb, inner});
    const int64_t d_in = int64_t{2} * c.d_inner + int64_t{2} * c.d_xb;
    Add("in_proj.weight", TensorRole::kInProj, {d_in, h_}, in_rows);
    if (c.linear_biases) {
      Add("in_proj.bias", TensorRole::kInBias, {d_in}, in_rows);
    }
    Add("dt_in_proj.weight", TensorRole::kDtInProj, {c.dt_rank, h_}, Whole());
    if (c.linear_biases) {
      Add("dt_in_proj.bias", TensorRole::kDtInBias, {c.dt_rank}, Whole());
    }
    Add("dt_proj.weight", TensorRole::kDtProj, {c.d_inner, c.dt_rank},
        inner_rows);
    if (c.dt_proj_bias) {
      Add("dt_proj.bias", TensorRole::kDtProjBias, {c.d_inner}, inner_rows);
    }
    Add("conv1d.weight", TensorRole::kConv, {conv.num * conv.size, 1, c.d_conv},
        RowsBySegment({conv}));
    if (c.conv_bias) {
      Add("conv1d.bias", TensorRole::kConvBias, {conv.num * conv.size},
          RowsBySegment({conv}));
    }
    AddParameter("A_log", TensorRole::kALog, {c.d_inner, c.state_size},
                 inner_rows);
    Add("D", TensorRole::kSkip, {c.d_inner}, inner_rows);
    Add("out_proj.weight", TensorRole::kOutProj, {h_, c.d_inner},
        ColumnsByGroup(inner.num, inner.size));
    if (c.linear_biases) {
      Add("out_proj.bias", TensorRole::kOutBias, {h_}, Whole());
    }
  }

  const ModelConfig& config_;
  const int64_t h_;
  std::vector<TensorSpec> tensors_;
  std::string prefix_;
  int32_t layer_ = -1;
  int32_t mixer_ = -1;
};

// Groups of `segment` that each rank holds.
int64_t GroupsPerRank(const ShardSegment& segment, bool padded,
                      int32_t world_size) {
  if (padded) return (segment.num_groups + world_size - 1) / world_size;
  if (segment.num_groups < world_size) {
    SY_CHECK(world_size % segment.num_groups == 0);
    return 1;
  }
  SY_CHECK(segment.num_groups % world_size == 0);
  return segment.num_groups / world_size;
}

}  // namespace

std::vector<TensorSpec> EnumerateTensors(const ModelConfig& config) {
  return Enumerator(config).Run();
}

SliceShape LocalShape(const TensorSpec& spec, int32_t world_size) {
  SliceShape shape{spec.rows(), spec.cols()};
  if (spec.shard.axis == ShardAxis::kNone) return shape;
  int64_t held = 0;
  for (const ShardSegment& segment : spec.shard.segments) {
    held += GroupsPerRank(segment, spec.shard.padded, world_size) *
            segment.group_size;
  }
  (spec.shard.axis == ShardAxis::kRows ? shape.rows : shape.cols) = held;
  return shape;
}

std::vector<std::pair<int64_t, int64_t>> LocalRanges(const TensorSpec& spec,
                                                     int32_t rank,
                                                     int32_t world_size) {
  SY_CHECK(spec.shard.axis != ShardAxis::kNone);
  SY_CHECK(rank >= 0 && rank < world_size);
  std::vector<std::pair<int64_t, int64_t>> ranges;
  for (const ShardSegment& segment : spec.shard.segments) {
    const int64_t held = GroupsPerRank(segment, spec.shard.padded, world_size);
    int64_t first = rank * held;
    if (!spec.shard.padded && segment.num_groups < world_size) {
      first = rank / (world_size / segment.num_groups);
    }
    const int64_t last = std::min(first + held, segment.num_groups);
    if (first >= last) continue;
    ranges.emplace_back(segment.begin + first * segment.group_size,
                        segment.begin + last * segment.group_size);
  }
  return ranges;
}

VocabShard VocabRows(int32_t vocab_size, int32_t rank, int32_t world_size) {
  VocabShard shard;
  shard.num_rows_local =
      GroupsPerRank({0, vocab_size, 1}, /*padded=*/true, world_size);
  shard.begin = std::min<int64_t>(rank * shard.num_rows_local, vocab_size);
  shard.end = std::min<int64_t>(shard.begin + shard.num_rows_local, vocab_size);
  return shard;
}

int64_t NumParameters(const ModelConfig& config) {
  int64_t num = 0;
  for (const TensorSpec& spec : EnumerateTensors(config)) {
    num += spec.num_elements();
  }
  return num;
}

int64_t WeightBytesPerRank(const ModelConfig& config, int32_t world_size,
                           int32_t matrix_element_bytes) {
  int64_t bytes = 0;
  for (const TensorSpec& spec : EnumerateTensors(config)) {
    const SliceShape shape = LocalShape(spec, world_size);
    bytes +=
        shape.rows * shape.cols * (spec.is_matrix ? matrix_element_bytes : 4);
  }
  return bytes;
}

}  // namespace switchyard
