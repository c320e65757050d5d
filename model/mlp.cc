#include "model/mlp.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/activation.h"
#include "kernels/gated_matmul.h"
#include "kernels/status.h"
#include "model/scratch.h"

namespace switchyard {
namespace {

absl::StatusOr<ActivationKind> KindOf(ActivationFunction activation) {
  switch (activation) {
    case ActivationFunction::kSilu:
      return ActivationKind::kSilu;
    case ActivationFunction::kGelu:
      return ActivationKind::kGelu;
    case ActivationFunction::kGeluTanh:
      return ActivationKind::kGeluTanh;
    case ActivationFunction::kRelu:
      return ActivationKind::kRelu;
    case ActivationFunction::kRelu2:
      return ActivationKind::kSquaredRelu;
    case ActivationFunction::kSigmoid:
      break;
  }
  return absl::UnimplementedError(absl::StrCat(
      "mlp.activation ", ActivationName(activation), " is not supported"));
}

}  // namespace

absl::StatusOr<Mlp> Mlp::Load(const MlpConfig& config, DType activation,
                              const WeightScope& layer) {
  Mlp mlp;
  mlp.gated_ = config.gated;
  mlp.activation_type_ = activation;
  SY_ASSIGN_OR_RETURN(mlp.kind_, KindOf(config.activation));
  std::vector<WeightPart> in;
  if (config.gated) in.push_back(TensorRole::kMlpGate);
  in.push_back(TensorRole::kMlpUp);
  SY_ASSIGN_OR_RETURN(mlp.in_, layer.Matrix(in));
  SY_ASSIGN_OR_RETURN(mlp.down_, layer.Matrix({TensorRole::kMlpDown}));
  if (config.up_bias) {
    SY_ASSIGN_OR_RETURN(mlp.in_bias_, layer.Vector({TensorRole::kMlpUpBias}));
  }
  if (config.down_bias) {
    SY_ASSIGN_OR_RETURN(mlp.down_bias_,
                        layer.OutputBias(TensorRole::kMlpDownBias));
  }
  return mlp;
}

Mlp::Scratch Mlp::Allocate(Workspace& workspace, int64_t num_tokens) const {
  Scratch scratch;
  scratch.projected = AllocateMatrix(workspace, activation_type_, num_tokens,
                                     in_.out_features());
  scratch.activated = gated_ ? AllocateMatrix(workspace, activation_type_,
                                              num_tokens, down_.in_features())
                             : scratch.projected;
  return scratch;
}

int64_t Mlp::ScratchBytes(int64_t num_tokens) const {
  Workspace counter;
  Allocate(counter, num_tokens);
  return counter.used();
}

absl::Status Mlp::Forward(const OpContext& context, const MatrixView& x,
                          const MatrixView& out) const {
  const int64_t mark = context.workspace->used();
  const Scratch scratch = Allocate(*context.workspace, x.rows);
  if (gated_) {
    SY_RETURN_IF_ERROR(
        GatedMatmul(context, {x, &in_, in_bias_.data(), kind_,
                              scratch.projected, scratch.activated}));
  } else {
    SY_RETURN_IF_ERROR(
        Matmul(context, {x, &in_, in_bias_.data(), scratch.projected}));
    SY_RETURN_IF_ERROR(Activation(
        context, {kind_, scratch.projected, false, scratch.activated}));
  }
  SY_RETURN_IF_ERROR(
      Matmul(context, {scratch.activated, &down_, down_bias_.data(), out}));
  context.workspace->Rewind(mark);
  return absl::OkStatus();
}

}  // namespace switchyard
