// CUDA, cuBLAS, driver and NCCL codes as absl::Status. Every call into those
// libraries is checked through this header.
#ifndef SWITCHYARD_KERNELS_CUDA_STATUS_H_
#define SWITCHYARD_KERNELS_CUDA_STATUS_H_

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <nccl.h>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace switchyard {

// `what` names the call or the op, e.g. "cudaMalloc" or "launch of Rope".
inline absl::Status CudaStatus(cudaError_t code, absl::string_view what) {
  if (code == cudaSuccess) return absl::OkStatus();
  const std::string message = absl::StrCat(what, ": ", cudaGetErrorName(code),
                                           " (", cudaGetErrorString(code), ")");
  switch (code) {
    case cudaErrorMemoryAllocation:
      return absl::ResourceExhaustedError(message);
    case cudaErrorNoDevice:
    case cudaErrorInvalidDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorSystemNotReady:
    case cudaErrorDevicesUnavailable:
      return absl::UnavailableError(message);
    default:
      return absl::InternalError(message);
  }
}

inline absl::Status CublasStatus(cublasStatus_t code, absl::string_view what) {
  if (code == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  const std::string message =
      absl::StrCat(what, ": ", cublasLtGetStatusString(code));
  return code == CUBLAS_STATUS_NOT_SUPPORTED ? absl::UnimplementedError(message)
                                             : absl::InternalError(message);
}

inline absl::Status NcclStatus(ncclResult_t code, absl::string_view what) {
  if (code == ncclSuccess || code == ncclInProgress) return absl::OkStatus();
  const std::string message =
      absl::StrCat(what, ": ", ncclGetErrorString(code));
  return code == ncclRemoteError || code == ncclSystemError
             ? absl::UnavailableError(message)
             : absl::InternalError(message);
}

}  // namespace switchyard

#define SY_RETURN_IF_CUDA_ERROR(call)                         \
  do {                                                        \
    if (cudaError_t sy_code = (call); sy_code != cudaSuccess) \
      return ::switchyard::CudaStatus(sy_code, #call);        \
  } while (false)

#define SY_RETURN_IF_CUBLAS_ERROR(call)                                    \
  do {                                                                     \
    if (cublasStatus_t sy_code = (call); sy_code != CUBLAS_STATUS_SUCCESS) \
      return ::switchyard::CublasStatus(sy_code, #call);                   \
  } while (false)

#define SY_RETURN_IF_NCCL_ERROR(call)                        \
  do {                                                       \
    if (ncclResult_t sy_code = (call);                       \
        sy_code != ncclSuccess && sy_code != ncclInProgress) \
      return ::switchyard::NcclStatus(sy_code, #call);       \
  } while (false)

#endif  // SWITCHYARD_KERNELS_CUDA_STATUS_H_
