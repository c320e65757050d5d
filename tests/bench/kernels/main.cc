// kernel_bench [--json FILE] [--only NAME,...] [--no-times]: checks every CUDA
// kernel against a reference in double, then times it against the ceilings
// measured in the same run.
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>

#include "absl/strings/str_split.h"
#include "tests/bench/kernels/harness.h"

int main(int argc, char** argv) {
  using namespace switchyard::bench;
  struct Family {
    const char* name;
    void (*run)(Harness*);
  };
  const Family families[] = {
      {"elementwise", BenchElementwise}, {"matmul", BenchMatmul},
      {"attention", BenchAttention},     {"recurrent", BenchRecurrent},
      {"sampling", BenchSampling},       {"layers", BenchLayers},
  };
  std::string json, only;
  bool times = true;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--no-times") {
      times = false;
    } else if ((flag == "--json" || flag == "--only") && i + 1 < argc) {
      (flag == "--json" ? json : only) = argv[++i];
    } else {
      std::printf(
          "usage: %s [--json FILE] [--only FAMILY,...] [--no-times]\n"
          "families:",
          argv[0]);
      for (const Family& family : families) std::printf(" %s", family.name);
      std::printf("\n");
      return flag == "--help" ? 0 : 2;
    }
  }
  const std::unique_ptr<switchyard::CudaDevice> device =
      Value(switchyard::CudaDevice::Create(0));
  std::printf("%s\n", device->name().c_str());
  Harness harness(device.get(), times);
  if (times) harness.MeasureCeilings();
  const std::vector<std::string> wanted =
      absl::StrSplit(only, ',', absl::SkipEmpty());
  for (const Family& family : families) {
    if (!wanted.empty() &&
        std::find(wanted.begin(), wanted.end(), family.name) == wanted.end())
      continue;
    std::printf("---- %s\n", family.name);
    family.run(&harness);
  }
  harness.Report(json);
  return harness.AllPassed() ? 0 : 1;
}
