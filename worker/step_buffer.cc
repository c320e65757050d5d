#include "worker/step_buffer.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/status.h"

namespace switchyard {
namespace {

constexpr int64_t kMinCapacity = 64 << 10;
constexpr int64_t kAlignment = 16;  // of slices: vector loads

}  // namespace

int64_t StepBuffer::AppendBytes(const void* data, int64_t bytes) {
  const int64_t begin = (used_ + kAlignment - 1) / kAlignment * kAlignment;
  if (begin + bytes > host_capacity_) {
    const int64_t capacity =
        std::max({kMinCapacity, begin + bytes, 2 * host_capacity_});
    absl::StatusOr<DeviceBuffer> grown = device_->AllocateHost(capacity);
    if (!grown.ok()) {
      status_.Update(grown.status());
      return 0;
    }
    if (used_ > 0) std::memcpy(grown->get(), host_.get(), used_);
    host_ = *std::move(grown);
    host_capacity_ = capacity;
  }
  if (bytes > 0) std::memcpy(host_.get() + begin, data, bytes);
  used_ = begin + bytes;
  return begin;
}

absl::Status StepBuffer::Upload() {
  SY_RETURN_IF_ERROR(status_);
  if (used_ == 0) return absl::OkStatus();
  if (used_ > device_capacity_) {
    on_device_.reset();
    device_capacity_ = 0;
    SY_ASSIGN_OR_RETURN(on_device_, device_->Allocate(host_capacity_));
    device_capacity_ = host_capacity_;
  }
  return device_->CopyToDevice(on_device_.get(), host_.get(), used_);
}

}  // namespace switchyard
