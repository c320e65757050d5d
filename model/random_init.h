// Named shapes with random weights, so that benchmarks need no checkpoint.
#ifndef SWITCHYARD_MODEL_RANDOM_INIT_H_
#define SWITCHYARD_MODEL_RANDOM_INIT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/config.h"
#include "model/weight_source.h"

namespace switchyard {

// The names that NamedShape knows, for messages and --help.
std::vector<std::string> NamedShapes();

// The config of a named shape: "apriel2-15b", "apriel2-0.5b". NotFound lists
// the names there are.
absl::StatusOr<ModelConfig> NamedShape(absl::string_view name);

// Plausible initial weights: a pure function of seed, tensor name and element,
// so every rank's slices belong to one and the same model.
class RandomWeights : public WeightSource {
 public:
  explicit RandomWeights(const ModelConfig& config, uint64_t seed = 0);

  // As checkpoints of this family are stored: matrices in bf16.
  DType StoredType(const TensorSpec& spec) const override;
  absl::Status ReadInto(const TensorSpec& spec, int32_t rank,
                        int32_t world_size,
                        const MatrixView& out) const override;

 private:
  const uint64_t seed_;
  const int32_t num_layers_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_MODEL_RANDOM_INIT_H_
