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

absl::Status StepBuffer::GrowSide(Side& side, int64_t capacity, int64_t used) {
  SY_ASSIGN_OR_RETURN(DeviceBuffer grown, device_->AllocateHost(capacity));
  if (used > 0) std::memcpy(grown.get(), side.memory.get(), used);
  side.memory = std::move(grown);
  side.capacity = capacity;
  return absl::OkStatus();
}

absl::Status StepBuffer::GrowDevice(int64_t capacity) {
  // The step before may still read it.
  SY_RETURN_IF_ERROR(device_->Synchronize());
  on_device_.reset();
  device_capacity_ = 0;
  ++generation_;
  SY_ASSIGN_OR_RETURN(on_device_, device_->Allocate(capacity));
  device_capacity_ = capacity;
  return absl::OkStatus();
}

absl::Status StepBuffer::Reserve(int64_t bytes) {
  for (Side& side : sides_) {
    if (side.capacity < bytes) SY_RETURN_IF_ERROR(GrowSide(side, bytes, 0));
  }
  if (device_capacity_ < bytes) return GrowDevice(bytes);
  return absl::OkStatus();
}

int64_t StepBuffer::AppendBytes(const void* data, int64_t bytes) {
  const int64_t begin = (used_ + kAlignment - 1) / kAlignment * kAlignment;
  Side& side = sides_[side_];
  if (begin + bytes > side.capacity) {
    const int64_t capacity =
        std::max({kMinCapacity, begin + bytes, 2 * side.capacity});
    if (absl::Status grown = GrowSide(side, capacity, used_); !grown.ok()) {
      status_.Update(grown);
      return 0;
    }
  }
  if (bytes > 0 && data != nullptr) {
    std::memcpy(side.memory.get() + begin, data, bytes);
  }
  used_ = begin + bytes;
  return begin;
}

absl::Status StepBuffer::Upload() {
  SY_RETURN_IF_ERROR(status_);
  if (used_ == 0) return absl::OkStatus();
  if (used_ > device_capacity_) {
    SY_RETURN_IF_ERROR(GrowDevice(sides_[side_].capacity));
  }
  return device_->CopyToDevice(on_device_.get(), sides_[side_].memory.get(),
                               used_);
}

}  // namespace switchyard
