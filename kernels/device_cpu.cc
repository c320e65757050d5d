#include <omp.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "kernels/device.h"

namespace switchyard {
namespace {

constexpr int64_t kAlignment = 256;

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(int num_threads) : num_threads_(num_threads) {}

  DeviceType type() const override { return DeviceType::kCpu; }
  std::string name() const override { return "cpu"; }
  int num_threads() const override { return num_threads_; }

  absl::StatusOr<DeviceBuffer> Allocate(int64_t bytes) override {
    if (bytes < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("cannot allocate ", bytes, " bytes"));
    }
    // The system would promise more than it has and kill us on first use.
    const absl::StatusOr<int64_t> available = FreeBytes();
    void* data = nullptr;
    if (!available.ok() || bytes <= *available) {
      const size_t rounded =  // never 0
          (static_cast<size_t>(bytes) / kAlignment + 1) * kAlignment;
      data = std::aligned_alloc(kAlignment, rounded);
    }
    if (data == nullptr) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "cpu: cannot allocate ", bytes, " bytes",
          available.ok() ? absl::StrCat(", ", *available, " are free") : ""));
    }
    return DeviceBuffer(static_cast<std::byte*>(data),
                        [](std::byte* p) { std::free(p); });
  }
  absl::StatusOr<DeviceBuffer> AllocateHost(int64_t bytes) override {
    return Allocate(bytes);
  }

  // What the kernel would give without swapping.
  absl::StatusOr<int64_t> FreeBytes() override {
    std::ifstream meminfo("/proc/meminfo");
    std::string key;
    int64_t kibibytes = 0;
    std::string unit;
    while (meminfo >> key >> kibibytes) {
      if (key == "MemAvailable:") return kibibytes * 1024;
      std::getline(meminfo, unit);
    }
    return absl::UnavailableError("/proc/meminfo has no MemAvailable");
  }

  absl::Status CopyToDevice(void* device, const void* host,
                            int64_t bytes) override {
    return Copy(device, host, bytes);
  }
  absl::Status CopyToHost(void* host, const void* device,
                          int64_t bytes) override {
    return Copy(host, device, bytes);
  }
  absl::Status CopyOnDevice(void* to, const void* from,
                            int64_t bytes) override {
    return Copy(to, from, bytes);
  }
  absl::Status Fill(void* device, uint8_t byte, int64_t bytes) override {
    if (bytes > 0) std::memset(device, byte, bytes);
    return absl::OkStatus();
  }
  absl::Status Synchronize() override { return absl::OkStatus(); }

 private:
  static absl::Status Copy(void* to, const void* from, int64_t bytes) {
    if (bytes > 0) std::memmove(to, from, bytes);
    return absl::OkStatus();
  }

  const int num_threads_;
};

}  // namespace

std::unique_ptr<Device> MakeCpuDevice(int num_threads) {
  return std::make_unique<CpuDevice>(num_threads > 0 ? num_threads
                                                     : omp_get_num_procs());
}

}  // namespace switchyard
