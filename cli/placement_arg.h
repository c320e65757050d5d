// The command line's notation of a placement: a preset's name, or mixer names
// separated by commas, one per layer.
#ifndef SWITCHYARD_CLI_PLACEMENT_ARG_H_
#define SWITCHYARD_CLI_PLACEMENT_ARG_H_

#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "switchyard/v1/generation.pb.h"

namespace switchyard {

inline v1::Placement PlacementFromArgument(absl::string_view text) {
  v1::Placement placement;
  if (text.find(',') == absl::string_view::npos) {
    placement.set_preset(text.data(), text.size());
    return placement;
  }
  for (absl::string_view name : absl::StrSplit(text, ',')) {
    placement.mutable_mixers()->add_names(name.data(), name.size());
  }
  return placement;
}

}  // namespace switchyard

#endif  // SWITCHYARD_CLI_PLACEMENT_ARG_H_
