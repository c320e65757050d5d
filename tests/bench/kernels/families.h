// Checks and times of every CUDA kernel, family by family: what
// `switchyard bench kernels` and the stand-alone kernel_bench run.
#ifndef SWITCHYARD_TESTS_BENCH_KERNELS_FAMILIES_H_
#define SWITCHYARD_TESTS_BENCH_KERNELS_FAMILIES_H_

#include <string>
#include <vector>

namespace switchyard::bench {

struct KernelBenchOptions {
  std::vector<std::string> families;  // empty: all
  bool times = true;                  // else checks only, for a sanitizer
  int device = 0;                     // of the machine's GPUs
  std::string json_path;              // empty: none
};

std::vector<std::string> KernelFamilies();

// Checks every kernel against a reference in double, then times it against the
// ceilings measured in the same run. The process's exit code: 0, or 1 when a
// check failed. A device that does not work ends the process.
int RunKernelBench(const KernelBenchOptions& options);

}  // namespace switchyard::bench

#endif  // SWITCHYARD_TESTS_BENCH_KERNELS_FAMILIES_H_
