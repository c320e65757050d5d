// StepBuffer: the small arrays of one step (token ids, positions, tables,
// sampling parameters), packed on the host and copied to the device at once.
//
// Clear, Append in any order, Upload, then the slices are readable on both
// sides until the next Clear. Append may move the host memory: take pointers
// after Upload. Grows when a step needs more than any before it, and not
// otherwise.
#ifndef SWITCHYARD_WORKER_STEP_BUFFER_H_
#define SWITCHYARD_WORKER_STEP_BUFFER_H_

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/device.h"

namespace switchyard {

class StepBuffer {
 public:
  // Where an array lies in the buffer.
  template <typename T>
  struct Slice {
    int64_t offset = 0;
    int64_t size = 0;
  };

  explicit StepBuffer(Device* device) : device_(device) {}

  // REQUIRES: the device has finished with what was uploaded before.
  void Clear() { used_ = 0; }

  template <typename T>
  Slice<T> Append(absl::Span<const T> values) {
    static_assert(std::is_trivially_copyable_v<T>);
    return {AppendBytes(values.data(), values.size() * sizeof(T)),
            static_cast<int64_t>(values.size())};
  }

  // Copies everything to the device, in stream order. ResourceExhausted also
  // for a failed Append.
  absl::Status Upload();

  template <typename T>
  const T* host(Slice<T> slice) const {
    return reinterpret_cast<const T*>(host_.get() + slice.offset);
  }
  template <typename T>
  const T* device(Slice<T> slice) const {
    return reinterpret_cast<const T*>(on_device_.get() + slice.offset);
  }

 private:
  int64_t AppendBytes(const void* data, int64_t bytes);

  Device* const device_;
  DeviceBuffer host_;
  DeviceBuffer on_device_;
  int64_t host_capacity_ = 0;
  int64_t device_capacity_ = 0;
  int64_t used_ = 0;
  absl::Status status_;  // of growing the host side
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_STEP_BUFFER_H_
