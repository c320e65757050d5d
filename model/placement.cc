#include "model/placement.h"

#include <algorithm>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/check.h"
#include "kernels/status.h"

namespace switchyard {
namespace {

// Bytes of a name that a message repeats; the caller may have sent any number.
constexpr size_t kMaxShownName = 128;

absl::Status CheckLength(const ModelConfig& config, size_t length) {
  if (length == config.layers.size()) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("a placement of this model must name ", config.layers.size(),
                   " mixers, one per layer; it names ", length));
}

std::string Options(const LayerConfig& layer) {
  return absl::StrJoin(layer.mixers, ", ",
                       [](std::string* out, const MixerConfig& mixer) {
                         absl::StrAppend(out, mixer.name);
                       });
}

}  // namespace

Placement Placement::Main(const ModelConfig& config) {
  std::vector<int32_t> mixers;
  mixers.reserve(config.layers.size());
  for (const LayerConfig& layer : config.layers) {
    mixers.push_back(layer.main_mixer);
  }
  return Placement(std::move(mixers));
}

absl::StatusOr<Placement> Placement::FromNames(
    const ModelConfig& config, absl::Span<const std::string> names) {
  SY_RETURN_IF_ERROR(CheckLength(config, names.size()));
  std::vector<int32_t> mixers;
  mixers.reserve(names.size());
  for (size_t i = 0; i < names.size(); ++i) {
    const LayerConfig& layer = config.layers[i];
    const auto it = std::find_if(
        layer.mixers.begin(), layer.mixers.end(),
        [&](const MixerConfig& mixer) { return mixer.name == names[i]; });
    if (it == layer.mixers.end()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "layer ", i, " has no mixer \"",
          absl::Utf8SafeCHexEscape(names[i].substr(0, kMaxShownName)),
          names[i].size() > kMaxShownName ? "..." : "", "\"; it has ",
          Options(layer)));
    }
    mixers.push_back(static_cast<int32_t>(it - layer.mixers.begin()));
  }
  return Placement(std::move(mixers));
}

absl::StatusOr<Placement> Placement::FromIndices(
    const ModelConfig& config, absl::Span<const int32_t> mixers) {
  SY_RETURN_IF_ERROR(CheckLength(config, mixers.size()));
  for (size_t i = 0; i < mixers.size(); ++i) {
    const auto num_mixers =
        static_cast<int32_t>(config.layers[i].mixers.size());
    if (mixers[i] < 0 || mixers[i] >= num_mixers) {
      return absl::FailedPreconditionError(
          absl::StrCat("layer ", i, " has no mixer ", mixers[i], "; it has ",
                       num_mixers, " (", Options(config.layers[i]), ")"));
    }
  }
  return Placement(std::vector<int32_t>(mixers.begin(), mixers.end()));
}

std::vector<std::string> Placement::Names(const ModelConfig& config) const {
  SY_CHECK(mixers_.size() == config.layers.size());
  std::vector<std::string> names;
  names.reserve(mixers_.size());
  for (size_t i = 0; i < mixers_.size(); ++i) {
    names.push_back(config.layers[i].mixers[mixers_[i]].name);
  }
  return names;
}

}  // namespace switchyard
