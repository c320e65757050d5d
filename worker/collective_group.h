// CollectiveGroup: the model's RankGroup over the worker's collective.
#ifndef SWITCHYARD_WORKER_COLLECTIVE_GROUP_H_
#define SWITCHYARD_WORKER_COLLECTIVE_GROUP_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/op_context.h"
#include "kernels/rms_norm.h"
#include "kernels/status.h"
#include "kernels/tensor.h"
#include "model/rank_group.h"
#include "worker/collective.h"

namespace switchyard {

class CollectiveGroup final : public RankGroup {
 public:
  // Borrows the collective. `stream`: the device's.
  CollectiveGroup(Collective* collective, CollectiveStream stream)
      : collective_(collective), stream_(stream) {}

  int32_t rank() const override { return collective_->rank(); }
  int32_t world_size() const override { return collective_->world_size(); }

  absl::Status AllReduceSum(const MatrixView& x) override {
    if (world_size() == 1) return absl::OkStatus();
    return collective_->AllReduceSum(x.data, x.rows * x.cols,
                                     x.dtype == DType::kBF16
                                         ? CollectiveType::kBfloat16
                                         : CollectiveType::kFloat32,
                                     stream_);
  }

  absl::Status AllReduceAddRmsNorm(const OpContext& context,
                                   const AddRmsNormArgs& args) override {
    SY_ASSIGN_OR_RETURN(const bool done,
                        collective_->TryAllReduceAddRmsNorm(args, stream_));
    if (done) return absl::OkStatus();
    return RankGroup::AllReduceAddRmsNorm(context, args);
  }

  absl::Status AllGather(const MatrixView& shard, float* all) override {
    return collective_->AllGather(shard.data, all, shard.rows * shard.cols,
                                  CollectiveType::kFloat32, stream_);
  }

 private:
  Collective* const collective_;
  const CollectiveStream stream_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_COLLECTIVE_GROUP_H_
