// kernel_bench [--json FILE] [--only NAME,...] [--no-times]: `switchyard bench
// kernels` as a program of its own, for builds with nvcc alone (build.sh).
#include <cstdio>
#include <string>

#include "absl/strings/str_split.h"
#include "tests/bench/kernels/families.h"

int main(int argc, char** argv) {
  switchyard::bench::KernelBenchOptions options;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--no-times") {
      options.times = false;
    } else if (flag == "--json" && i + 1 < argc) {
      options.json_path = argv[++i];
    } else if (flag == "--only" && i + 1 < argc) {
      options.families = absl::StrSplit(argv[++i], ',', absl::SkipEmpty());
    } else {
      std::printf(
          "usage: %s [--json FILE] [--only FAMILY,...] [--no-times]\n"
          "families:",
          argv[0]);
      for (const std::string& family : switchyard::bench::KernelFamilies())
        std::printf(" %s", family.c_str());
      std::printf("\n");
      return flag == "--help" ? 0 : 2;
    }
  }
  return switchyard::bench::RunKernelBench(options);
}
