#include "kernels/matmul.h"

#include <cmath>

#include "tests/kernels/device_fixture.h"

namespace switchyard {
namespace {

class MatmulTest : public OpTest {
 protected:
  // What the device keeps weights as when activations are of this type.
  WeightMatrix Weight(const HostMatrix& host) {
    // Host memory, whatever the device.
    std::vector<uint16_t> halves;
    MatrixView view{const_cast<float*>(host.values.data()), DType::kF32,
                    host.rows, host.cols, host.cols};
    if (host.dtype != DType::kF32) {
      for (float v : host.values) {
        halves.push_back(host.dtype == DType::kBF16 ? FloatToBF16(v)
                                                    : FloatToF16(v));
      }
      view.data = halves.data();
      view.dtype = host.dtype;
    }
    auto weight = WeightMatrix::Create(device(), view, activation());
    EXPECT_TRUE(weight.ok()) << weight.status();
    return *std::move(weight);
  }
};

struct Shape {
  int64_t in, out;
};
constexpr Shape kShapes[] = {{256, 512}, {100, 37}, {8, 128},   {256, 4},
                             {1024, 64}, {3, 1},    {192, 128}, {2056, 75}};

TEST_P(MatmulTest, MultipliesWithBiasAndStrides) {
  for (const Shape& shape : kShapes) {
    for (int64_t rows : {1, 3, 8, 17, 29, 64, 75, 130}) {
      for (bool has_bias : {false, true}) {
        const HostMatrix x = RandomMatrix(rows, shape.in, activation());
        const HostMatrix w = RandomMatrix(shape.out, shape.in, activation());
        const std::vector<float> bias = RandomVector(shape.out);
        const WeightMatrix weight = Weight(w);
        MatmulArgs args;
        args.x = Upload(x, has_bias ? shape.in + 8 : 0);
        args.weight = &weight;
        args.bias = has_bias ? UploadArray(bias) : nullptr;
        std::vector<double> expected;
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t o = 0; o < shape.out; ++o) {
            double sum = has_bias ? bias[o] : 0;
            for (int64_t i = 0; i < shape.in; ++i) {
              sum += double{x.at(r, i)} * w.at(o, i);
            }
            expected.push_back(sum);
          }
        }
        // The sums wander as far as sqrt(in), and round at every step.
        for (bool batch_invariant : {false, true}) {
          OpContext context = this->context();
          context.batch_invariant = batch_invariant;
          args.out = Poisoned(rows, shape.out, DType::kF32,
                              has_bias ? shape.out + 8 : 0);
          SY_ASSERT_OK(Matmul(context, args));
          ExpectNear(Download(args.out), expected, 5e-6,
                     "[" + std::to_string(rows) + ", " +
                         std::to_string(shape.in) + "] x " +
                         std::to_string(shape.out) +
                         (batch_invariant ? " invariant" : ""),
                     std::sqrt(double(shape.in)));
        }
      }
    }
  }
}

TEST_P(MatmulTest, TakesEveryTypeOfHostWeight) {
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    HostMatrix w = RandomMatrix(24, 32, dtype);
    if (activation() == DType::kBF16) {
      // Representable as both, so that the expectation is exact.
      for (float& v : w.values) v = std::round(v * 8) / 8;
    }
    const HostMatrix x = RandomMatrix(2, 32, activation());
    const WeightMatrix weight = Weight(w);
    EXPECT_EQ(weight.out_features(), 24);
    EXPECT_EQ(weight.in_features(), 32);
    MatmulArgs args;
    args.x = Upload(x);
    args.weight = &weight;
    args.out = Poisoned(2, 24, DType::kF32);
    SY_ASSERT_OK(Matmul(context(), args));
    std::vector<double> expected;
    for (int64_t r = 0; r < 2; ++r) {
      for (int64_t o = 0; o < 24; ++o) {
        double sum = 0;
        for (int64_t i = 0; i < 32; ++i) {
          sum += double{x.at(r, i)} * w.at(o, i);
        }
        expected.push_back(sum);
      }
    }
    ExpectNear(Download(args.out), expected, 1e-5, DTypeName(dtype));
  }
}

TEST_P(MatmulTest, ARowsBitsDoNotDependOnTheNumberOfRows) {
  OpContext context = this->context();
  context.batch_invariant = true;
  for (const Shape& shape :
       {Shape{256, 512}, Shape{1024, 64}, Shape{100, 37}, Shape{4096, 40}}) {
    const int32_t num_rows = FewRows() ? 64 : 512;
    const HostMatrix x = RandomMatrix(num_rows, shape.in, activation());
    const WeightMatrix weight =
        Weight(RandomMatrix(shape.out, shape.in, activation()));
    const std::vector<float> bias = RandomVector(shape.out);
    MatmulArgs args;
    args.weight = &weight;
    args.bias = UploadArray(bias);
    const MatrixView all_x = Upload(x);
    // Alone: one row at a time.
    HostMatrix alone{num_rows, shape.out, DType::kF32, {}};
    for (int64_t r = 0; r < num_rows; ++r) {
      args.x = all_x.Rows(r, 1);
      args.out = Poisoned(1, shape.out, DType::kF32);
      SY_ASSERT_OK(Matmul(context, args));
      const HostMatrix row = Download(args.out);
      alone.values.insert(alone.values.end(), row.values.begin(),
                          row.values.end());
    }
    std::vector<int64_t> counts = {2, 16, 17, 40, 64};
    if (!FewRows()) {
      counts = {100, 257, 512};
      for (int64_t m = 2; m <= 64; ++m) counts.push_back(m);
    }
    for (int64_t m : counts) {
      const int64_t begin = RandomInt(0, num_rows - static_cast<int32_t>(m));
      args.x = all_x.Rows(begin, m);
      args.out = Poisoned(m, shape.out, DType::kF32);
      SY_ASSERT_OK(Matmul(context, args));
      HostMatrix expected{m, shape.out, DType::kF32, {}};
      expected.values.assign(alone.values.begin() + begin * shape.out,
                             alone.values.begin() + (begin + m) * shape.out);
      EXPECT_TRUE(Download(args.out).values == expected.values)
          << m << " rows of " << shape.in << " to " << shape.out;
    }
  }
}

TEST_P(MatmulTest, NanReachesItsRowOnly) {
  HostMatrix x = RandomMatrix(5, 64, activation());
  x.at(2, 17) = NAN;
  const WeightMatrix weight = Weight(RandomMatrix(48, 64, activation()));
  MatmulArgs args;
  args.x = Upload(x);
  args.weight = &weight;
  args.out = Poisoned(5, 48, DType::kF32);
  SY_ASSERT_OK(Matmul(context(), args));
  const HostMatrix out = Download(args.out);
  for (int64_t r = 0; r < 5; ++r) {
    for (int64_t c = 0; c < 48; ++c) {
      EXPECT_EQ(std::isnan(out.at(r, c)), r == 2);
    }
  }
}

TEST_P(MatmulTest, RejectsWrongShapesAndMissingWeights) {
  const WeightMatrix weight = Weight(RandomMatrix(16, 32, activation()));
  MatmulArgs args;
  args.x = Poisoned(2, 31, activation());
  args.out = Poisoned(2, 16, DType::kF32);
  EXPECT_TRUE(absl::IsInvalidArgument(Matmul(context(), args)));
  args.weight = &weight;
  const absl::Status status = Matmul(context(), args);
  EXPECT_EQ(status.message(), "Matmul: x is [2, 31], should be [2, 32]");
  const MatrixView ids = MakeMatrix(nullptr, DType::kI32, 2, 2);
  EXPECT_TRUE(absl::IsInvalidArgument(
      WeightMatrix::Create(device(), ids, activation()).status()));
}

SY_INSTANTIATE_OP_TEST(MatmulTest);

}  // namespace
}  // namespace switchyard
