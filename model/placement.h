// A placement: which mixer runs in each layer.
//
// An immutable value, compared and hashed by its indices. A Placement can only
// be made against a ModelConfig, so whoever holds one of the same model may
// index the config with it unchecked. Thread-safe as any const value.
#ifndef SWITCHYARD_MODEL_PLACEMENT_H_
#define SWITCHYARD_MODEL_PLACEMENT_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/config.h"

namespace switchyard {

class Placement {
 public:
  // No layers; equal to no placement of a model. For members filled in later.
  Placement() = default;

  // The checkpoint's own choice: every layer's main mixer.
  static Placement Main(const ModelConfig& config);

  // One mixer name per layer. FailedPrecondition names the wrong length, or the
  // first layer whose mixer is unknown with the names it offers.
  static absl::StatusOr<Placement> FromNames(
      const ModelConfig& config, absl::Span<const std::string> names);

  // One index into each layer's mixers. Errors as FromNames.
  static absl::StatusOr<Placement> FromIndices(
      const ModelConfig& config, absl::Span<const int32_t> mixers);

  // REQUIRES: made against `config`.
  std::vector<std::string> Names(const ModelConfig& config) const;

  int32_t num_layers() const { return static_cast<int32_t>(mixers_.size()); }
  // The index of `layer`'s mixer. REQUIRES: 0 <= layer < num_layers().
  int32_t operator[](int32_t layer) const { return mixers_[layer]; }
  absl::Span<const int32_t> mixers() const { return mixers_; }

  friend bool operator==(const Placement& a, const Placement& b) {
    return a.mixers_ == b.mixers_;
  }
  friend bool operator!=(const Placement& a, const Placement& b) {
    return !(a == b);
  }
  friend bool operator<(const Placement& a, const Placement& b) {
    return a.mixers_ < b.mixers_;
  }
  template <typename H>
  friend H AbslHashValue(H state, const Placement& placement) {
    return H::combine(std::move(state), placement.mixers_);
  }

 private:
  explicit Placement(std::vector<int32_t> mixers)
      : mixers_(std::move(mixers)) {}

  std::vector<int32_t> mixers_;  // one per layer
};

}  // namespace switchyard

#endif  // SWITCHYARD_MODEL_PLACEMENT_H_
