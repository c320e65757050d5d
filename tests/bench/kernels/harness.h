// What the kernel checks and benchmarks share: tensors with a host copy,
// comparison against a reference in higher precision, and timing by graph
// replay over buffers that do not fit in the cache.
#ifndef SWITCHYARD_TESTS_BENCH_KERNELS_HARNESS_H_
#define SWITCHYARD_TESTS_BENCH_KERNELS_HARNESS_H_

#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kernels/activation.h"
#include "kernels/cuda_device.h"
#include "kernels/matmul.h"
#include "kernels/op_context.h"
#include "kernels/tensor.h"
#include "tests/bench/kernels/device_fill.h"

namespace switchyard::bench {

// Ends the process with the message: a benchmark has nobody to return to.
void Die(const absl::Status& status);
inline void Ok(const absl::Status& status) {
  if (!status.ok()) Die(status);
}
template <typename T>
T Value(absl::StatusOr<T> value) {
  Ok(value.status());
  return *std::move(value);
}

// A contiguous matrix on the device and what it holds, as stored.
struct Tensor {
  DeviceBuffer buffer;
  MatrixView view;
  std::vector<float> host;

  float at(int64_t row, int64_t col) const {
    return host[row * view.cols + col];
  }
};

struct CheckRow {
  std::string name;
  double error = 0;  // ||out - ref|| / ||ref||
  double tolerance = 0;
  bool passed = false;
};

struct TimeRow {
  std::string name;
  double us = 0;
  double spread = 0;  // (slowest - fastest) / median of the repeats
  double rate = 0;    // GB/s or TFLOP/s
  std::string unit;
  double ceiling = 0;
};

enum class Roof { kRead, kCopy, kGemm };

class Harness {
 public:
  // Without `times`, Time() does nothing: for compute-sanitizer.
  Harness(CudaDevice* device, bool times);

  const OpContext& context() const { return context_; }
  OpContext invariant() const;  // the same, batch-invariant
  CudaDevice* device() const { return device_; }
  bool times_wanted() const { return times_wanted_; }
  std::mt19937_64& random() { return random_; }

  // Normal values times `scale`, rounded to `dtype`, made on the host.
  Tensor Random(int64_t rows, int64_t cols, DType dtype, float scale = 1);
  Tensor FromHost(std::vector<float> values, int64_t rows, int64_t cols,
                  DType dtype);
  // Every byte 0xff: NaN in every float type.
  Tensor Poisoned(int64_t rows, int64_t cols, DType dtype);
  // Random values made on the device; no host copy.
  Tensor Large(int64_t rows, int64_t cols, DType dtype, float scale = 1);
  // A bf16 weight [n, k] of such values.
  WeightMatrix LargeWeight(int64_t n, int64_t k);
  template <typename T>
  DeviceBuffer Upload(const std::vector<T>& values) {
    return UploadBytes(values.data(), values.size() * sizeof(T));
  }
  std::vector<float> Download(const MatrixView& view);
  template <typename T>
  std::vector<T> Download(const void* device, int64_t count) {
    std::vector<T> values(count);
    DownloadBytes(values.data(), device, count * sizeof(T));
    return values;
  }

  // Compares, prints and records.
  void Check(const std::string& name, const std::vector<float>& out,
             const std::vector<double>& reference, double tolerance);
  void Expect(const std::string& name, bool holds);

  // Calls in a graph that is timed, or num_sets if those are more.
  static constexpr int kGraphCalls = 20;
  // Times run(set), set < num_sets, by replays of a graph of all sets; records
  // one call's `work` (bytes, or FLOP under kGemm) against its roof.
  void Time(const std::string& name, int num_sets, double work, Roof roof,
            const std::function<void(int set)>& run);
  void MeasureCeilings();

  bool AllPassed() const;
  // Tables on stdout; JSON to `path` unless it is empty.
  void Report(const std::string& path) const;

 private:
  DeviceBuffer UploadBytes(const void* data, int64_t bytes);
  void DownloadBytes(void* host, const void* device, int64_t bytes);
  // Median and spread of a call, in microseconds.
  std::pair<double, double> Replay(int num_sets,
                                   const std::function<void(int set)>& run);

  CudaDevice* const device_;
  const bool times_wanted_;
  DeviceBuffer workspace_buffer_;
  Workspace workspace_;
  OpContext context_;
  std::mt19937_64 random_;
  uint64_t next_seed_ = 1;
  double ceilings_[3] = {};
  std::vector<CheckRow> checks_;
  std::vector<TimeRow> times_;
};

// One per family of ops: checks, then timings.
void BenchElementwise(Harness* harness);
void BenchMatmul(Harness* harness);
void BenchAttention(Harness* harness);
void BenchRecurrent(Harness* harness);
void BenchOverlap(Harness* harness);
void BenchSampling(Harness* harness);
void BenchLayers(Harness* harness);

}  // namespace switchyard::bench

#endif  // SWITCHYARD_TESTS_BENCH_KERNELS_HARNESS_H_
