// What every X.cc shares: checks of arguments, with messages that name op and
// argument, and the dispatch to a backend.
#ifndef SWITCHYARD_KERNELS_OP_SUPPORT_H_
#define SWITCHYARD_KERNELS_OP_SUPPORT_H_

#include <omp.h>

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "kernels/op_context.h"
#include "kernels/tensor.h"
#include "kernels/varlen.h"

namespace switchyard::internal {

// A set of dtypes.
using DTypes = uint32_t;
constexpr DTypes Only(DType dtype) {
  return 1u << static_cast<uint32_t>(dtype);
}
constexpr DTypes kF32Only = Only(DType::kF32);
constexpr DTypes kFloats =
    Only(DType::kF32) | Only(DType::kBF16) | Only(DType::kF16);

// Collects the first failed check of one call. Strings are only made on
// failure.
class ArgChecker {
 public:
  ArgChecker(absl::string_view op, const OpContext& context)
      : op_(op),
        cuda_(context.cuda()),
        activation_types_(cuda_ ? kF32Only | Only(DType::kBF16) : kF32Only) {}

  // What activations may be on this device.
  DTypes activation_types() const { return activation_types_; }

  template <typename... Parts>
  void Require(bool holds, const Parts&... message) {
    if (!holds && status_.ok()) {
      status_ = absl::InvalidArgumentError(
          absl::StrCat(op_, ": ", absl::StrCat(message...)));
    }
  }

  void Pointer(absl::string_view name, const void* pointer) {
    Require(pointer != nullptr, name, " is null");
  }

  // A matrix of exactly this shape, of one of the dtypes.
  void Matrix(absl::string_view name, const MatrixView& m, int64_t rows,
              int64_t cols, DTypes dtypes) {
    if (m.rows != rows || m.cols != cols) {
      Require(false, name, " is [", m.rows, ", ", m.cols, "], should be [",
              rows, ", ", cols, "]");
    }
    Require(m.data != nullptr || rows == 0, name, " has no data");
    Require(m.row_stride >= m.cols || m.rows <= 1, name, " has row stride ",
            m.row_stride, ", less than its ", m.cols, " columns");
    Require((Only(m.dtype) & dtypes) != 0, name, " is ", DTypeName(m.dtype),
            ", should be ", Names(dtypes));
  }

  // A batch whose segment has num_tokens rows. Host arrays are looked into
  // where there are any.
  void Batch(const VarlenBatch& batch) {
    Require(batch.num_seqs > 0, "the batch has no sequence");
    Require(batch.num_decodes >= 0 && batch.num_decodes <= batch.num_seqs,
            "num_decodes is ", batch.num_decodes, " of ", batch.num_seqs,
            " sequences");
    Pointer("batch.token_offsets", batch.token_offsets);
    Pointer("batch.context_lens", batch.context_lens);
    if (!cuda_) {
      Pointer("batch.host_token_offsets", batch.host_token_offsets);
      Pointer("batch.host_context_lens", batch.host_context_lens);
    }
    if (!status_.ok() || batch.host_token_offsets == nullptr) return;
    const int32_t* offsets = batch.host_token_offsets;
    Require(offsets[0] == 0 && offsets[batch.num_seqs] == batch.num_tokens,
            "batch.token_offsets run from ", offsets[0], " to ",
            offsets[batch.num_seqs], ", should run from 0 to ",
            batch.num_tokens);
    for (int32_t s = 0; s < batch.num_seqs; ++s) {
      const int32_t num_new = offsets[s + 1] - offsets[s];
      Require(s < batch.num_decodes ? num_new == 1 : num_new >= 0, "sequence ",
              s, " has ", num_new, " new tokens");
      Require(
          batch.host_context_lens == nullptr || batch.host_context_lens[s] >= 0,
          "sequence ", s, " has a negative context");
    }
  }

  void Slots(const SlotTable& slots) {
    Pointer("state.arena", slots.arena);
    Pointer("state.ids", slots.ids);
  }

  const absl::Status& status() const { return status_; }

 private:
  static std::string Names(DTypes dtypes) {
    std::string names;
    for (DType dtype :
         {DType::kF32, DType::kBF16, DType::kF16, DType::kI32, DType::kU8}) {
      if ((Only(dtype) & dtypes) == 0) continue;
      absl::StrAppend(&names, names.empty() ? "" : " or ", DTypeName(dtype));
    }
    return names;
  }

  absl::string_view op_;
  bool cuda_;
  DTypes activation_types_;
  absl::Status status_;
};

// Calls the implementation of the context's device. OpenMP's number of threads
// is a property of the calling thread, so it is set here, on every call.
template <typename Args>
absl::Status Dispatch(const OpContext& context, const Args& args,
                      absl::Status (*cpu)(const OpContext&, const Args&),
                      absl::Status (*cuda)(const OpContext&, const Args&)) {
  if (context.cuda()) return cuda(context, args);
  omp_set_num_threads(context.device->num_threads());
  return cpu(context, args);
}

}  // namespace switchyard::internal

#endif  // SWITCHYARD_KERNELS_OP_SUPPORT_H_
