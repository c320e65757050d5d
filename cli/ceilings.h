// What a device can do at best, measured: the yardstick of every benchmark.
#ifndef SWITCHYARD_CLI_CEILINGS_H_
#define SWITCHYARD_CLI_CEILINGS_H_

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device.h"

namespace switchyard {

struct Ceilings {
  double read_gbps = 0;    // GB/s of bytes read
  double copy_gbps = 0;    // GB/s of bytes read and bytes written
  double gemm_tflops = 0;  // of one large square product: bf16, on a CPU fp32
};

// Takes a few seconds, and up to 5 GB of the device while it runs. Memory
// traffic goes through buffers much larger than any cache; every number is the
// median of several repeats.
absl::StatusOr<Ceilings> MeasureCeilings(Device* device);

nlohmann::json ToJson(const Ceilings& ceilings);

namespace internal {

// One pass over device memory, enqueued. Unimplemented without CUDA.
absl::Status ReadOnGpu(Device* device, const void* data, int64_t bytes,
                       float* sink);
absl::Status CopyOnGpu(Device* device, void* to, const void* from,
                       int64_t bytes);
absl::Status FillOnGpu(Device* device, void* data, int64_t bytes);

}  // namespace internal
}  // namespace switchyard

#endif  // SWITCHYARD_CLI_CEILINGS_H_
