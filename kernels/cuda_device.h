// CudaDevice: one GPU as a Device, and what its ops share: the stream, the
// cuBLASLt handle, and a few small buffers that outlive any op.
#ifndef SWITCHYARD_KERNELS_CUDA_DEVICE_H_
#define SWITCHYARD_KERNELS_CUDA_DEVICE_H_

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device.h"

namespace switchyard {

// What an op keeps on a device between calls (plans, tuned choices).
class CudaOpCache {
 public:
  virtual ~CudaOpCache() = default;
};

class CudaDevice final : public Device {
 public:
  // Zero between ops: an op that counts arrivals leaves its counters at zero.
  static constexpr int64_t kNumCounters = 1 << 16;
  static constexpr int64_t kBlasWorkspaceBytes = int64_t{32} << 20;

  static absl::StatusOr<std::unique_ptr<CudaDevice>> Create(int ordinal);
  ~CudaDevice() override;
  CudaDevice(const CudaDevice&) = delete;
  CudaDevice& operator=(const CudaDevice&) = delete;

  DeviceType type() const override { return DeviceType::kCuda; }
  std::string name() const override { return name_; }
  void* stream() const override { return stream_; }

  absl::StatusOr<DeviceBuffer> Allocate(int64_t bytes) override;
  absl::StatusOr<DeviceBuffer> AllocateHost(int64_t bytes) override;
  absl::StatusOr<int64_t> FreeBytes() override;
  absl::Status CopyToDevice(void* device, const void* host,
                            int64_t bytes) override;
  absl::Status CopyToHost(void* host, const void* device,
                          int64_t bytes) override;
  absl::Status CopyOnDevice(void* to, const void* from, int64_t bytes) override;
  absl::Status Fill(void* device, uint8_t byte, int64_t bytes) override;
  absl::Status Synchronize() override;

  cudaStream_t cuda_stream() const { return stream_; }
  int ordinal() const { return ordinal_; }
  int num_sms() const { return num_sms_; }
  int max_shared_bytes() const { return max_shared_bytes_; }  // of one block
  cublasLtHandle_t blas() const { return blas_; }
  void* blas_workspace() const { return blas_workspace_; }
  int32_t* counters() const { return counters_; }  // [kNumCounters]

  // Matmul's plans; made by the matmul backend at its first call.
  std::unique_ptr<CudaOpCache>& matmul_cache() { return matmul_cache_; }

 private:
  explicit CudaDevice(int ordinal) : ordinal_(ordinal) {}
  absl::Status Init();
  // The runtime's current device is a property of the calling thread.
  absl::Status MakeCurrent() const;

  const int ordinal_;
  std::string name_;
  int num_sms_ = 0;
  int max_shared_bytes_ = 0;
  cudaStream_t stream_ = nullptr;
  cublasLtHandle_t blas_ = nullptr;
  void* blas_workspace_ = nullptr;
  int32_t* counters_ = nullptr;
  std::unique_ptr<CudaOpCache> matmul_cache_;
};

// REQUIRES: `device` is a CudaDevice.
inline CudaDevice* AsCuda(Device* device) {
  return static_cast<CudaDevice*>(device);
}

}  // namespace switchyard

#endif  // SWITCHYARD_KERNELS_CUDA_DEVICE_H_
