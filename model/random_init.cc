#include "model/random_init.h"

#include <algorithm>
#include <cmath>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "kernels/check.h"
#include "kernels/status.h"

namespace switchyard {
namespace {

constexpr int64_t kElementsPerThread = int64_t{1} << 20;

// What tells one named shape from another. All layers are alike: a stochastic
// layer of attention, sliding_window, gdn and kda.
struct Shape {
  const char* name;
  int32_t hidden_size;
  int32_t num_layers;
  int32_t num_heads;     // of attention; value heads of gdn; heads of kda
  int32_t num_kv_heads;  // key heads of gdn too
  int32_t head_size;     // of every mixer
  int32_t intermediate_size;
  int32_t window_size;
  int32_t vocab_size;
  int32_t max_position_embeddings;
};

constexpr Shape kShapes[] = {
    {"apriel2-15b", 5120, 48, 32, 8, 128, 14336, 4096, 131072, 131072},
    {"apriel2-0.5b", 1024, 24, 16, 4, 64, 4096, 1024, 32768, 32768},
};

MixerConfig Mixer(std::string name, decltype(MixerConfig::params) params) {
  MixerConfig mixer;
  mixer.name = std::move(name);
  mixer.params = std::move(params);
  return mixer;
}

ModelConfig MakeConfig(const Shape& shape) {
  AttentionConfig attention;
  attention.num_heads = shape.num_heads;
  attention.num_kv_heads = shape.num_kv_heads;
  attention.head_size = shape.head_size;
  attention.rope_theta = 1e6;
  AttentionConfig sliding_window = attention;
  sliding_window.window_size = shape.window_size;
  GdnConfig gdn;
  gdn.num_value_heads = shape.num_heads;
  gdn.num_key_heads = shape.num_kv_heads;
  gdn.key_head_dim = shape.head_size;
  gdn.value_head_dim = shape.head_size;
  gdn.conv_kernel_size = 4;
  KdaConfig kda;
  kda.num_heads = shape.num_heads;
  kda.head_dim = shape.head_size;

  LayerConfig layer;
  layer.path = "decoder.block";
  layer.stochastic = true;
  layer.mixers = {Mixer("attention", attention),
                  Mixer("sliding_window", sliding_window), Mixer("gdn", gdn),
                  Mixer("kda", kda)};
  layer.mlp.intermediate_size = shape.intermediate_size;
  layer.mlp.gated = true;

  ModelConfig config;
  config.model_type = "apriel2_text";
  config.hidden_size = shape.hidden_size;
  config.vocab_size = shape.vocab_size;
  config.max_position_embeddings = shape.max_position_embeddings;
  config.norm_epsilon = 1e-5;
  config.layers.assign(shape.num_layers, layer);
  config.eos_token_ids = {2};
  config.notices = {absl::StrCat("The weights of ", shape.name,
                                 " are random: its text means nothing.")};
  return config;
}

// Leaves only the mixers that `list` names.
absl::Status KeepMixers(absl::string_view list, ModelConfig& config) {
  for (LayerConfig& layer : config.layers) {
    std::vector<MixerConfig> kept;
    for (absl::string_view name : absl::StrSplit(list, ',')) {
      const auto is_it = [name](const MixerConfig& m) {
        return m.name == name;
      };
      const auto it =
          std::find_if(layer.mixers.begin(), layer.mixers.end(), is_it);
      if (it == layer.mixers.end() ||
          std::any_of(kept.begin(), kept.end(), is_it)) {
        std::vector<std::string> names;
        for (const MixerConfig& m : layer.mixers) names.push_back(m.name);
        return absl::NotFoundError(absl::StrCat(
            "\"", std::string(name), "\" is ",
            it == layer.mixers.end() ? "no mixer of this shape" : "named twice",
            "; there are ", absl::StrJoin(names, ", ")));
      }
      kept.push_back(*it);
    }
    layer.mixers = std::move(kept);
  }
  return absl::OkStatus();
}

// Values of a pool: enough for no two rows of a matrix to be equal, few enough
// for a core's cache. A prime, so that a place in a tensor and a place in the
// pool do not fall into step.
constexpr int64_t kPoolSize = 1048573;

// SplitMix64 (Steele et al. 2014), as a hash of a counter.
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

uint64_t HashName(absl::string_view name, uint64_t seed) {
  uint64_t hash = Mix(seed);
  for (const char c : name) hash = Mix(hash ^ static_cast<unsigned char>(c));
  return hash;
}

// How the elements of a tensor are drawn.
struct Distribution {
  enum class Kind { kConstant, kUniform, kLogUniformArgument, kDtBias, kRamp };
  Kind kind = Kind::kConstant;
  float value = 0;  // the constant; the uniform's half-width
};

Distribution DistributionOf(const TensorSpec& spec, int32_t num_layers) {
  using Kind = Distribution::Kind;
  switch (spec.role) {
    case TensorRole::kFinalNorm:
    case TensorRole::kInputNorm:
    case TensorRole::kPostAttentionNorm:
    case TensorRole::kGateNorm:
    case TensorRole::kSkip:
      return {Kind::kConstant, 1.0f};
    case TensorRole::kALog:
      // The logarithm of U(1, 16) a head; mamba: of 1, 2, ... along the state.
      return {spec.cols() == 1 ? Kind::kLogUniformArgument : Kind::kRamp, 0};
    case TensorRole::kDtBias:
    case TensorRole::kDtProjBias:
      return {Kind::kDtBias, 0};
    case TensorRole::kQBias:
    case TensorRole::kKBias:
    case TensorRole::kVBias:
    case TensorRole::kOutBias:
    case TensorRole::kMlpUpBias:
    case TensorRole::kMlpDownBias:
    case TensorRole::kConvBias:
    case TensorRole::kInBias:
    case TensorRole::kDtInBias:
      return {Kind::kConstant, 0.0f};
    default:
      break;
  }
  // A variance of 1 / fan-in keeps activations near 1; what is added to the
  // residual stream is made smaller with its number of terms.
  double variance = 1.0 / spec.cols();
  if (spec.role == TensorRole::kEmbedding) variance = 1.0;
  if (spec.role == TensorRole::kOutProj || spec.role == TensorRole::kMlpDown) {
    variance /= 2.0 * num_layers;
  }
  return {Kind::kUniform, static_cast<float>(std::sqrt(3.0 * variance))};
}

// Element `i` (row-major in the whole tensor) of a tensor with hash `key`.
float Element(const Distribution& distribution, uint64_t key, int64_t i,
              int64_t cols) {
  using Kind = Distribution::Kind;
  if (distribution.kind == Kind::kConstant) return distribution.value;
  if (distribution.kind == Kind::kRamp) {
    return std::log(static_cast<float>(i % cols + 1));
  }
  // 24 random bits in [0, 1).
  const float u =
      static_cast<float>(Mix(key + static_cast<uint64_t>(i)) >> 40) * 0x1p-24f;
  switch (distribution.kind) {
    case Kind::kLogUniformArgument:
      return std::log(1.0f + 15.0f * u);
    case Kind::kDtBias: {
      // softplus of it is log-uniform in [0.001, 0.1].
      const float dt = std::exp(std::log(0.001f) + u * std::log(100.0f));
      return dt + std::log(-std::expm1(-dt));
    }
    default:
      return (2.0f * u - 1.0f) * distribution.value;
  }
}

}  // namespace

std::vector<std::string> NamedShapes() {
  std::vector<std::string> names;
  for (const Shape& shape : kShapes) names.push_back(shape.name);
  return names;
}

absl::StatusOr<ModelConfig> NamedShape(absl::string_view name) {
  const size_t colon = name.find(':');
  const absl::string_view shape_name = name.substr(0, colon);
  for (const Shape& shape : kShapes) {
    if (shape_name != shape.name) continue;
    ModelConfig config = MakeConfig(shape);
    if (colon != absl::string_view::npos) {
      SY_RETURN_IF_ERROR(KeepMixers(name.substr(colon + 1), config));
    }
    return config;
  }
  return absl::NotFoundError(absl::StrCat("no named shape \"", shape_name,
                                          "\"; there are ",
                                          absl::StrJoin(NamedShapes(), ", ")));
}

RandomWeights::RandomWeights(const ModelConfig& config, uint64_t seed)
    : seed_(seed), num_layers_(config.num_layers()) {
  std::vector<float> uniform;
  for (const TensorSpec& spec : EnumerateTensors(config)) {
    if (!spec.is_matrix) continue;
    const Distribution distribution = DistributionOf(spec, num_layers_);
    if (distribution.kind != Distribution::Kind::kUniform) continue;
    std::vector<uint16_t>& pool = pools_[distribution.value];
    if (!pool.empty()) continue;
    if (uniform.empty()) {
      uniform.resize(kPoolSize);
      for (int64_t i = 0; i < kPoolSize; ++i) {
        uniform[i] = Element({Distribution::Kind::kUniform, 1.0f},
                             HashName("pool", seed_), i, 1);
      }
    }
    pool.resize(kPoolSize);
    for (int64_t i = 0; i < kPoolSize; ++i) {
      pool[i] = FloatToBF16(uniform[i] * distribution.value);
    }
  }
}

DType RandomWeights::StoredType(const TensorSpec& spec) const {
  return spec.is_matrix ? DType::kBF16 : DType::kF32;
}

absl::Status RandomWeights::ReadInto(const TensorSpec& spec, int32_t rank,
                                     int32_t world_size,
                                     const MatrixView& out) const {
  SY_RETURN_IF_ERROR(CheckSlice(spec, rank, world_size, out));
  const Distribution distribution = DistributionOf(spec, num_layers_);
  const uint64_t key = HashName(spec.name, seed_);
  const bool by_rows = spec.shard.axis == ShardAxis::kRows;
  const bool by_columns = spec.shard.axis == ShardAxis::kCols;
  using Ranges = std::vector<std::pair<int64_t, int64_t>>;
  const Ranges rows =
      by_rows ? LocalRanges(spec, rank, world_size) : Ranges{{0, out.rows}};
  const Ranges columns =
      by_columns ? LocalRanges(spec, rank, world_size) : Ranges{{0, out.cols}};

  const bool pooled =
      spec.is_matrix && distribution.kind == Distribution::Kind::kUniform;
  const uint16_t* const pool =
      pooled ? pools_.at(distribution.value).data() : nullptr;
  const int64_t pool_start = static_cast<int64_t>(key % kPoolSize);
  const int64_t element_bytes = DTypeBytes(out.dtype);
  // Elements [first, first + num) of the whole tensor, row-major; returns where
  // the next one goes.
  const auto write = [&](std::byte* target, int64_t first, int64_t num) {
    while (pooled && num > 0) {
      const int64_t place = (pool_start + first) % kPoolSize;
      const int64_t run = std::min(num, kPoolSize - place);
      ConvertElements(DType::kBF16, pool + place, out.dtype, target, run);
      target += run * element_bytes;
      first += run;
      num -= run;
    }
    for (; num > 0; ++first, --num) {
      const float value = Element(distribution, key, first, spec.cols());
      ConvertElements(DType::kF32, &value, out.dtype, target, 1);
      target += element_bytes;
    }
    return target;
  };
  std::vector<int64_t> source_rows;  // of the rows of `out`
  for (const auto& [begin, end] : rows) {
    for (int64_t row = begin; row < end; ++row) source_rows.push_back(row);
  }
  const auto fill = [&](int64_t first, int64_t last) {
    for (int64_t out_row = first; out_row < last; ++out_row) {
      std::byte* target = static_cast<std::byte*>(out.data) +
                          out_row * out.row_stride * element_bytes;
      if (out_row >= static_cast<int64_t>(source_rows.size())) {  // padding
        std::fill(target, target + out.cols * element_bytes, std::byte{0});
        continue;
      }
      const int64_t at = source_rows[out_row] * spec.cols();
      for (const auto& [begin, end] : columns) {
        target = write(target, at + begin, end - begin);
      }
    }
  };
  // Memory is faster than one core copies.
  const int64_t num_threads =
      std::clamp<int64_t>(out.rows * out.cols / kElementsPerThread, 1,
                          std::max(1u, std::thread::hardware_concurrency()));
  std::vector<std::thread> threads;
  for (int64_t t = 1; t < num_threads; ++t) {
    threads.emplace_back(fill, out.rows * t / num_threads,
                         out.rows * (t + 1) / num_threads);
  }
  fill(0, out.rows / num_threads);
  for (std::thread& thread : threads) thread.join();
  return absl::OkStatus();
}

}  // namespace switchyard
