#include "model/rank_group.h"

#include "kernels/status.h"

namespace switchyard {

absl::Status RankGroup::AllReduceAddRmsNorm(const OpContext& context,
                                            const AddRmsNormArgs& args) {
  if (args.delta.data != nullptr) SY_RETURN_IF_ERROR(AllReduceSum(args.delta));
  return AddRmsNorm(context, args);
}

}  // namespace switchyard
