#include "model/weight_source.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "kernels/status.h"

namespace switchyard {
namespace {

bool IsFloat(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kF16;
}

// Sources may lie unaligned in a mapped file.
template <typename T>
T Load(const void* data, int64_t i) {
  T value;
  std::memcpy(&value, static_cast<const std::byte*>(data) + i * sizeof(T),
              sizeof(T));
  return value;
}

// Calls `convert` with functions that load element i of `source` as a float,
// and store a float as element i of `target`.
template <typename Function>
void WithLoader(DType from, const void* source, Function&& convert) {
  switch (from) {
    case DType::kF32:
      return convert([=](int64_t i) { return Load<float>(source, i); });
    case DType::kBF16:
      return convert(
          [=](int64_t i) { return BF16ToFloat(Load<uint16_t>(source, i)); });
    case DType::kF16:
      return convert(
          [=](int64_t i) { return F16ToFloat(Load<uint16_t>(source, i)); });
    default:
      SY_CHECK(IsFloat(from));
  }
}

}  // namespace

void ConvertElements(DType from, const void* source, DType to, void* target,
                     int64_t num) {
  SY_CHECK(IsFloat(from) && IsFloat(to));
  if (from == to) {
    std::memcpy(target, source, num * DTypeBytes(from));
    return;
  }
  WithLoader(from, source, [&](auto load) {
    if (to == DType::kF32) {
      auto* out = static_cast<float*>(target);
      for (int64_t i = 0; i < num; ++i) out[i] = load(i);
    } else if (to == DType::kBF16) {
      auto* out = static_cast<uint16_t*>(target);
      for (int64_t i = 0; i < num; ++i) out[i] = FloatToBF16(load(i));
    } else {
      auto* out = static_cast<uint16_t*>(target);
      for (int64_t i = 0; i < num; ++i) out[i] = FloatToF16(load(i));
    }
  });
}

absl::Status CheckSlice(const TensorSpec& spec, int32_t rank,
                        int32_t world_size, const MatrixView& out) {
  if (rank < 0 || rank >= world_size) {
    return absl::InvalidArgumentError(absl::StrCat(
        spec.name, ": rank ", rank, " is not in a group of ", world_size));
  }
  const SliceShape shape = LocalShape(spec, world_size);
  if (out.rows != shape.rows || out.cols != shape.cols ||
      out.row_stride < out.cols || !IsFloat(out.dtype)) {
    return absl::InvalidArgumentError(absl::StrCat(
        spec.name, ": the slice of a rank of ", world_size, " is [", shape.rows,
        ", ", shape.cols, "] of fp32, bf16 or fp16; room was given for [",
        out.rows, ", ", out.cols, "] of ", DTypeName(out.dtype)));
  }
  return absl::OkStatus();
}

absl::StatusOr<HostTensor> WeightSource::Read(const TensorSpec& spec,
                                              int32_t rank, int32_t world_size,
                                              DType dtype) const {
  const SliceShape shape = LocalShape(spec, world_size);
  HostTensor tensor;
  tensor.dtype = dtype;
  tensor.rows = shape.rows;
  tensor.cols = shape.cols;
  tensor.bytes.resize(shape.rows * shape.cols * DTypeBytes(dtype));
  SY_RETURN_IF_ERROR(ReadInto(spec, rank, world_size, tensor.view()));
  return tensor;
}

}  // namespace switchyard
