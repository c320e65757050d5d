#include "kernels/delta_rule.h"

#include "kernels/backends.h"
#include "kernels/op_support.h"
#include "kernels/status.h"

namespace switchyard {

absl::Status DeltaRule(const OpContext& context, const DeltaRuleArgs& args) {
  internal::ArgChecker check("DeltaRule", context);
  check.Batch(args.batch);
  check.Slots(args.state);
  check.Require(args.key_dim > 0 && args.value_dim > 0, "head dims are ",
                args.key_dim, " and ", args.value_dim);
  check.Require(args.num_key_heads > 0 && args.num_value_heads > 0 &&
                    args.num_value_heads % args.num_key_heads == 0,
                "num_key_heads ", args.num_key_heads,
                " does not divide num_value_heads ", args.num_value_heads);
  const int64_t rows = args.batch.num_tokens;
  const int64_t key_cols = int64_t{args.num_key_heads} * args.key_dim;
  const int64_t value_cols = int64_t{args.num_value_heads} * args.value_dim;
  const int64_t alpha_cols = args.decay == DecayKind::kPerHead
                                 ? int64_t{args.num_value_heads}
                                 : int64_t{args.num_value_heads} * args.key_dim;
  const internal::DTypes activation = check.activation_types();
  const internal::DTypes gate = internal::kF32Only | activation;
  check.Matrix("q", args.q, rows, key_cols, activation);
  check.Matrix("k", args.k, rows, key_cols, internal::Only(args.q.dtype));
  check.Matrix("v", args.v, rows, value_cols, internal::Only(args.q.dtype));
  check.Matrix("beta", args.beta, rows, args.num_value_heads, gate);
  check.Matrix("alpha", args.alpha, rows, alpha_cols, gate);
  check.Matrix("out", args.out, rows, value_cols, gate);
  check.Pointer("a_log", args.a_log);
  check.Pointer("dt_bias", args.dt_bias);
  SY_RETURN_IF_ERROR(check.status());
  if (args.out.empty()) return absl::OkStatus();
  return internal::Dispatch(context, args, internal::DeltaRuleCpu,
                            internal::DeltaRuleCuda);
}

}  // namespace switchyard
