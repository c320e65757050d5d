#include "kernels/device.h"

#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kernels/backends.h"

namespace switchyard {

absl::StatusOr<std::unique_ptr<Device>> MakeDevice(absl::string_view spec,
                                                   int num_threads) {
  if (spec == "cpu") return MakeCpuDevice(num_threads);
  if (spec == "cuda") return internal::MakeCudaDevice(0);
  if (spec == "auto") {
    absl::StatusOr<std::unique_ptr<Device>> cuda = internal::MakeCudaDevice(0);
    if (absl::IsUnimplemented(cuda.status()) ||
        absl::IsUnavailable(cuda.status())) {
      return MakeCpuDevice(num_threads);
    }
    return cuda;
  }
  absl::string_view ordinal_text = spec;
  int ordinal = 0;
  if (absl::ConsumePrefix(&ordinal_text, "cuda:") &&
      absl::SimpleAtoi(ordinal_text, &ordinal) && ordinal >= 0) {
    return internal::MakeCudaDevice(ordinal);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("device \"", spec,
                   "\" is none of \"auto\", \"cpu\", \"cuda\", \"cuda:N\""));
}

}  // namespace switchyard
