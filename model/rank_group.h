// RankGroup: how the ranks' parts of a matrix become whole, as the model sees
// it. The worker implements it over its collective; a group of one does
// nothing. Errors are the collective's and end the group.
//
// Operations run in stream order, like kernels. A sum that is begun instead
// runs beside what follows, until it is awaited; meanwhile its matrix may be
// neither read nor written, and the group asked for nothing but to begin or
// await sums.
#ifndef SWITCHYARD_MODEL_RANK_GROUP_H_
#define SWITCHYARD_MODEL_RANK_GROUP_H_

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/op_context.h"
#include "kernels/rms_norm.h"
#include "kernels/tensor.h"

namespace switchyard {

// Tokens of half a step from which on it is worth while to have the sums of one
// half run beside the other: smaller products do not fill a GPU.
inline constexpr int32_t kDefaultOverlapTokens = 1024;

class RankGroup {
 public:
  virtual ~RankGroup() = default;

  virtual int32_t rank() const = 0;
  virtual int32_t world_size() const = 0;

  // x <- the sum over ranks of x. Contiguous, fp32 or bf16, on the device.
  virtual absl::Status AllReduceSum(const MatrixView& x) = 0;

  // Begins the same, and returns the sum's number. Sums are done in the order
  // in which they were begun.
  virtual absl::StatusOr<int64_t> BeginAllReduceSum(const MatrixView& x) = 0;
  // What follows finds the sum of this number done, and those before it.
  virtual absl::Status AwaitSum(int64_t number) = 0;

  // AddRmsNorm(args) of the sum over ranks of args.delta, where there is a
  // delta. Leaves the delta undefined. The same bits as AllReduceSum and
  // AddRmsNorm one after the other, which is what this does; a group with one
  // operation for both overrides it. REQUIRES: as AllReduceSum and AddRmsNorm,
  // and the ranks' row maps are alike.
  virtual absl::Status AllReduceAddRmsNorm(const OpContext& context,
                                           const AddRmsNormArgs& args);

  // all [world_size, rows, cols] <- every rank's `shard` [rows, cols], a
  // contiguous fp32 matrix on the device.
  virtual absl::Status AllGather(const MatrixView& shard, float* all) = 0;
};

}  // namespace switchyard

#endif  // SWITCHYARD_MODEL_RANK_GROUP_H_
