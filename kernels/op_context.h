// OpContext: what every op gets beside its arguments. Ops never allocate device
// memory and never synchronise.
#ifndef SWITCHYARD_KERNELS_OP_CONTEXT_H_
#define SWITCHYARD_KERNELS_OP_CONTEXT_H_

#include <cstddef>
#include <cstdint>

#include "kernels/check.h"
#include "kernels/device.h"

namespace switchyard {

// A bump allocator over one device buffer. Activations and op scratch come from
// here; addresses depend only on the order of allocations since Reset(), so
// that a captured CUDA graph stays valid. Borrows the buffer. Not thread-safe.
class Workspace {
 public:
  Workspace() = default;
  Workspace(std::byte* data, int64_t bytes) : data_(data), bytes_(bytes) {}

  // 256-byte aligned. REQUIRES: it fits. A workspace without a buffer only
  // counts: the same allocations made on one tell how large the buffer must be.
  std::byte* Allocate(int64_t bytes) {
    const int64_t begin = used_;
    used_ += (bytes + 255) / 256 * 256;
    if (data_ == nullptr) return reinterpret_cast<std::byte*>(256);
    SY_CHECK(used_ <= bytes_);
    return data_ + begin;
  }
  int64_t used() const { return used_; }
  int64_t bytes() const { return bytes_; }
  // Frees everything allocated since `mark` = used() was read.
  void Rewind(int64_t mark) { used_ = mark; }
  void Reset() { used_ = 0; }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
  int64_t used_ = 0;
};

// What a workspace has for an op's scratch beside what the model itself counts,
// whatever the batch's size. An op that needs more for a large batch works
// through it in parts.
constexpr int64_t kOpScratchBytes = int64_t{32} << 20;

struct OpContext {
  Device* device = nullptr;
  Workspace* workspace = nullptr;  // scratch of ops: an op rewinds what it took
  // Results do not depend on the rest of the batch, bit for bit. Always so on
  // the CPU; costs speed on CUDA.
  bool batch_invariant = false;
  // A kernel may start before the one before it has ended, and read at once
  // what no kernel of the step writes (cuda_common.h).
  bool early_start = true;

  bool cuda() const { return device->type() == DeviceType::kCuda; }
  void* stream() const { return device->stream(); }
};

}  // namespace switchyard

#endif  // SWITCHYARD_KERNELS_OP_CONTEXT_H_
