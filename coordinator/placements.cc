#include "coordinator/placements.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "kernels/check.h"
#include "kernels/status.h"
#include "model/strict_json.h"

namespace switchyard {
namespace {

constexpr size_t kMaxPresetNameLength = 128;

// An error that lists the presets lists at most so many.
constexpr size_t kMaxListedPresets = 12;

absl::Status WithPrefix(absl::string_view prefix, const absl::Status& status) {
  return absl::Status(status.code(),
                      absl::StrCat(prefix, ": ", status.message()));
}

absl::StatusOr<Placement> ParsePreset(const nlohmann::json& value,
                                      const ModelConfig& config) {
  if (value.is_string()) {
    return Placement::FromNames(
        config, std::vector<std::string>(config.num_layers(),
                                         value.get<std::string>()));
  }
  std::vector<std::string> names;
  if (value.is_array()) {
    for (const nlohmann::json& name : value) {
      if (!name.is_string()) break;
      names.push_back(name.get<std::string>());
    }
  }
  if (!value.is_array() || names.size() != value.size()) {
    return absl::InvalidArgumentError(
        "must be a list of mixer names, one per layer, or one mixer name for "
        "all layers");
  }
  return Placement::FromNames(config, names);
}

}  // namespace

absl::Status ValidatePresetName(absl::string_view name) {
  bool valid = !name.empty() && name.size() <= kMaxPresetNameLength;
  for (const char c : name) valid = valid && c > ' ' && c <= '~' && c != ',';
  if (valid) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "a preset's name must be 1 to ", kMaxPresetNameLength,
      " printable ASCII characters without spaces and commas; it is \"",
      Printable(name.substr(0, kMaxPresetNameLength)), "\""));
}

absl::StatusOr<Presets> ParsePresets(absl::string_view json,
                                     absl::string_view file_name,
                                     const ModelConfig& config) {
  SY_ASSIGN_OR_RETURN(const nlohmann::json root,
                      ParseJsonObject(json, file_name));
  for (const auto& [key, value] : root.items()) {
    if (key != "presets") {
      return absl::InvalidArgumentError(
          absl::StrCat(file_name, ": unknown field \"", Printable(key),
                       "\"; the only one is \"presets\""));
    }
  }
  const auto listed = root.find("presets");
  if (listed == root.end() || !listed->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(
        file_name,
        ": \"presets\" must be an object that maps names to placements"));
  }
  Presets presets;
  for (const auto& [name, value] : listed->items()) {
    const std::string where =
        absl::StrCat(file_name, ": preset \"", Printable(name), "\"");
    if (const absl::Status status = ValidatePresetName(name); !status.ok()) {
      return WithPrefix(where, status);
    }
    absl::StatusOr<Placement> placement = ParsePreset(value, config);
    if (!placement.ok()) return WithPrefix(where, placement.status());
    presets.emplace(name, *std::move(placement));
  }
  return presets;
}

absl::StatusOr<std::string> ReadPresetsFile(const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  // Copying nothing is a failure too; an empty file is the parser's to refuse.
  if (!file.is_open() || (text.fail() && errno != 0)) {
    return absl::NotFoundError(absl::StrCat(
        path, ": cannot read the presets: ", std::strerror(errno)));
  }
  return text.str();
}

absl::StatusOr<Presets> LoadPresets(const std::string& path,
                                    const ModelConfig& config) {
  SY_ASSIGN_OR_RETURN(const std::string text, ReadPresetsFile(path));
  return ParsePresets(text, path, config);
}

Presets UniformPresets(const ModelConfig& config) {
  Presets presets;
  if (config.layers.empty()) return presets;
  for (const MixerConfig& mixer : config.layers.front().mixers) {
    const auto placement = Placement::FromNames(
        config, std::vector<std::string>(config.num_layers(), mixer.name));
    if (placement.ok()) {
      presets.emplace(absl::StrCat("all-", mixer.name), *placement);
    }
  }
  return presets;
}

PlacementTable::PlacementTable(const ModelConfig* config, Presets presets)
    : config_(config), presets_(presets), file_presets_(std::move(presets)) {
  // Keeps what is there: the operator's own names win.
  presets_.merge(UniformPresets(*config));
  default_.placement = Placement::Main(*config);
}

absl::StatusOr<PlacementTable> PlacementTable::Create(
    const ModelConfig* config, Presets presets,
    absl::string_view default_text) {
  PlacementTable table(config, std::move(presets));
  if (!default_text.empty()) {
    SY_ASSIGN_OR_RETURN(table.default_, table.ResolveText(default_text));
  }
  return table;
}

absl::StatusOr<PlacementTable::Resolved> PlacementTable::ResolvePreset(
    absl::string_view name) const {
  const auto it = presets_.find(std::string(name));
  if (it != presets_.end()) return Resolved{it->second, it->first};
  const size_t num_listed = std::min(presets_.size(), kMaxListedPresets);
  std::string known =
      presets_.empty()
          ? "none"
          : absl::StrJoin(presets_.begin(),
                          std::next(presets_.begin(), num_listed), ", ",
                          [](std::string* out, const auto& preset) {
                            absl::StrAppend(out, preset.first);
                          });
  if (num_listed < presets_.size()) {
    absl::StrAppend(&known, " and ", presets_.size() - num_listed, " more");
  }
  return absl::NotFoundError(absl::StrCat(
      "no preset \"", Printable(name.substr(0, kMaxPresetNameLength)),
      "\"; there are ", known));
}

absl::StatusOr<PlacementTable::Resolved> PlacementTable::Resolve(
    const v1::Placement& placement) const {
  if (placement.kind_case() == v1::Placement::kPreset) {
    auto resolved = ResolvePreset(placement.preset());
    if (!resolved.ok()) {
      return WithPrefix("placement.preset", resolved.status());
    }
    return resolved;
  }
  if (placement.kind_case() == v1::Placement::kMixers) {
    const auto& names = placement.mixers().names();
    auto listed = Placement::FromNames(
        *config_, std::vector<std::string>(names.begin(), names.end()));
    if (!listed.ok()) {
      return WithPrefix("placement.mixers", listed.status());
    }
    return Resolved{*std::move(listed), ""};
  }
  return absl::InvalidArgumentError(
      "placement: names neither a preset nor mixers");
}

absl::StatusOr<PlacementTable::Resolved> PlacementTable::ResolveText(
    absl::string_view text) const {
  const std::vector<std::string> names = absl::StrSplit(text, ',');
  if (names.size() == 1) {
    auto preset = ResolvePreset(text);
    // A model of one layer has lists of one name.
    if (preset.ok() || config_->num_layers() != 1) return preset;
  }
  SY_ASSIGN_OR_RETURN(Placement placement,
                      Placement::FromNames(*config_, names));
  return Resolved{std::move(placement), ""};
}

uint64_t PlacementTable::SetDefault(Resolved placement) {
  SY_CHECK(placement.placement.num_layers() == config_->num_layers());
  default_ = std::move(placement);
  return ++epoch_;
}

absl::StatusOr<uint64_t> PlacementTable::Define(absl::string_view name,
                                                Placement placement) {
  SY_RETURN_IF_ERROR(ValidatePresetName(name));
  SY_CHECK(placement.num_layers() == config_->num_layers());
  if (default_.preset == name && default_.placement != placement) {
    default_.preset.clear();
  }
  presets_.insert_or_assign(std::string(name), std::move(placement));
  defined_.insert(std::string(name));
  return ++epoch_;
}

absl::StatusOr<uint64_t> PlacementTable::Define(const std::string& name,
                                                const v1::MixerList& mixers) {
  if (const absl::Status valid = ValidatePresetName(name); !valid.ok()) {
    return WithPrefix("preset.name", valid);
  }
  absl::StatusOr<Placement> placement = Placement::FromNames(
      *config_,
      std::vector<std::string>(mixers.names().begin(), mixers.names().end()));
  if (!placement.ok()) {
    return WithPrefix("preset.placement", placement.status());
  }
  return Define(name, *std::move(placement));
}

absl::StatusOr<uint64_t> PlacementTable::Delete(absl::string_view name) {
  SY_RETURN_IF_ERROR(ResolvePreset(name).status());
  presets_.erase(std::string(name));
  defined_.erase(std::string(name));
  if (default_.preset == name) default_.preset.clear();
  return ++epoch_;
}

std::string PlacementTable::NameOf(const Resolved& placement) const {
  if (!placement.preset.empty()) return placement.preset;
  for (const auto& [name, preset] : presets_) {
    if (preset == placement.placement) return name;
  }
  return placement.placement == Placement::Main(*config_) ? "main" : "custom";
}

absl::StatusOr<PlacementTable::FileChange> PlacementTable::ReplaceFilePresets(
    Presets presets) {
  FileChange change;
  Presets next = presets_;
  const Presets uniform = UniformPresets(*config_);
  for (const auto& [name, before] : file_presets_) {
    if (presets.count(name) > 0 || defined_.count(name) > 0) continue;
    const auto fallback = uniform.find(name);
    if (fallback != uniform.end()) {
      if (next.insert_or_assign(name, fallback->second).first->second !=
          before) {
        change.changed.push_back(name);
      }
    } else if (next.erase(name) > 0) {
      change.removed.push_back(name);
    }
  }
  for (const auto& [name, placement] : presets) {
    const auto present = next.find(name);
    if (present == next.end()) {
      next.emplace(name, placement);
      change.added.push_back(name);
    } else if (present->second != placement) {
      if (defined_.count(name) > 0) {
        change.overridden.push_back(name);
      } else {
        present->second = placement;
        change.changed.push_back(name);
      }
    }
  }
  if (!default_.preset.empty()) {
    const auto named = next.find(default_.preset);
    if (named == next.end()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "preset \"", default_.preset,
          "\" is gone, and the default placement was set from it; set another "
          "default first, or keep the preset"));
    }
    if (named->second != default_.placement) {
      change.former_default = std::exchange(default_.preset, "");
    }
  }
  presets_ = std::move(next);
  file_presets_ = std::move(presets);
  if (change.any()) ++epoch_;
  return change;
}

v1::MixerList PlacementTable::ToProto(const Placement& placement) const {
  v1::MixerList list;
  for (std::string& name : placement.Names(*config_)) {
    list.add_names(std::move(name));
  }
  return list;
}

}  // namespace switchyard
