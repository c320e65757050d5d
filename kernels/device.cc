#include "kernels/device.h"

#include <memory>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "kernels/backends.h"

namespace switchyard {

std::string DeviceOfRank(absl::string_view spec, int rank, int num_ranks,
                         std::string* why_cpu) {
  why_cpu->clear();
  if (spec != "cuda" && spec != "auto") return std::string(spec);
  if (spec == "auto") {
    for (int ordinal = 0; ordinal < num_ranks; ++ordinal) {
      const absl::Status usable = internal::CheckCudaDevice(ordinal);
      if (usable.ok()) continue;
      if (!absl::IsUnimplemented(usable))
        *why_cpu = std::string(usable.message());
      return "cpu";
    }
  }
  return absl::StrCat("cuda:", rank);
}

absl::StatusOr<std::unique_ptr<Device>> MakeDevice(absl::string_view spec,
                                                   int num_threads) {
  if (spec == "cpu") return MakeCpuDevice(num_threads);
  if (spec == "cuda") return internal::MakeCudaDevice(0);
  if (spec == "auto") {
    std::string why_cpu;
    return MakeDevice(DeviceOfRank(spec, 0, 1, &why_cpu), num_threads);
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
