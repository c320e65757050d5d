// What a backend implements: every op once per device type. `X.cc` validates
// and dispatches; `X_cpu.cc` defines XCpu, the oracle; `X_cuda.cu` defines
// XCuda.
//
// Arguments are validated before a backend sees them: shapes agree, dtypes are
// ones the device supports, required pointers are set, and there is at least
// one row. A backend checks only what is particular to it (a head size it has
// no kernel for: Unimplemented naming it).
//
// An op without a CUDA twin, or a build without CUDA, links the weak defaults
// of `cuda_fallback.cc`, which yield Unimplemented naming the op. Adding
// `X_cuda.cu` replaces the default; nothing else changes.
#ifndef SWITCHYARD_KERNELS_BACKENDS_H_
#define SWITCHYARD_KERNELS_BACKENDS_H_

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/activation.h"
#include "kernels/causal_conv.h"
#include "kernels/delta_rule.h"
#include "kernels/device.h"
#include "kernels/embedding.h"
#include "kernels/gated_delta.h"
#include "kernels/gated_matmul.h"
#include "kernels/logits.h"
#include "kernels/matmul.h"
#include "kernels/op_context.h"
#include "kernels/paged_attention.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "kernels/sampling.h"
#include "kernels/selective_scan.h"

namespace switchyard::internal {

// Whether there is such a GPU and the kernels are built for it: else
// Unavailable, or Unimplemented in a build without CUDA. Touches no GPU.
absl::Status CheckCudaDevice(int ordinal);
// The same errors.
absl::StatusOr<std::unique_ptr<Device>> MakeCudaDevice(int ordinal);

absl::StatusOr<std::unique_ptr<WeightMatrix::Storage>> PackWeightCpu(
    Device* device, const MatrixView& host, DType dtype);
absl::StatusOr<std::unique_ptr<WeightMatrix::Storage>> PackWeightCuda(
    Device* device, const MatrixView& host, DType dtype);
absl::Status MatmulCpu(const OpContext& context, const MatmulArgs& args);
absl::Status MatmulCuda(const OpContext& context, const MatmulArgs& args);

absl::Status GatedMatmulCpu(const OpContext& context,
                            const GatedMatmulArgs& args);
absl::Status GatedMatmulCuda(const OpContext& context,
                             const GatedMatmulArgs& args);

absl::Status ActivationCpu(const OpContext& context,
                           const ActivationArgs& args);
absl::Status ActivationCuda(const OpContext& context,
                            const ActivationArgs& args);

absl::Status AddRmsNormCpu(const OpContext& context,
                           const AddRmsNormArgs& args);
absl::Status AddRmsNormCuda(const OpContext& context,
                            const AddRmsNormArgs& args);
absl::Status GatedRmsNormCpu(const OpContext& context,
                             const GatedRmsNormArgs& args);
absl::Status GatedRmsNormCuda(const OpContext& context,
                              const GatedRmsNormArgs& args);

absl::Status CausalConvCpu(const OpContext& context,
                           const CausalConvArgs& args);
absl::Status CausalConvCuda(const OpContext& context,
                            const CausalConvArgs& args);

absl::Status DeltaRuleCpu(const OpContext& context, const DeltaRuleArgs& args);
absl::Status DeltaRuleCuda(const OpContext& context, const DeltaRuleArgs& args);

// GatedDelta is made of other ops; CUDA has one kernel for a step in which
// every sequence decodes. It serves only arguments that the ops would take.
bool CanStepGatedDelta(const OpContext& context, const GatedDeltaArgs& args);
// REQUIRES: CanStepGatedDelta(context, args).
absl::Status StepGatedDelta(const OpContext& context,
                            const GatedDeltaArgs& args);

absl::Status EmbeddingCpu(const OpContext& context, const EmbeddingArgs& args);
absl::Status EmbeddingCuda(const OpContext& context, const EmbeddingArgs& args);

absl::Status JoinShardsCpu(const OpContext& context,
                           const JoinShardsArgs& args);
absl::Status JoinShardsCuda(const OpContext& context,
                            const JoinShardsArgs& args);
absl::Status LogprobsCpu(const OpContext& context, const LogprobsArgs& args);
absl::Status LogprobsCuda(const OpContext& context, const LogprobsArgs& args);

absl::Status PagedAttentionCpu(const OpContext& context,
                               const PagedAttentionArgs& args);
absl::Status PagedAttentionCuda(const OpContext& context,
                                const PagedAttentionArgs& args);

absl::Status RopeCpu(const OpContext& context, const RopeArgs& args);
absl::Status RopeCuda(const OpContext& context, const RopeArgs& args);

absl::Status SampleCpu(const OpContext& context, const SamplingArgs& args);
absl::Status SampleCuda(const OpContext& context, const SamplingArgs& args);

absl::Status SelectiveScanCpu(const OpContext& context,
                              const SelectiveScanArgs& args);
absl::Status SelectiveScanCuda(const OpContext& context,
                               const SelectiveScanArgs& args);

}  // namespace switchyard::internal

#endif  // SWITCHYARD_KERNELS_BACKENDS_H_
