#include "tests/bench/kernels/families.h"

#include <algorithm>
#include <cstdio>
#include <memory>

#include "tests/bench/kernels/harness.h"

namespace switchyard::bench {
namespace {

struct Family {
  const char* name;
  void (*run)(Harness*);
};

constexpr Family kFamilies[] = {
    {"elementwise", BenchElementwise}, {"matmul", BenchMatmul},
    {"attention", BenchAttention},     {"recurrent", BenchRecurrent},
    {"overlap", BenchOverlap},         {"sampling", BenchSampling},
    {"layers", BenchLayers},
};

}  // namespace

std::vector<std::string> KernelFamilies() {
  std::vector<std::string> names;
  for (const Family& family : kFamilies) names.push_back(family.name);
  return names;
}

int RunKernelBench(const KernelBenchOptions& options) {
  const std::unique_ptr<CudaDevice> device =
      Value(CudaDevice::Create(options.device));
  std::printf("%s\n", device->name().c_str());
  Harness harness(device.get(), options.times);
  if (options.times) harness.MeasureCeilings();
  for (const Family& family : kFamilies) {
    if (!options.families.empty() &&
        std::find(options.families.begin(), options.families.end(),
                  family.name) == options.families.end()) {
      continue;
    }
    std::printf("---- %s\n", family.name);
    family.run(&harness);
  }
  harness.Report(options.json_path);
  return harness.AllPassed() ? 0 : 1;
}

}  // namespace switchyard::bench
