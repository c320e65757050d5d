// StepBuffer: the small arrays of one step (token ids, positions, tables,
// sampling parameters), packed on the host and copied to the device at once.
//
// Clear, Append in any order, Upload, then the slices are readable on both
// sides until the next Clear. Append may move the host memory: take pointers
// after Upload. The same sequence of sizes gives the same offsets, so what a
// graph of the device's was recorded with stays where it is, until the device's
// side grows.
//
// Two steps may be under way: the host has two sides, and Clear turns to the
// other one, so that packing a step never touches what is still being copied
// for the step before it. The device has one, which the stream protects. Grows
// when a step needs more than any before it, and not otherwise.
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

  // REQUIRES: the device has finished with the upload before the last one.
  void Clear() {
    side_ = 1 - side_;
    used_ = 0;
  }

  template <typename T>
  Slice<T> Append(absl::Span<const T> values) {
    static_assert(std::is_trivially_copyable_v<T>);
    return {AppendBytes(values.data(), values.size() * sizeof(T)),
            static_cast<int64_t>(values.size())};
  }
  // Room for `size` elements, to be written through `*values` before the next
  // call; null if there is no memory, which Upload reports.
  template <typename T>
  Slice<T> AppendRoom(int64_t size, T** values) {
    static_assert(std::is_trivially_copyable_v<T>);
    const int64_t offset = AppendBytes(nullptr, size * sizeof(T));
    *values = status_.ok()
                  ? reinterpret_cast<T*>(sides_[side_].memory.get() + offset)
                  : nullptr;
    return {offset, size};
  }

  // Copies everything to the device, in stream order. ResourceExhausted also
  // for a failed Append.
  absl::Status Upload();
  // Makes room for steps of this size on both sides.
  absl::Status Reserve(int64_t bytes);

  int64_t used() const { return used_; }
  // Changes when the device's side moves.
  int64_t generation() const { return generation_; }

  template <typename T>
  const T* host(Slice<T> slice) const {
    return reinterpret_cast<const T*>(sides_[side_].memory.get() +
                                      slice.offset);
  }
  template <typename T>
  const T* device(Slice<T> slice) const {
    return reinterpret_cast<const T*>(on_device_.get() + slice.offset);
  }
  template <typename T>
  T* mutable_device(Slice<T> slice) {
    return reinterpret_cast<T*>(on_device_.get() + slice.offset);
  }

 private:
  struct Side {
    DeviceBuffer memory;
    int64_t capacity = 0;
  };

  // A null `data` leaves the room as it is.
  int64_t AppendBytes(const void* data, int64_t bytes);
  absl::Status GrowSide(Side& side, int64_t capacity, int64_t used);
  absl::Status GrowDevice(int64_t capacity);

  Device* const device_;
  Side sides_[2];
  int side_ = 0;
  DeviceBuffer on_device_;
  int64_t device_capacity_ = 0;
  int64_t generation_ = 0;
  int64_t used_ = 0;
  absl::Status status_;  // of growing the host side
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_STEP_BUFFER_H_
