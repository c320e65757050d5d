#include "kernels/sampling.h"

#include "kernels/backends.h"
#include "kernels/op_support.h"
#include "kernels/status.h"

namespace switchyard {
namespace {

void CheckRow(const SamplingRow& row, int64_t index, const SamplingArgs& args,
              internal::ArgChecker* check) {
  check->Require(row.temperature >= 0, "row ", index, " has temperature ",
                 row.temperature, ", should be at least 0");
  check->Require(row.top_p > 0 && row.top_p <= 1, "row ", index, " has top_p ",
                 row.top_p, ", should be in (0, 1]");
  check->Require(row.min_p >= 0 && row.min_p <= 1, "row ", index, " has min_p ",
                 row.min_p, ", should be in [0, 1]");
  check->Require(row.top_k >= 0, "row ", index, " has top_k ", row.top_k,
                 ", should be at least 0");
  check->Require(row.repetition_penalty > 0, "row ", index,
                 " has repetition_penalty ", row.repetition_penalty,
                 ", should be more than 0");
  check->Require(row.counts_row < 0 || args.counts != nullptr, "row ", index,
                 " has penalties, but there are no counts");
  check->Require(row.bias_begin >= 0 && row.bias_begin <= row.bias_end, "row ",
                 index, " has biases [", row.bias_begin, ", ", row.bias_end,
                 ")");
  check->Require(row.bias_begin == row.bias_end ||
                     (args.bias_ids != nullptr && args.bias_values != nullptr),
                 "row ", index,
                 " has biases, but bias_ids or bias_values is "
                 "null");
}

}  // namespace

absl::Status Sample(const OpContext& context, const SamplingArgs& args) {
  internal::ArgChecker check("Sample", context);
  check.Matrix("logits", args.logits, args.logits.rows, args.logits.cols,
               internal::kF32Only);
  if (args.logits.rows > 0) {
    check.Require(args.logits.cols > 0, "the vocabulary is empty");
    check.Pointer("rows", args.rows);
    check.Pointer("token_ids", args.token_ids);
    if (!context.cuda()) check.Pointer("host_rows", args.host_rows);
  }
  SY_RETURN_IF_ERROR(check.status());
  if (args.host_rows != nullptr) {
    for (int64_t r = 0; r < args.logits.rows; ++r) {
      CheckRow(args.host_rows[r], r, args, &check);
    }
    SY_RETURN_IF_ERROR(check.status());
  }
  if (args.logits.empty()) return absl::OkStatus();
  return internal::Dispatch(context, args, internal::SampleCpu,
                            internal::SampleCuda);
}

}  // namespace switchyard
