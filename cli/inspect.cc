#include "cli/inspect.h"

#include <algorithm>
#include <iostream>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/text_table.h"
#include "coordinator/placements.h"
#include "kernels/status.h"
#include "model/checkpoint.h"
#include "model/random_init.h"
#include "model/weight_table.h"

namespace switchyard {
namespace {

using Align = TextTable::Align;

// What is kept in memory for one element.
struct ElementBytes {
  int32_t matrix;
  int32_t kv;
};

ElementBytes ElementBytesOf(const std::string& device) {
  return device == "cuda" ? ElementBytes{2, 2} : ElementBytes{4, 4};
}

// Layers 0, 1, 2, 5 -> "0-2, 5".
std::string Ranges(const std::vector<int32_t>& layers) {
  std::vector<std::string> ranges;
  for (size_t i = 0; i < layers.size();) {
    size_t end = i + 1;
    while (end < layers.size() && layers[end] == layers[end - 1] + 1) ++end;
    ranges.push_back(end - i == 1
                         ? absl::StrCat(layers[i])
                         : absl::StrCat(layers[i], "-", layers[end - 1]));
    i = end;
  }
  return absl::StrJoin(ranges, ", ");
}

struct Describe {
  std::string operator()(const AttentionConfig& c) const {
    std::string text = absl::StrCat(c.num_heads, " heads, ", c.num_kv_heads,
                                    " KV heads of ", c.head_size);
    if (c.window_size.has_value()) {
      absl::StrAppend(&text, ", window ", *c.window_size);
    }
    return text;
  }
  std::string operator()(const GdnConfig& c) const {
    return absl::StrCat(c.num_value_heads, " value heads of ", c.value_head_dim,
                        ", ", c.num_key_heads, " key heads of ",
                        c.key_head_dim);
  }
  std::string operator()(const KdaConfig& c) const {
    return absl::StrCat(c.num_heads, " heads of ", c.head_dim);
  }
  std::string operator()(const MambaConfig& c) const {
    return absl::StrCat("d_inner ", c.d_inner, ", d_xb ", c.d_xb, ", state ",
                        c.state_size);
  }
};

std::string DescribeMlp(const MlpConfig& mlp) {
  return absl::StrCat(mlp.gated ? "gated " : "", ActivationName(mlp.activation),
                      ", width ", mlp.intermediate_size,
                      mlp.up_bias || mlp.down_bias ? ", biases" : "");
}

// Parameters by (layer, mixer); mixer -1: the rest of a layer, layer -1:
// outside the layers.
using ParameterCounts = std::map<std::pair<int32_t, int32_t>, int64_t>;

ParameterCounts CountParameters(const ModelConfig& config) {
  ParameterCounts counts;
  for (const TensorSpec& spec : EnumerateTensors(config)) {
    counts[{spec.layer, spec.mixer}] += spec.num_elements();
  }
  return counts;
}

int64_t ActiveParameters(const ParameterCounts& counts,
                         const Placement& placement) {
  int64_t total = 0;
  for (const auto& [owner, count] : counts) {
    const auto [layer, mixer] = owner;
    if (mixer < 0 || placement[layer] == mixer) total += count;
  }
  return total;
}

void PrintSummary(const ModelConfig& config, const std::string& name,
                  const ParameterCounts& counts, std::ostream& out) {
  int64_t total = 0;
  for (const auto& [owner, count] : counts) total += count;
  const int64_t active = ActiveParameters(counts, Placement::Main(config));
  const auto line = [&](absl::string_view key, const std::string& value) {
    out << absl::StrFormat("  %-14s  %s\n", key, value);
  };
  out << name << "\n";
  line("type", config.model_type);
  line("layers", absl::StrCat(config.num_layers()));
  line("hidden size", WithThousands(config.hidden_size));
  line("vocabulary",
       absl::StrCat(WithThousands(config.vocab_size),
                    config.tie_word_embeddings ? ", tied embeddings" : ""));
  line("context",
       absl::StrCat(WithThousands(config.max_position_embeddings), " tokens"));
  line("stop tokens", config.eos_token_ids.empty()
                          ? "none"
                          : absl::StrJoin(config.eos_token_ids, ", "));
  line("parameters",
       absl::StrCat(HumanCount(total), " in all, of which ", HumanCount(active),
                    " run under the main placement"));
  line("fingerprint", absl::StrFormat("%016x", Fingerprint(config)));
}

void PrintMixers(const ModelConfig& config, const CacheSpec& spec,
                 const ParameterCounts& counts, std::ostream& out) {
  // Layers of one block are alike.
  std::map<std::string, std::vector<int32_t>> layers_of;
  std::vector<std::string> blocks;  // in order of their first layers
  for (int32_t i = 0; i < config.num_layers(); ++i) {
    const std::string& path = config.layers[i].path;
    if (layers_of.count(path) == 0) blocks.push_back(path);
    layers_of[path].push_back(i);
  }
  TextTable table({{"layers"},
                   {"mixer"},
                   {"type"},
                   {"shape"},
                   {"parameters", Align::kRight},
                   {"cache unit", Align::kRight},
                   {"kept per sequence"}});
  for (const std::string& block : blocks) {
    const std::vector<int32_t>& layers = layers_of[block];
    const int32_t first = layers.front();
    const LayerConfig& layer = config.layers[first];
    std::string where = Ranges(layers);
    for (int32_t m = 0; m < spec.num_mixers(first); ++m) {
      const MixerConfig& mixer = layer.mixers[m];
      const MixerCacheSpec& cache = spec.At(first, m);
      std::string kept = "one slot";
      if (cache.kind == CacheKind::kBlocks) {
        kept =
            cache.ring_blocks == 0
                ? absl::StrCat("a block per ", spec.block_size(), " tokens")
                : absl::StrCat("at most ", cache.ring_blocks,
                               cache.ring_blocks == 1 ? " block" : " blocks");
      }
      const bool main = layer.stochastic && m == layer.main_mixer;
      table.AddRow({where, absl::StrCat(mixer.name, main ? " (main)" : ""),
                    MixerTypeName(mixer.type()),
                    std::visit(Describe(), mixer.params),
                    WithThousands(counts.at({first, m})),
                    HumanBytes(cache.unit_bytes), kept});
      where.clear();
    }
    table.AddRow({"", "", "mlp", DescribeMlp(layer.mlp),
                  WithThousands(counts.at({first, -1})), "", ""});
  }
  out << "\nMixers (parameters of one layer; cache of one rank)\n";
  table.Print(out);
}

void PrintWeights(const ModelConfig& config, const InspectOptions& options,
                  std::ostream& out) {
  TextTable table({{"tensor-parallel size"},
                   {"fp32", Align::kRight},
                   {"bf16", Align::kRight},
                   {""}});
  std::vector<int32_t> world_sizes = {1, 2, 4, 8};
  if (std::find(world_sizes.begin(), world_sizes.end(), options.world_size) ==
      world_sizes.end()) {
    world_sizes.push_back(options.world_size);
    std::sort(world_sizes.begin(), world_sizes.end());
  }
  for (const int32_t world_size : world_sizes) {
    const absl::Status fits = ValidateTensorParallel(config, world_size);
    if (fits.ok()) {
      table.AddRow({absl::StrCat(world_size),
                    HumanBytes(WeightBytesPerRank(config, world_size, 4)),
                    HumanBytes(WeightBytesPerRank(config, world_size, 2)), ""});
    } else {
      table.AddRow(
          {absl::StrCat(world_size), "-", "-", std::string(fits.message())});
    }
  }
  out << "\nWeights per rank (the CPU device keeps fp32, CUDA bf16)\n";
  table.Print(out);
}

void PrintCache(const CacheSpec& spec, const Presets& placements,
                const ParameterCounts& counts, int32_t context_tokens,
                const InspectOptions& options, std::ostream& out) {
  const int32_t short_tokens = std::max(1, context_tokens / 8);
  TextTable table(
      {{"placement"},
       {"parameters run", Align::kRight},
       {"per further token", Align::kRight},
       {absl::StrCat(WithThousands(short_tokens), " tokens"), Align::kRight},
       {absl::StrCat(WithThousands(context_tokens), " tokens"),
        Align::kRight}});
  for (const auto& [name, placement] : placements) {
    double per_token = 0;  // once every window is full
    for (int32_t layer = 0; layer < spec.num_layers(); ++layer) {
      const MixerCacheSpec& cache = spec.At(layer, placement[layer]);
      if (cache.kind == CacheKind::kBlocks && cache.ring_blocks == 0) {
        per_token += static_cast<double>(cache.unit_bytes) / spec.block_size();
      }
    }
    table.AddRow({name, HumanCount(ActiveParameters(counts, placement)),
                  HumanBytes(static_cast<int64_t>(per_token)),
                  HumanBytes(spec.SequenceBytes(placement, short_tokens)),
                  HumanBytes(spec.SequenceBytes(placement, context_tokens))});
  }
  out << "\nCache of one sequence on one rank of " << options.world_size
      << ", device " << options.device << "\n";
  table.Print(out);
}

}  // namespace

absl::Status Inspect(const InspectOptions& options, std::ostream& out) {
  if (options.model_dir.empty() == options.random_init.empty()) {
    return absl::InvalidArgumentError(
        "give either a model directory or --random-init");
  }
  const bool random = !options.random_init.empty();
  SY_ASSIGN_OR_RETURN(const ModelConfig config,
                      random ? NamedShape(options.random_init)
                             : LoadModelConfig(options.model_dir));
  std::vector<std::string> notices = config.notices;
  if (!random) {
    const auto checkpoint = Checkpoint::Open(options.model_dir, config);
    if (checkpoint.ok()) {
      const auto& more = (*checkpoint)->notices();
      notices.insert(notices.end(), more.begin(), more.end());
    } else if (absl::IsNotFound(checkpoint.status())) {
      notices.push_back(absl::StrCat("Described from config.json alone: ",
                                     checkpoint.status().message(), "."));
    } else {
      return checkpoint.status();
    }
  }

  CacheSpecOptions cache_options;
  cache_options.world_size = options.world_size;
  cache_options.block_size = options.block_size;
  cache_options.kv_element_bytes = ElementBytesOf(options.device).kv;
  SY_ASSIGN_OR_RETURN(const CacheSpec spec,
                      CacheSpec::Create(config, cache_options));

  Presets presets;
  if (!options.presets.empty()) {
    SY_ASSIGN_OR_RETURN(presets, LoadPresets(options.presets, config));
  }
  SY_ASSIGN_OR_RETURN(const PlacementTable table,
                      PlacementTable::Create(&config, presets, ""));
  Presets placements = table.presets();
  placements.emplace("(main)", Placement::Main(config));
  if (!options.placement.empty()) {
    SY_ASSIGN_OR_RETURN(const PlacementTable::Resolved resolved,
                        table.ResolveText(options.placement));
    placements.emplace("(--placement)", resolved.placement);
  }

  const ParameterCounts counts = CountParameters(config);
  PrintSummary(config, random ? options.random_init : options.model_dir, counts,
               out);
  for (const std::string& notice : notices) out << "  note: " << notice << "\n";
  PrintMixers(config, spec, counts, out);
  PrintWeights(config, options, out);
  PrintCache(spec, placements, counts,
             options.context_tokens > 0 ? options.context_tokens
                                        : config.max_position_embeddings,
             options, out);
  return absl::OkStatus();
}

int InspectCommand(absl::Span<const std::string> args) {
  InspectOptions options;
  FlagSet flags("switchyard inspect",
                "Tells what a model is made of and what it costs: layers, "
                "mixers, parameters, bytes per rank, cache bytes by placement.",
                "DIR [flags]");
  flags.Operand("DIR", &options.model_dir, "the checkpoint's directory",
                kOptional);
  flags.String("random-init", &options.random_init, "NAME",
               absl::StrCat("a named shape instead of a directory: ",
                            absl::StrJoin(NamedShapes(), ", ")));
  flags.Int("tensor-parallel-size", &options.world_size, 1, 1024,
            "ranks that the cache is counted for");
  flags.Choice("device", &options.device, {"cpu", "cuda"},
               "whose element sizes count in the cache: fp32 or bf16");
  flags.Int("block-size", &options.block_size, 1, 1024,
            "token positions in one KV block; a power of two");
  flags.Int("context-tokens", &options.context_tokens, 0, 1 << 30,
            "the longer of the two sequence lengths; 0: the model's context");
  flags.String("presets", &options.presets, "FILE",
               "a presets file whose placements to show too");
  flags.String("placement", &options.placement, "PRESET|a,b,...",
               "one more placement to show");
  if (std::optional<int> exit_code = flags.ParseOrExitCode(args)) {
    return *exit_code;
  }
  const absl::Status status = Inspect(options, std::cout);
  std::cout.flush();
  return status.ok() ? kExitOk : Fail("inspect", status);
}

}  // namespace switchyard
