#include "kernels/rms_norm.h"

#include <cmath>
#include <numeric>

#include "tests/kernels/device_fixture.h"

namespace switchyard {
namespace {

class RmsNormTest : public OpTest {};

double InverseRms(const double* x, int64_t n, double epsilon) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i] * x[i];
  return 1 / std::sqrt(sum / n + epsilon);
}

TEST_P(RmsNormTest, AddsAndNormalises) {
  for (int64_t hidden : {1, 50, 256, 1000}) {
    for (DType delta_type : {DType::kF32, activation()}) {
      const HostMatrix residual = RandomMatrix(9, hidden, DType::kF32, 3);
      const HostMatrix delta = RandomMatrix(9, hidden, delta_type);
      const std::vector<float> weight = RandomVector(hidden);
      AddRmsNormArgs args;
      args.residual = Upload(residual, hidden + 8);
      args.delta = Upload(delta, hidden + 16);
      args.weight = UploadArray(weight);
      args.epsilon = 1e-5f;
      args.out = Poisoned(9, hidden, activation(), hidden + 8);
      SY_ASSERT_OK(AddRmsNorm(context(), args));
      std::vector<double> sums, expected;
      for (int64_t i = 0; i < 9 * hidden; ++i) {
        sums.push_back(residual.values[i] + delta.values[i]);
      }
      for (int64_t r = 0; r < 9; ++r) {
        const double scale = InverseRms(&sums[r * hidden], hidden, 1e-5);
        for (int64_t c = 0; c < hidden; ++c) {
          expected.push_back(sums[r * hidden + c] * scale * weight[c]);
        }
      }
      ExpectNear(Download(args.residual), sums, 2e-7, "residual");
      ExpectNear(Download(args.out), expected, 2e-6, "out");
    }
  }
}

// Three of five residual rows, in another order, with the deltas of yet
// another.
TEST_P(RmsNormTest, MovesBetweenRowOrders) {
  constexpr int64_t kHidden = 40;
  const HostMatrix residual = RandomMatrix(5, kHidden, DType::kF32);
  const HostMatrix delta = RandomMatrix(4, kHidden, activation());
  const std::vector<float> weight = RandomVector(kHidden);
  const std::vector<int32_t> rows = {4, 0, 2}, delta_rows = {1, 3, 0};
  AddRmsNormArgs args;
  args.residual = Upload(residual);
  args.delta = Upload(delta);
  args.rows = UploadArray(rows);
  args.delta_rows = UploadArray(delta_rows);
  args.weight = UploadArray(weight);
  args.epsilon = 1e-6f;
  args.out = Poisoned(3, kHidden, activation());
  SY_ASSERT_OK(AddRmsNorm(context(), args));
  std::vector<double> sums(residual.values.begin(), residual.values.end());
  std::vector<double> expected;
  for (int i = 0; i < 3; ++i) {
    double* sum = &sums[rows[i] * kHidden];
    for (int64_t c = 0; c < kHidden; ++c) sum[c] += delta.at(delta_rows[i], c);
    const double scale = InverseRms(sum, kHidden, 1e-6);
    for (int64_t c = 0; c < kHidden; ++c) {
      expected.push_back(sum[c] * scale * weight[c]);
    }
  }
  ExpectNear(Download(args.residual), sums, 2e-7, "residual");
  ExpectNear(Download(args.out), expected, 2e-6, "out");
}

TEST_P(RmsNormTest, WithoutDeltaLeavesTheResidual) {
  constexpr int64_t kHidden = 64;
  const HostMatrix residual = RandomMatrix(3, kHidden, DType::kF32);
  AddRmsNormArgs args;
  args.residual = Upload(residual);
  args.weight = UploadArray(std::vector<float>(kHidden, 1.0f));
  args.out = Poisoned(3, kHidden, activation());
  SY_ASSERT_OK(AddRmsNorm(context(), args));
  EXPECT_EQ(Download(args.residual).values, residual.values);
}

TEST_P(RmsNormTest, ARowDoesNotDependOnTheOthers) {
  constexpr int64_t kHidden = 300;
  const HostMatrix residual = RandomMatrix(64, kHidden, DType::kF32);
  const std::vector<float> weight = RandomVector(kHidden);
  AddRmsNormArgs args;
  args.residual = Upload(residual);
  args.weight = UploadArray(weight);
  args.epsilon = 1e-5f;
  args.out = Poisoned(64, kHidden, activation());
  SY_ASSERT_OK(AddRmsNorm(context(), args));
  const HostMatrix all = Download(args.out);
  for (int64_t row : {0, 31, 63}) {
    AddRmsNormArgs alone = args;
    alone.residual = args.residual.Rows(row, 1);
    alone.out = Poisoned(1, kHidden, activation());
    SY_ASSERT_OK(AddRmsNorm(context(), alone));
    HostMatrix expected{1, kHidden, activation(), {}};
    expected.values.assign(all.values.begin() + row * kHidden,
                           all.values.begin() + (row + 1) * kHidden);
    ExpectSame(Download(alone.out), expected, "row");
  }
}

TEST_P(RmsNormTest, GatesPerHead) {
  for (int32_t head_dim : {16, 32, 64, 128}) {
    for (DType x_type : {DType::kF32, activation()}) {
      for (GateActivation gate_kind :
           {GateActivation::kSilu, GateActivation::kSigmoid}) {
        const int64_t cols = 3 * head_dim;
        const HostMatrix x = RandomMatrix(6, cols, x_type, 2);
        const HostMatrix gate = RandomMatrix(6, cols, activation(), 3);
        const std::vector<float> weight = RandomVector(head_dim);
        GatedRmsNormArgs args;
        args.x = Upload(x);
        args.gate = Upload(gate, cols + 40);
        args.weight = UploadArray(weight);
        args.epsilon = 1e-5f;
        args.activation = gate_kind;
        args.head_dim = head_dim;
        args.out = Poisoned(6, cols, activation());
        SY_ASSERT_OK(GatedRmsNorm(context(), args));
        std::vector<double> expected;
        const std::vector<double> wide(x.values.begin(), x.values.end());
        for (int64_t i = 0; i < 6 * cols; i += head_dim) {
          const double scale = InverseRms(&wide[i], head_dim, 1e-5);
          for (int64_t c = 0; c < head_dim; ++c) {
            const double z = gate.values[i + c];
            const double sigmoid = 1 / (1 + std::exp(-z));
            expected.push_back(
                wide[i + c] * scale * weight[c] *
                (gate_kind == GateActivation::kSilu ? z * sigmoid : sigmoid));
          }
        }
        ExpectNear(Download(args.out), expected, 2e-6,
                   "head_dim " + std::to_string(head_dim));
      }
    }
  }
}

TEST_P(RmsNormTest, RejectsAHeadDimThatDoesNotDivide) {
  GatedRmsNormArgs args;
  args.x = args.gate = args.out = Poisoned(2, 48, activation());
  args.weight = UploadArray(std::vector<float>(32));
  args.head_dim = 32;
  EXPECT_TRUE(absl::IsInvalidArgument(GatedRmsNorm(context(), args)));
}

SY_INSTANTIATE_OP_TEST(RmsNormTest);

}  // namespace
}  // namespace switchyard
