// Device: where tensors live and ops run. One per rank, owned by the worker;
// CpuDevice and CudaDevice are its twins.
//
// All work of a device is ordered on one stream (on the CPU: the calling
// thread). Not thread-safe: one thread, the executor's, uses a device after
// construction.
#ifndef SWITCHYARD_KERNELS_DEVICE_H_
#define SWITCHYARD_KERNELS_DEVICE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace switchyard {

enum class DeviceType : uint8_t { kCpu, kCuda };

// Memory on a device; frees itself. 256-byte aligned.
using DeviceBuffer =
    std::unique_ptr<std::byte, std::function<void(std::byte*)>>;

class Device {
 public:
  virtual ~Device() = default;

  virtual DeviceType type() const = 0;
  virtual std::string name() const = 0;  // "cpu", "cuda:0 (NVIDIA H200)"
  // The cudaStream_t all work is ordered on; null on the CPU.
  virtual void* stream() const { return nullptr; }
  // OpenMP threads of an op; 1 where ops do not run on the host.
  virtual int num_threads() const { return 1; }

  // Contents are undefined. ResourceExhausted names the bytes wanted and free.
  virtual absl::StatusOr<DeviceBuffer> Allocate(int64_t bytes) = 0;
  // Page-locked on CUDA, so that copies overlap; plain memory on the CPU.
  virtual absl::StatusOr<DeviceBuffer> AllocateHost(int64_t bytes) = 0;
  // Bytes that Allocate could still give.
  virtual absl::StatusOr<int64_t> FreeBytes() = 0;

  // Ordered on the stream. `host` stays untouched and alive until the next
  // Synchronize().
  virtual absl::Status CopyToDevice(void* device, const void* host,
                                    int64_t bytes) = 0;
  virtual absl::Status CopyToHost(void* host, const void* device,
                                  int64_t bytes) = 0;
  virtual absl::Status CopyOnDevice(void* to, const void* from,
                                    int64_t bytes) = 0;
  virtual absl::Status Fill(void* device, uint8_t byte, int64_t bytes) = 0;
  // Waits for the stream; the first error of earlier work surfaces here.
  virtual absl::Status Synchronize() = 0;
};

// num_threads: of OpenMP for ops; 0: all cores.
std::unique_ptr<Device> MakeCpuDevice(int num_threads);

// The device of a rank on a machine that all `num_ranks` share: of "cuda" the
// GPU of the rank's number; of "auto" the same where every rank can have one,
// else "cpu", and then `why_cpu` says what is wrong with the GPU that is
// missing (or nothing, in a build without CUDA); of anything else, itself.
std::string DeviceOfRank(absl::string_view spec, int rank, int num_ranks,
                         std::string* why_cpu);

// "cpu", "cuda", "cuda:N" or "auto" (cuda where there is a usable GPU and a
// CUDA build, else cpu). Unavailable where a GPU is asked for and there is
// none; Unimplemented in a build without CUDA.
absl::StatusOr<std::unique_ptr<Device>> MakeDevice(absl::string_view spec,
                                                   int num_threads);

}  // namespace switchyard

#endif  // SWITCHYARD_KERNELS_DEVICE_H_
