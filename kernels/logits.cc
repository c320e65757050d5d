#include "kernels/logits.h"

#include "kernels/backends.h"
#include "kernels/op_support.h"
#include "kernels/status.h"

namespace switchyard {

absl::Status JoinShards(const OpContext& context, const JoinShardsArgs& args) {
  internal::ArgChecker check("JoinShards", context);
  check.Require(args.world_size > 0, "world_size is ", args.world_size);
  check.Matrix("out", args.out, args.out.rows, args.out.cols,
               internal::kF32Only);
  check.Require(args.out.cols <= args.world_size * args.shard_cols,
                args.world_size, " shards of ", args.shard_cols,
                " columns do not make ", args.out.cols);
  if (args.out.rows > 0) check.Pointer("shards", args.shards);
  SY_RETURN_IF_ERROR(check.status());
  if (args.out.empty()) return absl::OkStatus();
  return internal::Dispatch(context, args, internal::JoinShardsCpu,
                            internal::JoinShardsCuda);
}

absl::Status Logprobs(const OpContext& context, const LogprobsArgs& args) {
  internal::ArgChecker check("Logprobs", context);
  check.Matrix("logits", args.logits, args.logits.rows, args.logits.cols,
               internal::kF32Only);
  check.Require(args.num_top >= 0 && args.num_top <= kMaxTopLogprobs &&
                    args.num_top <= args.logits.cols,
                "num_top is ", args.num_top, ", should be at most ",
                kMaxTopLogprobs, " and the vocabulary of ", args.logits.cols);
  if (args.logits.rows > 0) {
    check.Pointer("targets", args.targets);
    check.Pointer("target_logprobs", args.target_logprobs);
    if (args.num_top > 0) {
      check.Pointer("top_ids", args.top_ids);
      check.Pointer("top_logprobs", args.top_logprobs);
    }
  }
  SY_RETURN_IF_ERROR(check.status());
  if (args.logits.empty()) return absl::OkStatus();
  return internal::Dispatch(context, args, internal::LogprobsCpu,
                            internal::LogprobsCuda);
}

}  // namespace switchyard
