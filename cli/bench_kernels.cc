// switchyard bench kernels: every CUDA kernel alone.
#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/bench.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "kernels/device.h"
#ifdef SWITCHYARD_CUDA
#include "tests/bench/kernels/families.h"
#endif

namespace switchyard {

int BenchKernels(absl::Span<const std::string> args) {
  std::vector<std::string> only;
  bool times = true;
  int device = 0;
  std::optional<std::string> json_path;
  std::string families = "in a build with CUDA";
#ifdef SWITCHYARD_CUDA
  families = absl::StrJoin(bench::KernelFamilies(), ", ");
#endif
  FlagSet flags("switchyard bench kernels",
                "Checks every CUDA kernel against a reference in higher "
                "precision, and times it against the ceilings of memory "
                "traffic and matrix products measured in the same run. Exit "
                "code 1 when a check failed.",
                "[flags]");
  flags.List("only", &only, "FAMILY,...",
             absl::StrCat("of ", families, " (default: all)"));
  flags.Bool("times", &times, "time the kernels too, not only check them");
  flags.Int("device", &device, 0, 1023, "the GPU's number");
  flags.String("json", &json_path, "FILE", "the results as JSON, too");
  if (std::optional<int> exit_code = flags.ParseOrExitCode(args))
    return *exit_code;
#ifdef SWITCHYARD_CUDA
  const std::vector<std::string> known = bench::KernelFamilies();
  for (const std::string& name : only) {
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      return Fail("bench kernels", absl::InvalidArgumentError(absl::StrCat(
                                       "--only: there is no family '", name,
                                       "'; there are ", families)));
    }
  }
  const absl::Status usable =
      MakeDevice(absl::StrCat("cuda:", device), 0).status();
  if (!usable.ok()) return Fail("bench kernels", usable);
  bench::KernelBenchOptions options;
  options.families = only;
  options.times = times;
  options.device = device;
  options.json_path = json_path.value_or("");
  return bench::RunKernelBench(options);
#else
  return Fail("bench kernels",
              absl::UnimplementedError(
                  "this build has no CUDA; build where there is a CUDA "
                  "toolkit (CUDA_HOME), and run on a machine with a GPU"));
#endif
}

}  // namespace switchyard
