#include "cli/prune.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <system_error>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/text_table.h"
#include "coordinator/placements.h"
#include "kernels/check.h"
#include "kernels/status.h"
#include "model/checkpoint.h"
#include "model/safetensors_writer.h"
#include "model/strict_json.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

absl::Status FileError(absl::string_view what, const fs::path& path,
                       const std::error_code& error) {
  return absl::FailedPreconditionError(
      absl::StrCat("cannot ", what, " ", path.string(), ": ", error.message()));
}

absl::Status MakeEmptyDirectory(const fs::path& dir) {
  std::error_code error;
  fs::create_directories(dir, error);
  if (error) return FileError("create", dir, error);
  const bool empty = fs::is_empty(dir, error);
  if (error) return FileError("read", dir, error);
  if (!empty) {
    return absl::AlreadyExistsError(
        absl::StrCat(dir.string(), " must be empty or not exist"));
  }
  return absl::OkStatus();
}

// The block of config.json that layer `layer` is described by.
std::string BlockName(const Json& decoder, int32_t layer) {
  const Json& pattern = decoder["pattern"];
  return pattern[layer % pattern.size()].get<std::string>();
}

// Block and mixer of a layer, in one word that can name a block.
struct PrunedBlock {
  std::string name;
  Json json;
};

PrunedBlock PruneBlock(const Json& decoder, bool is_pattern,
                       const LayerConfig& layer, int32_t layer_id,
                       int32_t mixer_id) {
  PrunedBlock pruned;
  if (is_pattern) {
    pruned.name = BlockName(decoder, layer_id);
    pruned.json = decoder["blocks"][pruned.name];
  } else {
    pruned.json = decoder["block"];
  }
  if (layer.stochastic) {
    const std::string& mixer = layer.mixers[mixer_id].name;
    Json chosen = pruned.json["mixer"]["mixers"][mixer];
    pruned.json["mixer"] = std::move(chosen);
    pruned.name = is_pattern ? absl::StrCat(pruned.name, "-", mixer) : mixer;
  }
  return pruned;
}

// The shortest cycle that repeats to `names`.
std::vector<std::string> Cycle(const std::vector<std::string>& names) {
  for (size_t period = 1; period < names.size(); ++period) {
    bool repeats = true;
    for (size_t i = period; i < names.size() && repeats; ++i) {
      repeats = names[i] == names[i - period];
    }
    if (repeats) {
      return std::vector<std::string>(names.begin(), names.begin() + period);
    }
  }
  return names;
}

// The decoder with the placement's mixers alone. REQUIRES: `decoder` is that of
// `config`, which accepted it.
Json PruneDecoder(const Json& decoder, const ModelConfig& config,
                  const Placement& placement) {
  const bool is_pattern = decoder.value("type", "fixed") == "pattern";
  Json blocks = Json::object();
  std::vector<std::string> names;
  for (int32_t i = 0; i < config.num_layers(); ++i) {
    PrunedBlock block =
        PruneBlock(decoder, is_pattern, config.layers[i], i, placement[i]);
    names.push_back(block.name);
    blocks[block.name] = std::move(block.json);
  }
  const std::vector<std::string> cycle = Cycle(names);
  Json pruned;
  pruned["type"] = cycle.size() == 1 ? "fixed" : "pattern";
  pruned["num_blocks"] = config.num_layers();
  if (cycle.size() == 1) {
    pruned["block"] = blocks[cycle[0]];
  } else {
    pruned["blocks"] = blocks;
    pruned["pattern"] = cycle;
  }
  return pruned;
}

absl::StatusOr<std::string> ReadText(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(file)), {});
  if (!file) {
    return absl::FailedPreconditionError(
        absl::StrCat("cannot read ", path.string()));
  }
  return text;
}

absl::Status WriteText(const fs::path& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (file) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("cannot write ", path.string()));
}

// Everything beside the config and the weights: tokenizer, chat template,
// generation_config.json, model code.
absl::Status CopyOtherFiles(const fs::path& from, const fs::path& to) {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(from, error)) {
    const std::string name = entry.path().filename().string();
    const std::string extension = entry.path().extension().string();
    const bool is_weights = extension == ".safetensors" ||
                            extension == ".bin" || extension == ".pt" ||
                            extension == ".pth" || extension == ".gguf" ||
                            absl::EndsWith(name, ".safetensors.index.json");
    if (!entry.is_regular_file() || is_weights || name == "config.json") {
      continue;
    }
    fs::copy_file(entry.path(), to / name, error);
    if (error) return FileError("copy", entry.path(), error);
  }
  if (error) return FileError("read", from, error);
  return absl::OkStatus();
}

// The tensors of `pruned` under their new names, and those serving leaves out
// (the vision encoder's) under their own.
TensorMap PruneTensors(const Checkpoint& checkpoint, const ModelConfig& config,
                       const Placement& placement, const ModelConfig& pruned) {
  std::map<std::string, const SafetensorsModel::Entry*> rest;
  for (const auto& [name, entry] : checkpoint.files().tensors()) {
    rest.emplace(name, &entry);
  }
  // Both enumerations go through the layers in the same order.
  std::vector<std::string> old_names;
  for (const TensorSpec& spec : EnumerateTensors(config)) {
    rest.erase(spec.name);
    if (spec.mixer < 0 || placement[spec.layer] == spec.mixer) {
      old_names.push_back(spec.name);
    }
  }
  const std::vector<TensorSpec> new_specs = EnumerateTensors(pruned);
  SY_CHECK(old_names.size() == new_specs.size());
  TensorMap tensors;
  for (size_t i = 0; i < new_specs.size(); ++i) {
    const TensorView& view = checkpoint.files().Find(old_names[i])->view;
    SY_CHECK(view.shape == new_specs[i].shape);
    tensors.emplace(new_specs[i].name, view);
  }
  for (const auto& [name, entry] : rest) tensors.emplace(name, entry->view);
  return tensors;
}

}  // namespace

absl::Status Prune(const PruneOptions& options, std::ostream& out) {
  SY_ASSIGN_OR_RETURN(const ModelConfig config,
                      LoadModelConfig(options.model_dir));
  SY_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint,
                      Checkpoint::Open(options.model_dir, config));
  Presets presets;
  if (!options.presets.empty()) {
    SY_ASSIGN_OR_RETURN(presets, LoadPresets(options.presets, config));
  }
  SY_ASSIGN_OR_RETURN(const PlacementTable table,
                      PlacementTable::Create(&config, std::move(presets), ""));
  SY_ASSIGN_OR_RETURN(const PlacementTable::Resolved resolved,
                      table.ResolveText(options.placement));
  const Placement& placement = resolved.placement;

  const fs::path from = options.model_dir, to = options.out_dir;
  SY_ASSIGN_OR_RETURN(const std::string text, ReadText(from / "config.json"));
  SY_ASSIGN_OR_RETURN(
      Json json, ParseOrderedJsonObject(text, (from / "config.json").string()));
  json["decoder"] = PruneDecoder(json["decoder"], config, placement);
  const std::string pruned_text = json.dump(2) + "\n";
  SY_ASSIGN_OR_RETURN(
      const ModelConfig pruned,
      ParseModelConfig(pruned_text, "", (to / "config.json").string()));

  SY_RETURN_IF_ERROR(MakeEmptyDirectory(to));
  SY_RETURN_IF_ERROR(CopyOtherFiles(from, to));
  SY_RETURN_IF_ERROR(
      WriteSafetensors((to / "model.safetensors").string(),
                       PruneTensors(*checkpoint, config, placement, pruned)));
  SY_RETURN_IF_ERROR(WriteText(to / "config.json", pruned_text));

  SY_ASSIGN_OR_RETURN(const ModelConfig written,
                      LoadModelConfig(options.out_dir));
  SY_RETURN_IF_ERROR(Checkpoint::Open(options.out_dir, written).status());
  out << "wrote " << options.out_dir << ": "
      << HumanCount(NumParameters(written)) << " of "
      << HumanCount(NumParameters(config)) << " parameters\n";
  return absl::OkStatus();
}

int PruneCommand(absl::Span<const std::string> args) {
  PruneOptions options;
  FlagSet flags("switchyard prune",
                "Extracts a checkpoint with one fixed placement from a "
                "supernet, in HF format.",
                "DIR OUT --placement PRESET|a,b,... [flags]");
  flags.Operand("DIR", &options.model_dir, "the supernet's directory");
  flags.Operand("OUT", &options.out_dir,
                "the directory to write; it must be empty or not exist");
  flags.String("placement", &options.placement, "PRESET|a,b,...",
               "the mixers to keep: a preset (all-gdn, ...), or one name per "
               "layer",
               kRequired);
  flags.String("presets", &options.presets, "FILE",
               "a presets file whose names --placement may use");
  if (std::optional<int> exit_code = flags.ParseOrExitCode(args)) {
    return *exit_code;
  }
  const absl::Status status = Prune(options, std::cout);
  std::cout.flush();
  return status.ok() ? kExitOk : Fail("prune", status);
}

}  // namespace switchyard
