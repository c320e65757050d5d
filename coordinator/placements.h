// The placements the server offers by name: the default, the presets, and the
// epoch that numbers their changes.
//
// A value without I/O of its own; the engine's thread owns it and changes it at
// step boundaries. Every change makes the epoch one larger, the first epoch is
// 1. A sequence carries the placement it was resolved to, so no change here
// touches a sequence in flight.
//
// Every mixer name that all layers offer is a preset from the start, named
// all-NAME ("all-gdn"), unless the presets file defines that name itself.
//
// A preset means what it was last defined as by Define, else by the presets
// file, else by its name all-NAME.
#ifndef SWITCHYARD_COORDINATOR_PLACEMENTS_H_
#define SWITCHYARD_COORDINATOR_PLACEMENTS_H_

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/config.h"
#include "model/placement.h"
#include "switchyard/v1/generation.pb.h"

namespace switchyard {

using Presets = std::map<std::string, Placement>;

// Reads a presets file, in which a preset is a list of one name per layer, or
// the name that every layer has:
//   {"presets": {"quality": ["attention", "gdn", ...], "fast": "gdn"}}
// Errors name the file and the preset: NotFound (no such file), InvalidArgument
// (not this format, a name twice, a name ValidatePresetName refuses),
// FailedPrecondition (does not fit the model).
absl::StatusOr<Presets> LoadPresets(const std::string& path,
                                    const ModelConfig& config);
// The text of a presets file. NotFound names it, and why it cannot be read.
absl::StatusOr<std::string> ReadPresetsFile(const std::string& path);
// The presets of a file's text; `file_name` stands for it in messages.
absl::StatusOr<Presets> ParsePresets(absl::string_view json,
                                     absl::string_view file_name,
                                     const ModelConfig& config);

// InvalidArgument unless `name` is 1 to 128 printable ASCII characters without
// spaces and commas.
absl::Status ValidatePresetName(absl::string_view name);

// all-NAME for every mixer name that all layers offer.
Presets UniformPresets(const ModelConfig& config);

class PlacementTable {
 public:
  struct Resolved {
    Placement placement;
    std::string preset;  // the name it came by; empty: listed mixer by mixer
  };

  // `presets` join, and win over, the uniform ones. `default_text` is the
  // default in ResolveText's notation; empty: the model's main placement.
  // Errors as ResolveText. `config` is borrowed and must outlive the table.
  static absl::StatusOr<PlacementTable> Create(const ModelConfig* config,
                                               Presets presets,
                                               absl::string_view default_text);

  // A request's placement. NotFound: no such preset. FailedPrecondition: the
  // list does not fit the model. InvalidArgument: neither preset nor list.
  absl::StatusOr<Resolved> Resolve(const v1::Placement& placement) const;
  // The command line's notation: a preset's name, or mixer names separated by
  // commas, one per layer. Errors as Resolve.
  absl::StatusOr<Resolved> ResolveText(absl::string_view text) const;

  // What a new presets file changed, by name.
  struct FileChange {
    std::vector<std::string> added;
    std::vector<std::string> changed;
    std::vector<std::string> removed;
    // The file says something else than Define did, which stands.
    std::vector<std::string> overridden;
    // The preset that the default was set from means something else now; the
    // default stays what it is and has no name any more. Empty: not so.
    std::string former_default;

    bool any() const {
      return !added.empty() || !changed.empty() || !removed.empty();
    }
  };

  // The new epoch, each.
  uint64_t SetDefault(Resolved placement);
  // Adds or replaces. Errors as ValidatePresetName.
  absl::StatusOr<uint64_t> Define(absl::string_view name, Placement placement);
  // The same for DefinePreset, whose fields the errors name; FailedPrecondition
  // if the mixers do not fit the model.
  absl::StatusOr<uint64_t> Define(const std::string& name,
                                  const v1::MixerList& mixers);
  // NotFound if there is none. The default stays what it is, even if it came
  // from this preset; it then has no name any more.
  absl::StatusOr<uint64_t> Delete(absl::string_view name);
  // Takes what the presets file says now in place of what it said before. One
  // change of the epoch, or none if nothing changes. FailedPrecondition,
  // changing nothing: the preset that the default was set from is gone.
  absl::StatusOr<FileChange> ReplaceFilePresets(Presets presets);

  uint64_t epoch() const { return epoch_; }
  const Placement& default_placement() const { return default_.placement; }
  // The preset the default was set from, as long as that means the same.
  const std::string& default_preset() const { return default_.preset; }
  const Presets& presets() const { return presets_; }

  v1::MixerList ToProto(const Placement& placement) const;
  // What metrics and logs call it: the preset it came by, else the first that
  // means the same, else `main` for the checkpoint's own, else `custom`.
  std::string NameOf(const Resolved& placement) const;
  std::string default_name() const { return NameOf(default_); }

 private:
  PlacementTable(const ModelConfig* config, Presets presets);
  absl::StatusOr<Resolved> ResolvePreset(absl::string_view name) const;

  const ModelConfig* config_;
  Presets presets_;
  Presets file_presets_;           // what the presets file says
  std::set<std::string> defined_;  // names whose meaning is Define's
  Resolved default_;
  uint64_t epoch_ = 1;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_PLACEMENTS_H_
