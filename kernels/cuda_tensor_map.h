// Tensor maps for the bulk tensor copy, made on the host.
#ifndef SWITCHYARD_KERNELS_CUDA_TENSOR_MAP_H_
#define SWITCHYARD_KERNELS_CUDA_TENSOR_MAP_H_

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/status.h"

namespace switchyard::cuda {

inline absl::StatusOr<PFN_cuTensorMapEncodeTiled_v12000> TensorMapEncoder() {
  static const auto encoder = []() -> PFN_cuTensorMapEncodeTiled_v12000 {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result;
    const cudaError_t code = cudaGetDriverEntryPointByVersion(
        "cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
    if (code != cudaSuccess || result != cudaDriverEntryPointSuccess)
      return nullptr;
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  if (encoder == nullptr)
    return absl::UnavailableError(
        "the CUDA driver has no cuTensorMapEncodeTiled; it must be 525 or "
        "newer");
  return encoder;
}

// A bf16 tensor of Rank dimensions, innermost first and contiguous, copied in
// boxes of 64 innermost elements with the 128-byte swizzle. The L2 loads a row
// of a box and no more: with 256 bytes it would have the next box's too, but an
// H200 then reads a matrix 5% slower. Strides (of the other dimensions, in
// elements) need neither be monotonous nor leave the dimensions disjoint.
// REQUIRES: data and strides are multiples of 16 bytes.
template <int Rank>
absl::Status EncodeSwizzledMap(const void* data, const int64_t (&dims)[Rank],
                               const int64_t (&strides)[Rank - 1],
                               const int32_t (&box)[Rank], CUtensorMap* map) {
  SY_ASSIGN_OR_RETURN(const auto encode, TensorMapEncoder());
  cuuint64_t sizes[Rank], bytes[Rank - 1];
  cuuint32_t boxes[Rank], steps[Rank];
  for (int i = 0; i < Rank; ++i) {
    sizes[i] = static_cast<cuuint64_t>(dims[i]);
    boxes[i] = static_cast<cuuint32_t>(box[i]);
    steps[i] = 1;
    if (i + 1 < Rank) bytes[i] = static_cast<cuuint64_t>(strides[i]) * 2;
  }
  const CUresult result = encode(
      map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, Rank, const_cast<void*>(data),
      sizes, bytes, boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result == CUDA_SUCCESS) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(
      "cuTensorMapEncodeTiled of [", absl::StrJoin(sizes, ", "),
      "] in boxes of [", absl::StrJoin(boxes, ", "), "], strides of [",
      absl::StrJoin(bytes, ", "), "] bytes: code ", static_cast<int>(result)));
}

}  // namespace switchyard::cuda

#endif  // SWITCHYARD_KERNELS_CUDA_TENSOR_MAP_H_
