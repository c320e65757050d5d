#include "cli/bench_work.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "coordinator/placements.h"
#include "kernels/status.h"
#include "model/weight_table.h"

namespace switchyard {
namespace {

// The mixer of a layer that a kind of 3/25/4/16 means, or nothing.
std::optional<int32_t> FindMixer(const LayerConfig& layer, MixerType type,
                                 bool windowed) {
  for (size_t i = 0; i < layer.mixers.size(); ++i) {
    const auto* attention = layer.mixers[i].As<AttentionConfig>();
    if (layer.mixers[i].type() == type &&
        (attention == nullptr ||
         attention->window_size.has_value() == windowed)) {
      return static_cast<int32_t>(i);
    }
  }
  return std::nullopt;
}

absl::StatusOr<Placement> PlacementOfCounts(const ModelConfig& config,
                                            absl::string_view text) {
  struct Kind {
    const char* name;
    MixerType type;
    bool windowed;
  };
  static constexpr Kind kKinds[] = {
      {"attention", MixerType::kAttention, false},
      {"sliding-window attention", MixerType::kAttention, true},
      {"kda", MixerType::kKda, false},
      {"gdn", MixerType::kGdn, false}};
  const std::vector<std::string> parts = absl::StrSplit(text, '/');
  std::vector<int32_t> counts;
  int32_t total = 0;
  for (const std::string& part : parts) {
    int32_t count = 0;
    if (!absl::SimpleAtoi(part, &count) || count < 0) break;
    counts.push_back(count);
    total += count;
  }
  if (parts.size() != 4 || counts.size() != 4 || total != config.num_layers()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "placement ", text,
        " should be the numbers of layers with attention, sliding-window "
        "attention, kda and gdn, ",
        config.num_layers(), " in all"));
  }
  std::vector<int32_t> mixers;
  int32_t given[4] = {};
  for (int32_t layer = 0; layer < config.num_layers(); ++layer) {
    // The kind that is furthest behind its share of the layers so far.
    int32_t best = 0;
    int64_t best_debt = INT64_MIN;
    for (int32_t i = 0; i < 4; ++i) {
      const int64_t debt =
          int64_t{counts[i]} * (layer + 1) - int64_t{given[i]} * total;
      if (counts[i] > given[i] && debt > best_debt) {
        best = i;
        best_debt = debt;
      }
    }
    ++given[best];
    const std::optional<int32_t> mixer = FindMixer(
        config.layers[layer], kKinds[best].type, kKinds[best].windowed);
    if (!mixer.has_value()) {
      return absl::FailedPreconditionError(
          absl::StrCat("placement ", text, ": layer ", layer, " has no ",
                       kKinds[best].name));
    }
    mixers.push_back(*mixer);
  }
  return Placement::FromIndices(config, mixers);
}

double MixerFlops(const MixerConfig& mixer, int64_t num_tokens) {
  if (const auto* attention = mixer.As<AttentionConfig>()) {
    const int64_t reach = std::min<int64_t>(
        num_tokens,
        attention->window_size.value_or(static_cast<int32_t>(num_tokens)));
    // Pairs of a query and a position that it sees.
    const double pairs =
        0.5 * reach * (reach + 1) + 1.0 * (num_tokens - reach) * reach;
    return 4.0 * attention->num_heads * attention->head_size * pairs;
  }
  int64_t state = 0;
  if (const auto* gdn = mixer.As<GdnConfig>()) {
    state =
        int64_t{gdn->num_value_heads} * gdn->key_head_dim * gdn->value_head_dim;
  } else if (const auto* kda = mixer.As<KdaConfig>()) {
    state = int64_t{kda->num_heads} * kda->head_dim * kda->head_dim;
  } else if (const auto* mamba = mixer.As<MambaConfig>()) {
    state = int64_t{mamba->d_inner} * mamba->state_size;
  }
  return 6.0 * state * num_tokens;
}

}  // namespace

absl::StatusOr<Placement> ParseBenchPlacement(const ModelConfig& config,
                                              absl::string_view text) {
  if (text.find('/') != absl::string_view::npos) {
    return PlacementOfCounts(config, text);
  }
  SY_ASSIGN_OR_RETURN(const PlacementTable table,
                      PlacementTable::Create(&config, {}, ""));
  SY_ASSIGN_OR_RETURN(
      PlacementTable::Resolved resolved,
      table.ResolveText(absl::StrReplaceAll(text, {{"+", ","}})));
  return std::move(resolved.placement);
}

StepTraffic TrafficOfStep(const ModelConfig& config,
                          const CacheSpec& cache_spec,
                          int32_t matrix_element_bytes,
                          const Placement& placement, int32_t batch,
                          int32_t context) {
  StepTraffic traffic;
  for (const TensorSpec& spec : EnumerateTensors(config)) {
    // A few rows of the embedding are looked up, unless it is the head too.
    if (spec.role == TensorRole::kEmbedding && !config.tie_word_embeddings) {
      continue;
    }
    if (spec.mixer >= 0 && placement[spec.layer] != spec.mixer) continue;
    const SliceShape shape = LocalShape(spec, cache_spec.options().world_size);
    traffic.weight_bytes +=
        shape.rows * shape.cols * (spec.is_matrix ? matrix_element_bytes : 4);
  }
  for (int32_t layer = 0; layer < config.num_layers(); ++layer) {
    const MixerCacheSpec& cache = cache_spec.At(layer, placement[layer]);
    if (cache.kind == CacheKind::kSlot) {
      traffic.state_bytes += batch * (cache.conv_bytes + cache.state_bytes);
      continue;
    }
    const int64_t reach =
        cache.window > 0 ? std::min(cache.window, context) : context;
    traffic.kv_bytes +=
        batch * reach * cache.unit_bytes / cache_spec.block_size();
  }
  return traffic;
}

double PrefillFlops(const ModelConfig& config, int32_t world_size,
                    const Placement& placement, int32_t num_tokens) {
  double flops = 0;
  for (const TensorSpec& spec : EnumerateTensors(config)) {
    if (!spec.is_matrix) continue;
    if (spec.mixer >= 0 && placement[spec.layer] != spec.mixer) continue;
    const bool head =
        spec.role == TensorRole::kLmHead ||
        (spec.role == TensorRole::kEmbedding && config.tie_word_embeddings);
    if (spec.role == TensorRole::kEmbedding && !head) continue;
    const SliceShape shape = LocalShape(spec, world_size);
    flops += 2.0 * shape.rows * shape.cols * (head ? 1 : num_tokens);
  }
  for (int32_t layer = 0; layer < config.num_layers(); ++layer) {
    flops +=
        MixerFlops(config.layers[layer].mixers[placement[layer]], num_tokens) /
        world_size;
  }
  return flops;
}

}  // namespace switchyard
