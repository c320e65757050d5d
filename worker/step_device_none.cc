// A build without CUDA has no CUDA device to ask for.
#include "kernels/check.h"
#include "worker/step_device.h"

namespace switchyard::internal {

std::unique_ptr<StepDevice> MakeCudaStepDevice(Device*) {
  SY_CHECK(false);
  return nullptr;
}

}  // namespace switchyard::internal
