// Keeps the presets as the presets file says while the server runs: an edited
// file, or a ConfigMap that Kubernetes has swapped, takes effect by itself.
#ifndef SWITCHYARD_COORDINATOR_PRESETS_WATCHER_H_
#define SWITCHYARD_COORDINATOR_PRESETS_WATCHER_H_

#include <functional>
#include <optional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "coordinator/placements.h"
#include "log/log.h"
#include "model/config.h"

namespace switchyard {

// Compares the file's content now and then: unlike its times or events of its
// folder, content does not lie, whether the file is written in place, renamed
// over, reached through symbolic links that change, or on a network.
//
// A file that cannot be read or is not valid changes nothing and is reported
// once, as a warning. One that only the present default placement stands
// against is tried again at every look. A content counts when it is seen twice
// in a row, so that a file that is being written is left alone.
class PresetsWatcher {
 public:
  // Makes the presets the file's; see PlacementTable::ReplaceFilePresets.
  using Apply =
      std::function<absl::StatusOr<PlacementTable::FileChange>(Presets)>;
  using Report = std::function<void(LogLevel level, absl::string_view line)>;

  // Looks nowhere yet. `config` is borrowed.
  PresetsWatcher(std::string path, const ModelConfig* config, Apply apply,
                 Report report);
  ~PresetsWatcher();  // Stop()
  PresetsWatcher(const PresetsWatcher&) = delete;
  PresetsWatcher& operator=(const PresetsWatcher&) = delete;

  // One look. REQUIRES: not started, or from its own thread.
  void Look();

  // Looks every `interval` on a thread of its own. REQUIRES: called once.
  void Start(absl::Duration interval);
  // Waits for a look under way. Idempotent.
  void Stop();

 private:
  // What the file holds, or why it cannot be read.
  struct Content {
    std::string text;
    std::string error;
    bool operator==(const Content& other) const {
      return text == other.text && error == other.error;
    }
  };

  Content Read() const;
  void Take(const Content& content);

  const std::string path_;
  const ModelConfig* const config_;
  const Apply apply_;
  const Report report_;

  // The looking thread's.
  std::optional<Content> seen_;   // at the last look
  std::optional<Content> taken_;  // the last that counted
  std::string refusal_;           // why it was not applied; empty: it was

  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_PRESETS_WATCHER_H_
