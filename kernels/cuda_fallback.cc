// Weak defaults of the CUDA backend: the strong definition of an op's
// `X_cuda.cu`, where the build has one, takes their place.
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "kernels/backends.h"

namespace switchyard::internal {
namespace {

absl::Status NoCuda(absl::string_view op) {
#ifdef SWITCHYARD_CUDA
  return absl::UnimplementedError(
      absl::StrCat(op, " has no CUDA implementation"));
#else
  return absl::UnimplementedError(
      absl::StrCat(op, ": this build has no CUDA support"));
#endif
}

}  // namespace

#define SY_WEAK __attribute__((weak))

SY_WEAK absl::Status CheckCudaDevice(int ordinal) {
  return NoCuda(absl::StrCat("device cuda:", ordinal));
}
SY_WEAK absl::StatusOr<std::unique_ptr<Device>> MakeCudaDevice(int ordinal) {
  return NoCuda(absl::StrCat("device cuda:", ordinal));
}
SY_WEAK absl::StatusOr<std::unique_ptr<WeightMatrix::Storage>> PackWeightCuda(
    Device*, const MatrixView&, DType) {
  return NoCuda("WeightMatrix::Create");
}
SY_WEAK absl::Status MatmulCuda(const OpContext&, const MatmulArgs&) {
  return NoCuda("Matmul");
}
SY_WEAK absl::Status GatedMatmulCuda(const OpContext&, const GatedMatmulArgs&) {
  return NoCuda("GatedMatmul");
}
SY_WEAK absl::Status ActivationCuda(const OpContext&, const ActivationArgs&) {
  return NoCuda("Activation");
}
SY_WEAK absl::Status AddRmsNormCuda(const OpContext&, const AddRmsNormArgs&) {
  return NoCuda("AddRmsNorm");
}
SY_WEAK absl::Status GatedRmsNormCuda(const OpContext&,
                                      const GatedRmsNormArgs&) {
  return NoCuda("GatedRmsNorm");
}
SY_WEAK absl::Status CausalConvCuda(const OpContext&, const CausalConvArgs&) {
  return NoCuda("CausalConv");
}
SY_WEAK absl::Status DeltaRuleCuda(const OpContext&, const DeltaRuleArgs&) {
  return NoCuda("DeltaRule");
}
SY_WEAK bool CanStepGatedDelta(const OpContext&, const GatedDeltaArgs&) {
  return false;
}
SY_WEAK absl::Status StepGatedDelta(const OpContext&, const GatedDeltaArgs&) {
  return NoCuda("GatedDelta");
}
SY_WEAK absl::Status EmbeddingCuda(const OpContext&, const EmbeddingArgs&) {
  return NoCuda("Embedding");
}
SY_WEAK absl::Status JoinShardsCuda(const OpContext&, const JoinShardsArgs&) {
  return NoCuda("JoinShards");
}
SY_WEAK absl::Status LogprobsCuda(const OpContext&, const LogprobsArgs&) {
  return NoCuda("Logprobs");
}
SY_WEAK absl::Status PagedAttentionCuda(const OpContext&,
                                        const PagedAttentionArgs&) {
  return NoCuda("PagedAttention");
}
SY_WEAK absl::Status RopeCuda(const OpContext&, const RopeArgs&) {
  return NoCuda("Rope");
}
SY_WEAK absl::Status SampleCuda(const OpContext&, const SamplingArgs&) {
  return NoCuda("Sample");
}
SY_WEAK absl::Status SelectiveScanCuda(const OpContext&,
                                       const SelectiveScanArgs&) {
  return NoCuda("SelectiveScan");
}

}  // namespace switchyard::internal
