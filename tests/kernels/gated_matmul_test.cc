#include "kernels/gated_matmul.h"

#include <cmath>

#include "kernels/activation.h"
#include "kernels/matmul.h"
#include "tests/kernels/device_fixture.h"

namespace switchyard {
namespace {

class GatedMatmulTest : public OpTest {
 protected:
  // Kept as the type of activations.
  WeightMatrix Weight(const HostMatrix& host) {
    const MatrixView view{const_cast<float*>(host.values.data()), DType::kF32,
                          host.rows, host.cols, host.cols};
    auto weight = WeightMatrix::Create(device(), view, activation());
    EXPECT_TRUE(weight.ok()) << weight.status();
    return *std::move(weight);
  }

  // silu(gate) * up of two exact sums, which are rounded to the type first.
  // Where that is a close call for sums of terms around 1 in fp32, either
  // neighbour is right: the one that leads closer to `actual`.
  double Expected(const double (&sums)[2], float actual) const {
    double best = std::nan("");
    for (const double gate_side : {-1e-5, 0.0, 1e-5}) {
      for (const double up_side : {-1e-5, 0.0, 1e-5}) {
        const double gate =
            RoundTo(static_cast<float>(sums[0] + gate_side), activation());
        const double up =
            RoundTo(static_cast<float>(sums[1] + up_side), activation());
        const double value = gate / (1 + std::exp(-gate)) * up;
        if (!(std::fabs(best - actual) <= std::fabs(value - actual)))
          best = value;
      }
    }
    return best;
  }
};

struct Shape {
  int64_t in, width;
};
constexpr Shape kShapes[] = {{256, 512}, {100, 37}, {8, 3}, {328, 1100}};

TEST_P(GatedMatmulTest, ActivatesAndMultipliesTheHalves) {
  for (const Shape& shape : kShapes) {
    for (int64_t rows : {1, 7, 8, 9, 16, 17, 40, 67}) {
      for (bool has_bias : {false, true}) {
        OpContext context = this->context();
        context.batch_invariant = rows % 3 == 1;

        const HostMatrix x = RandomMatrix(rows, shape.in, activation());
        const HostMatrix w =
            RandomMatrix(2 * shape.width, shape.in, activation(),
                         1 / std::sqrt(static_cast<float>(shape.in)));
        const std::vector<float> bias = RandomVector(2 * shape.width);
        const WeightMatrix weight = Weight(w);
        GatedMatmulArgs args;
        args.x = Upload(x, has_bias ? shape.in + 8 : 0);
        args.weight = &weight;
        args.bias = has_bias ? UploadArray(bias) : nullptr;
        args.product = Poisoned(rows, 2 * shape.width, activation());
        args.out = Poisoned(rows, shape.width, activation(),
                            has_bias ? shape.width + 5 : 0);
        SY_ASSERT_OK(GatedMatmul(context, args));
        const HostMatrix actual = Download(args.out);
        std::vector<double> expected;
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t o = 0; o < shape.width; ++o) {
            double sums[2];
            for (int half = 0; half < 2; ++half) {
              const int64_t row = half * shape.width + o;
              sums[half] = has_bias ? bias[row] : 0;
              for (int64_t i = 0; i < shape.in; ++i) {
                sums[half] += double{x.at(r, i)} * w.at(row, i);
              }
            }
            expected.push_back(Expected(sums, actual.at(r, o)));
          }
        }
        ExpectNear(actual, expected, 1e-5,
                   "[" + std::to_string(rows) + ", " +
                       std::to_string(shape.in) + "] x 2 x " +
                       std::to_string(shape.width),
                   4);
      }
    }
  }
}

TEST_P(GatedMatmulTest, HasTheBitsOfItsParts) {
  const Shape shape = {72, 150};
  const HostMatrix w = RandomMatrix(2 * shape.width, shape.in, activation());
  const WeightMatrix weight = Weight(w);
  for (bool batch_invariant : {false, true}) {
    OpContext context = this->context();
    context.batch_invariant = batch_invariant;
    for (ActivationKind kind :
         {ActivationKind::kIdentity, ActivationKind::kSilu,
          ActivationKind::kGelu, ActivationKind::kGeluTanh,
          ActivationKind::kRelu, ActivationKind::kSquaredRelu}) {
      for (int64_t rows : {1, 11, 30, 50, 100}) {
        const MatrixView x = Upload(RandomMatrix(rows, shape.in, activation()));
        const MatrixView product =
            Poisoned(rows, 2 * shape.width, activation());
        const MatrixView out = Poisoned(rows, shape.width, activation());
        const MatrixView parts = Poisoned(rows, shape.width, activation());
        SY_ASSERT_OK(
            GatedMatmul(context, {x, &weight, nullptr, kind, product, out}));
        SY_ASSERT_OK(Matmul(context, {x, &weight, nullptr, product}));
        SY_ASSERT_OK(Activation(context, {kind, product, true, parts}));
        EXPECT_EQ(Download(out).values, Download(parts).values)
            << "kind " << static_cast<int>(kind) << ", " << rows << " rows";
      }
    }
  }
}

TEST_P(GatedMatmulTest, RejectsWrongShapes) {
  const WeightMatrix odd = Weight(RandomMatrix(7, 8, activation()));
  const MatrixView x = Poisoned(2, 8, activation());
  const auto expect = [&](const WeightMatrix& weight, const MatrixView& product,
                          const MatrixView& out, const std::string& message) {
    const absl::Status status = GatedMatmul(
        context(), {x, &weight, nullptr, ActivationKind::kSilu, product, out});
    EXPECT_TRUE(absl::IsInvalidArgument(status));
    EXPECT_NE(std::string(status.message()).find(message), std::string::npos)
        << status;
  };
  expect(odd, Poisoned(2, 7, activation()), Poisoned(2, 3, activation()),
         "GatedMatmul: the weight has 7 rows");
  const WeightMatrix even = Weight(RandomMatrix(6, 8, activation()));
  expect(even, Poisoned(2, 6, activation()), Poisoned(2, 6, activation()),
         "GatedMatmul: out is [2, 6], should be [2, 3]");
  expect(even, Poisoned(2, 3, activation()), Poisoned(2, 3, activation()),
         "GatedMatmul: product is [2, 3], should be [2, 6]");
}

SY_INSTANTIATE_OP_TEST(GatedMatmulTest);

}  // namespace
}  // namespace switchyard
