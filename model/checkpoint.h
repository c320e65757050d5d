// A checkpoint directory's weights, checked against the model's config.
#ifndef SWITCHYARD_MODEL_CHECKPOINT_H_
#define SWITCHYARD_MODEL_CHECKPOINT_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/config.h"
#include "model/safetensors.h"
#include "model/weight_source.h"

namespace switchyard {

// Immutable after Open; holds the files mapped for as long as it lives.
class Checkpoint : public WeightSource {
 public:
  // Opens DIR/model.safetensors, or the shards of
  // DIR/model.safetensors.index.json, and compares them with the config.
  // NotFound: neither file is there. InvalidArgument: a broken file (see
  // safetensors.h), or a tensor that is missing, not of this model, or of the
  // wrong shape or type; the message names file and tensor.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(
      const std::string& model_dir, const ModelConfig& config);

  DType StoredType(const TensorSpec& spec) const override;
  absl::Status ReadInto(const TensorSpec& spec, int32_t rank,
                        int32_t world_size,
                        const MatrixView& out) const override;

  // What the files hold and serving leaves out, one sentence each.
  const std::vector<std::string>& notices() const { return notices_; }
  const SafetensorsModel& files() const { return files_; }

 private:
  explicit Checkpoint(SafetensorsModel files) : files_(std::move(files)) {}

  SafetensorsModel files_;
  std::vector<std::string> notices_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_MODEL_CHECKPOINT_H_
