// Named shapes with random weights, so that benchmarks need no checkpoint.
#ifndef SWITCHYARD_MODEL_RANDOM_INIT_H_
#define SWITCHYARD_MODEL_RANDOM_INIT_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/config.h"
#include "model/weight_source.h"

namespace switchyard {

// The names that NamedShape knows, for messages and --help.
std::vector<std::string> NamedShapes();

// The config of a named shape: "apriel2-15b", "apriel2-0.5b"; after a colon the
// only mixers it is to have, "apriel2-15b:attention,gdn", where the whole
// supernet would leave too little memory for a cache. NotFound lists the names,
// or the mixers, there are.
absl::StatusOr<ModelConfig> NamedShape(absl::string_view name);

// Plausible initial weights: a pure function of seed, tensor name and element,
// so every rank's slices belong to one and the same model. Matrices are cut out
// of one long run of random values for each scale, at places that depend on the
// tensor: as fast as memory is copied, for all of a 15B model's 46 GiB.
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
  // By half-width: uniform values in [-half-width, half-width), bf16.
  std::map<float, std::vector<uint16_t>> pools_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_MODEL_RANDOM_INIT_H_
