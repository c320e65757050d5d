// CollectiveGroup: the model's RankGroup over the worker's collective.
#ifndef SWITCHYARD_WORKER_COLLECTIVE_GROUP_H_
#define SWITCHYARD_WORKER_COLLECTIVE_GROUP_H_

#include <algorithm>
#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/op_context.h"
#include "kernels/rms_norm.h"
#include "kernels/status.h"
#include "kernels/tensor.h"
#include "model/rank_group.h"
#include "worker/collective.h"
#include "worker/step_device.h"

namespace switchyard {

class CollectiveGroup final : public RankGroup {
 public:
  // Borrows the collective and the side stream. `stream`: the device's own.
  // Null for `side`: a sum that is begun is done before anything that follows.
  CollectiveGroup(Collective* collective, CollectiveStream stream,
                  SideStream* side = nullptr)
      : collective_(collective), stream_(stream), side_(side) {}

  int32_t rank() const override { return collective_->rank(); }
  int32_t world_size() const override { return collective_->world_size(); }

  absl::Status AllReduceSum(const MatrixView& x) override {
    SY_RETURN_IF_ERROR(NothingBegun());
    return AllReduceSum(x, stream_);
  }

  absl::StatusOr<int64_t> BeginAllReduceSum(const MatrixView& x) override {
    if (side_ == nullptr) {
      SY_RETURN_IF_ERROR(AllReduceSum(x, stream_));
      return 0;
    }
    SY_RETURN_IF_ERROR(side_->Fork());
    SY_RETURN_IF_ERROR(AllReduceSum(x, side_->handle()));
    SY_ASSIGN_OR_RETURN(begun_, side_->Mark());
    return begun_;
  }

  absl::Status AwaitSum(int64_t number) override {
    if (side_ == nullptr) return absl::OkStatus();
    awaited_ = std::max(awaited_, number);
    return side_->Join(number);
  }

  absl::Status AllReduceAddRmsNorm(const OpContext& context,
                                   const AddRmsNormArgs& args) override {
    SY_RETURN_IF_ERROR(NothingBegun());
    SY_ASSIGN_OR_RETURN(const bool done,
                        collective_->TryAllReduceAddRmsNorm(args, stream_));
    if (done) return absl::OkStatus();
    return RankGroup::AllReduceAddRmsNorm(context, args);
  }

  absl::Status AllGather(const MatrixView& shard, float* all) override {
    SY_RETURN_IF_ERROR(NothingBegun());
    return collective_->AllGather(shard.data, all, shard.rows * shard.cols,
                                  CollectiveType::kFloat32, stream_);
  }

 private:
  // The collective's operations follow each other, on whatever stream.
  absl::Status NothingBegun() const {
    if (begun_ == awaited_) return absl::OkStatus();
    return absl::InternalError("a sum over ranks has not been awaited");
  }

  absl::Status AllReduceSum(const MatrixView& x, CollectiveStream stream) {
    if (world_size() == 1) return absl::OkStatus();
    return collective_->AllReduceSum(x.data, x.rows * x.cols,
                                     x.dtype == DType::kBF16
                                         ? CollectiveType::kBfloat16
                                         : CollectiveType::kFloat32,
                                     stream);
  }

  Collective* const collective_;
  const CollectiveStream stream_;
  SideStream* const side_;
  int64_t begun_ = -1;    // the last sum
  int64_t awaited_ = -1;  // it and all before
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_COLLECTIVE_GROUP_H_
