#include "cli/ceilings.h"
#include "tests/bench/kernels/device_fill.h"

namespace switchyard::internal {

absl::Status ReadOnGpu(Device* device, const void* data, int64_t bytes,
                       float* sink) {
  return bench::ReadAll(data, bytes, sink, device->stream());
}

absl::Status CopyOnGpu(Device* device, void* to, const void* from,
                       int64_t bytes) {
  return bench::CopyAll(to, from, bytes, device->stream());
}

absl::Status FillOnGpu(Device* device, void* data, int64_t bytes) {
  return bench::FillRandom(data, DType::kF32, bytes / 4, 1.0f, 1,
                           device->stream());
}

}  // namespace switchyard::internal
