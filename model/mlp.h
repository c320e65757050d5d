// Mlp: a layer's feed-forward part, this rank's share of it.
#ifndef SWITCHYARD_MODEL_MLP_H_
#define SWITCHYARD_MODEL_MLP_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/activation.h"
#include "kernels/op_context.h"
#include "kernels/tensor.h"
#include "model/config.h"
#include "model/weights.h"

namespace switchyard {

// Gated: down(f(gate(x)) * up(x)); plain: down(f(up(x))). Immutable after
// loading; movable.
class Mlp {
 public:
  // `layer` is the layer's scope. Unimplemented: an activation that has no op.
  static absl::StatusOr<Mlp> Load(const MlpConfig& config, DType activation,
                                  const WeightScope& layer);

  // out [num_tokens, hidden] = this rank's part for x [num_tokens, hidden].
  // Scratch comes from the workspace and is given back.
  absl::Status Forward(const OpContext& context, const MatrixView& x,
                       const MatrixView& out) const;

  // Workspace that Forward takes, scratch of ops apart.
  int64_t ScratchBytes(int64_t num_tokens) const;

 private:
  Mlp() = default;

  struct Scratch {
    MatrixView projected;  // [num_tokens, gate | up] or [num_tokens, up]
    MatrixView activated;  // [num_tokens, intermediate]
  };
  Scratch Allocate(Workspace& workspace, int64_t num_tokens) const;

  bool gated_ = false;
  ActivationKind kind_ = ActivationKind::kSilu;
  DType activation_type_ = DType::kF32;
  WeightMatrix in_;  // [gate | up, hidden] or [up, hidden]
  DeviceVector in_bias_;
  WeightMatrix down_;  // [hidden, intermediate]
  DeviceVector down_bias_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_MODEL_MLP_H_
