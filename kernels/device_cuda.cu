#include "kernels/backends.h"
#include "kernels/cuda_device.h"
#include "kernels/cuda_status.h"
#include "kernels/status.h"

namespace switchyard {

absl::StatusOr<std::unique_ptr<CudaDevice>> CudaDevice::Create(int ordinal) {
  std::unique_ptr<CudaDevice> device(new CudaDevice(ordinal));
  SY_RETURN_IF_ERROR(device->Init());
  return device;
}

absl::Status internal::CheckCudaDevice(int ordinal) {
  int count = 0;
  if (cudaError_t code = cudaGetDeviceCount(&count); code != cudaSuccess) {
    return absl::UnavailableError(
        absl::StrCat("device cuda:", ordinal,
                     ": no usable GPU: ", cudaGetErrorString(code)));
  }
  if (ordinal < 0 || ordinal >= count) {
    return absl::UnavailableError(absl::StrCat("device cuda:", ordinal,
                                               ": this machine has ", count,
                                               count == 1 ? " GPU" : " GPUs"));
  }
  cudaDeviceProp properties;
  SY_RETURN_IF_CUDA_ERROR(cudaGetDeviceProperties(&properties, ordinal));
  if (properties.major != 9 || properties.minor != 0) {
    return absl::UnavailableError(absl::StrCat(
        "device cuda:", ordinal, " (", properties.name,
        "): compute capability ", properties.major, ".", properties.minor,
        "; the kernels are built for 9.0 (H100, H200)"));
  }
  return absl::OkStatus();
}

absl::Status CudaDevice::Init() {
  SY_RETURN_IF_ERROR(internal::CheckCudaDevice(ordinal_));
  cudaDeviceProp properties;
  SY_RETURN_IF_CUDA_ERROR(cudaGetDeviceProperties(&properties, ordinal_));
  name_ = absl::StrCat("cuda:", ordinal_, " (", properties.name, ")");
  num_sms_ = properties.multiProcessorCount;
  max_shared_bytes_ = static_cast<int>(properties.sharedMemPerBlockOptin);
  SY_RETURN_IF_ERROR(MakeCurrent());
  SY_RETURN_IF_CUDA_ERROR(
      cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  SY_RETURN_IF_CUBLAS_ERROR(cublasLtCreate(&blas_));
  SY_RETURN_IF_CUDA_ERROR(cudaMalloc(&blas_workspace_, kBlasWorkspaceBytes));
  SY_RETURN_IF_CUDA_ERROR(
      cudaMalloc(&counters_, kNumCounters * sizeof(int32_t)));
  SY_RETURN_IF_CUDA_ERROR(
      cudaMemsetAsync(counters_, 0, kNumCounters * sizeof(int32_t), stream_));
  return Synchronize();
}

CudaDevice::~CudaDevice() {
  // Teardown cannot report: what fails here is abandoned with the process.
  if (!MakeCurrent().ok()) return;
  matmul_cache_.reset();
  if (stream_ != nullptr) cudaStreamSynchronize(stream_);
  cudaFree(counters_);
  cudaFree(blas_workspace_);
  if (blas_ != nullptr) cublasLtDestroy(blas_);
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

absl::Status CudaDevice::MakeCurrent() const {
  SY_RETURN_IF_CUDA_ERROR(cudaSetDevice(ordinal_));
  return absl::OkStatus();
}

absl::StatusOr<DeviceBuffer> CudaDevice::Allocate(int64_t bytes) {
  SY_RETURN_IF_ERROR(MakeCurrent());
  void* data = nullptr;
  if (cudaError_t code = cudaMalloc(&data, bytes); code != cudaSuccess) {
    cudaGetLastError();
    if (code != cudaErrorMemoryAllocation)
      return CudaStatus(code, "cudaMalloc");
    SY_ASSIGN_OR_RETURN(const int64_t free_bytes, FreeBytes());
    return absl::ResourceExhaustedError(
        absl::StrCat(name_, ": wanted ", bytes, " bytes of device memory, ",
                     free_bytes, " are free"));
  }
  return DeviceBuffer(static_cast<std::byte*>(data),
                      [](std::byte* data) { cudaFree(data); });
}

absl::StatusOr<DeviceBuffer> CudaDevice::AllocateHost(int64_t bytes) {
  SY_RETURN_IF_ERROR(MakeCurrent());
  void* data = nullptr;
  if (cudaError_t code = cudaMallocHost(&data, bytes); code != cudaSuccess) {
    cudaGetLastError();
    if (code != cudaErrorMemoryAllocation)
      return CudaStatus(code, "cudaMallocHost");
    return absl::ResourceExhaustedError(absl::StrCat(
        name_, ": wanted ", bytes, " bytes of page-locked host memory"));
  }
  return DeviceBuffer(static_cast<std::byte*>(data),
                      [](std::byte* data) { cudaFreeHost(data); });
}

absl::StatusOr<int64_t> CudaDevice::FreeBytes() {
  SY_RETURN_IF_ERROR(MakeCurrent());
  size_t free_bytes = 0, total_bytes = 0;
  SY_RETURN_IF_CUDA_ERROR(cudaMemGetInfo(&free_bytes, &total_bytes));
  return static_cast<int64_t>(free_bytes);
}

absl::Status CudaDevice::CopyToDevice(void* device, const void* host,
                                      int64_t bytes) {
  SY_RETURN_IF_ERROR(MakeCurrent());
  SY_RETURN_IF_CUDA_ERROR(
      cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, stream_));
  return absl::OkStatus();
}

absl::Status CudaDevice::CopyToHost(void* host, const void* device,
                                    int64_t bytes) {
  SY_RETURN_IF_ERROR(MakeCurrent());
  SY_RETURN_IF_CUDA_ERROR(
      cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, stream_));
  return absl::OkStatus();
}

absl::Status CudaDevice::CopyOnDevice(void* to, const void* from,
                                      int64_t bytes) {
  SY_RETURN_IF_ERROR(MakeCurrent());
  SY_RETURN_IF_CUDA_ERROR(
      cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_));
  return absl::OkStatus();
}

absl::Status CudaDevice::Fill(void* device, uint8_t byte, int64_t bytes) {
  SY_RETURN_IF_ERROR(MakeCurrent());
  SY_RETURN_IF_CUDA_ERROR(cudaMemsetAsync(device, byte, bytes, stream_));
  return absl::OkStatus();
}

absl::Status CudaDevice::Synchronize() {
  SY_RETURN_IF_ERROR(MakeCurrent());
  SY_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_));
  return absl::OkStatus();
}

namespace internal {

absl::StatusOr<std::unique_ptr<Device>> MakeCudaDevice(int ordinal) {
  SY_ASSIGN_OR_RETURN(std::unique_ptr<CudaDevice> device,
                      CudaDevice::Create(ordinal));
  return std::unique_ptr<Device>(std::move(device));
}

}  // namespace internal
}  // namespace switchyard
