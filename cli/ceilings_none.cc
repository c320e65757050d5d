#include "cli/ceilings.h"

namespace switchyard::internal {
namespace {

absl::Status NoCuda() {
  return absl::UnimplementedError("this build has no CUDA");
}

}  // namespace

absl::Status ReadOnGpu(Device*, const void*, int64_t, float*) {
  return NoCuda();
}

absl::Status CopyOnGpu(Device*, void*, const void*, int64_t) {
  return NoCuda();
}

absl::Status FillOnGpu(Device*, void*, int64_t) { return NoCuda(); }

}  // namespace switchyard::internal
