#include "coordinator/presets_watcher.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace switchyard {
namespace {

std::string Describe(const PlacementTable::FileChange& change) {
  std::vector<std::string> parts;
  const auto add = [&parts](absl::string_view what,
                            const std::vector<std::string>& names) {
    if (names.empty()) return;
    parts.push_back(absl::StrCat(what, " ", absl::StrJoin(names, ", ")));
  };
  add("added", change.added);
  add("changed", change.changed);
  add("removed", change.removed);
  return absl::StrJoin(parts, "; ");
}

}  // namespace

PresetsWatcher::PresetsWatcher(std::string path, const ModelConfig* config,
                               Apply apply, Report report)
    : path_(std::move(path)),
      config_(config),
      apply_(std::move(apply)),
      report_(std::move(report)) {}

PresetsWatcher::~PresetsWatcher() { Stop(); }

PresetsWatcher::Content PresetsWatcher::Read() const {
  absl::StatusOr<std::string> text = ReadPresetsFile(path_);
  if (text.ok()) return {*std::move(text), ""};
  return {"", std::string(text.status().message())};
}

void PresetsWatcher::Look() {
  Content content = Read();
  const bool settled = seen_ == content;
  seen_ = std::move(content);
  if (!settled || (taken_ == seen_ && refusal_.empty())) return;
  taken_ = seen_;
  Take(*taken_);
}

void PresetsWatcher::Take(const Content& content) {
  const auto keep = [this](absl::string_view why) {
    report_(LogLevel::kWarning,
            absl::StrCat("the presets stay as they were: ", why));
  };
  const std::string refused_before = std::exchange(refusal_, "");
  if (!content.error.empty()) return keep(content.error);
  absl::StatusOr<Presets> presets = ParsePresets(content.text, path_, *config_);
  if (!presets.ok()) return keep(presets.status().message());
  const auto change = apply_(*std::move(presets));
  if (!change.ok()) {
    refusal_ = absl::StrCat(path_, ": ", change.status().message());
    if (refusal_ != refused_before) keep(refusal_);
    return;
  }
  if (change->any()) {
    report_(LogLevel::kInfo,
            absl::StrCat(path_, " has changed: ", Describe(*change)));
  }
  if (!change->overridden.empty()) {
    report_(LogLevel::kWarning,
            absl::StrCat(path_, ": what DefinePreset made stands for ",
                         absl::StrJoin(change->overridden, ", "),
                         "; delete it and change the file to have its own"));
  }
  if (!change->former_default.empty()) {
    report_(
        LogLevel::kWarning,
        absl::StrCat(path_, ": preset \"", change->former_default,
                     "\", which the default placement was set from, means "
                     "something else now; the default stays as it is until it "
                     "is set again"));
  }
}

void PresetsWatcher::Start(absl::Duration interval) {
  thread_ = std::thread([this, interval] {
    for (;;) {
      {
        absl::MutexLock lock(&mutex_);
        if (mutex_.AwaitWithTimeout(absl::Condition(&stopping_), interval)) {
          return;
        }
      }
      Look();
    }
  });
}

void PresetsWatcher::Stop() {
  if (!thread_.joinable()) return;
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

}  // namespace switchyard
