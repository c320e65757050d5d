// What a test of an op runs on: a device, and tensors that come and go. The
// same body runs on the CPU and, compiled with SWITCHYARD_TEST_CUDA, on a GPU.
//
// Expected values are computed in double by the test itself, from inputs that
// are already rounded to the type they are uploaded in. Outputs start as NaN.
#ifndef SWITCHYARD_TESTS_KERNELS_DEVICE_FIXTURE_H_
#define SWITCHYARD_TESTS_KERNELS_DEVICE_FIXTURE_H_

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/device.h"
#include "kernels/op_context.h"
#include "kernels/tensor.h"
#include "kernels/varlen.h"

namespace switchyard {

#ifdef SWITCHYARD_TEST_CUDA
inline constexpr bool kTestCuda = true;
#else
inline constexpr bool kTestCuda = false;
#endif

// A matrix of values that its dtype represents exactly.
struct HostMatrix {
  int64_t rows = 0;
  int64_t cols = 0;
  DType dtype = DType::kF32;
  std::vector<float> values;

  float& at(int64_t row, int64_t col) { return values[row * cols + col]; }
  float at(int64_t row, int64_t col) const { return values[row * cols + col]; }
};

float RoundTo(float value, DType dtype);

// Whether every kind of row shall come just once: a checker that takes seconds
// for each launch (run_gpu_sanitizers) wants the kernels' paths, not
// statistics.
inline bool FewRows() {
  return std::getenv("SWITCHYARD_TEST_FEW_ROWS") != nullptr;
}

// The parameter is the type of activations: fp32 on the CPU; fp32 and bf16 on
// CUDA.
class OpTest : public testing::TestWithParam<DType> {
 protected:
  // `cuda` is left to its default: it is the device this source is compiled
  // for.
  explicit OpTest(bool cuda = kTestCuda) : wants_cuda_(cuda) {}

  void SetUp() override;

  Device* device() { return device_.get(); }
  bool cuda() const { return device_->type() == DeviceType::kCuda; }
  DType activation() const { return GetParam(); }
  const OpContext& context() const { return context_; }

  std::mt19937_64& random() { return random_; }
  // Uniform over [low, high].
  int32_t RandomInt(int32_t low, int32_t high);
  // Normal with this standard deviation, rounded to dtype.
  HostMatrix RandomMatrix(int64_t rows, int64_t cols, DType dtype,
                          float scale = 1);
  std::vector<float> RandomVector(int64_t size, float scale = 1);

  // Rows `row_stride` elements apart (0: cols); the gaps are NaN.
  MatrixView Upload(const HostMatrix& host, int64_t row_stride = 0);
  // An output: all NaN.
  MatrixView Poisoned(int64_t rows, int64_t cols, DType dtype,
                      int64_t row_stride = 0);
  HostMatrix Download(const MatrixView& view);

  template <typename T>
  T* UploadArray(const std::vector<T>& host) {
    return static_cast<T*>(UploadBytes(host.data(), host.size() * sizeof(T)));
  }
  template <typename T>
  std::vector<T> DownloadArray(const T* data, int64_t size) {
    std::vector<T> host(size);
    DownloadBytes(host.data(), data, size * sizeof(T));
    return host;
  }
  // 256-byte aligned; every float in it is NaN.
  std::byte* PoisonedBytes(int64_t bytes);

  // Sequences of (context length, new tokens); decodes first. Lives as long as
  // the test.
  VarlenBatch MakeBatch(const std::vector<std::pair<int32_t, int32_t>>& seqs);

  // What an output of this type may be off: rounding of the type itself, and
  // `fp32` for sums in another order. Relative to max(1, |expected|) * scale.
  void ExpectNear(const HostMatrix& actual, const std::vector<double>& expected,
                  double fp32, const std::string& what, double scale = 1);
  // The two runs did the same arithmetic: equal bits on the CPU, near on CUDA.
  void ExpectSame(const HostMatrix& actual, const HostMatrix& expected,
                  const std::string& what, double fp32 = 1e-4);

 private:
  void* UploadBytes(const void* host, int64_t bytes);
  void DownloadBytes(void* host, const void* data, int64_t bytes);
  std::byte* AllocateBytes(int64_t bytes);

  const bool wants_cuda_;
  std::unique_ptr<Device> device_;
  DeviceBuffer scratch_;
  Workspace workspace_;
  OpContext context_;
  std::vector<DeviceBuffer> buffers_;
  std::vector<std::unique_ptr<std::vector<int32_t>>> host_arrays_;
  std::mt19937_64 random_{20240607};
};

std::vector<DType> ActivationTypes(bool cuda = kTestCuda);
std::string ActivationName(const testing::TestParamInfo<DType>& info);

// Prints status on failure.
#define SY_EXPECT_OK(expr)                    \
  do {                                        \
    const absl::Status sy_status = (expr);    \
    EXPECT_TRUE(sy_status.ok()) << sy_status; \
  } while (false)
#define SY_ASSERT_OK(expr)                    \
  do {                                        \
    const absl::Status sy_status = (expr);    \
    ASSERT_TRUE(sy_status.ok()) << sy_status; \
  } while (false)

#define SY_INSTANTIATE_OP_TEST(Suite)                            \
  INSTANTIATE_TEST_SUITE_P(Activations, Suite,                   \
                           testing::ValuesIn(ActivationTypes()), \
                           ActivationName)

// For ops on logits, which are fp32 whatever the activations.
#define SY_INSTANTIATE_LOGITS_OP_TEST(Suite)                            \
  INSTANTIATE_TEST_SUITE_P(Logits, Suite, testing::Values(DType::kF32), \
                           ActivationName)

}  // namespace switchyard

#endif  // SWITCHYARD_TESTS_KERNELS_DEVICE_FIXTURE_H_
