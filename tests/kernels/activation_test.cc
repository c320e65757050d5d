#include "kernels/activation.h"

#include <cmath>

#include "tests/bench/kernels/reference_activation.h"
#include "tests/kernels/device_fixture.h"

namespace switchyard {
namespace {

class ActivationTest : public OpTest {};

constexpr ActivationKind kKinds[] = {
    ActivationKind::kIdentity, ActivationKind::kSilu,
    ActivationKind::kGelu,     ActivationKind::kGeluTanh,
    ActivationKind::kRelu,     ActivationKind::kSquaredRelu};

TEST_P(ActivationTest, TakesMoreRowsThanAGridIsHigh) {
  constexpr int64_t kRows = 70000;
  const HostMatrix x = RandomMatrix(kRows, 8, activation(), 4);
  ActivationArgs args;
  args.kind = ActivationKind::kRelu;
  args.x = Upload(x);
  args.out = Poisoned(kRows, 8, activation());
  SY_ASSERT_OK(Activation(context(), args));
  std::vector<double> expected;
  for (float value : x.values)
    expected.push_back(ReferenceActivation(ActivationKind::kRelu, value));
  ExpectNear(Download(args.out), expected, 1e-6, "70000 rows");
}

TEST_P(ActivationTest, MatchesItsFormula) {
  for (ActivationKind kind : kKinds) {
    for (int64_t width : {1, 7, 160, 513}) {
      for (bool gated : {false, true}) {
        const HostMatrix x =
            RandomMatrix(5, gated ? 2 * width : width, activation(), 4);
        ActivationArgs args;
        args.kind = kind;
        args.gated = gated;
        args.x = Upload(x, x.cols + 3);
        args.out = Poisoned(5, width, activation(), width + 8);
        SY_ASSERT_OK(Activation(context(), args));
        std::vector<double> expected;
        for (int64_t r = 0; r < 5; ++r) {
          for (int64_t c = 0; c < width; ++c) {
            expected.push_back(ReferenceActivation(kind, x.at(r, c)) *
                               (gated ? x.at(r, width + c) : 1));
          }
        }
        ExpectNear(Download(args.out), expected, 1e-6,
                   "kind " + std::to_string(static_cast<int>(kind)) +
                       ", width " + std::to_string(width));
      }
    }
  }
}

TEST_P(ActivationTest, ExtremesStayFinite) {
  HostMatrix x{
      1, 8, activation(), {-1e30f, -200, -90, -0.0f, 0, 90, 200, 1e4f}};
  for (float& v : x.values) v = RoundTo(v, activation());
  ActivationArgs args;
  args.x = Upload(x);
  args.out = Poisoned(1, 8, activation());
  SY_ASSERT_OK(Activation(context(), args));
  std::vector<double> expected;
  for (float v : x.values)
    expected.push_back(ReferenceActivation(args.kind, v));
  ExpectNear(Download(args.out), expected, 1e-6, "silu");
}

TEST_P(ActivationTest, WorksInPlace) {
  const HostMatrix x = RandomMatrix(33, 100, activation());
  ActivationArgs args;
  args.kind = ActivationKind::kSquaredRelu;
  args.x = Upload(x);
  args.out = args.x;
  SY_ASSERT_OK(Activation(context(), args));
  std::vector<double> expected;
  for (float v : x.values)
    expected.push_back(ReferenceActivation(args.kind, v));
  ExpectNear(Download(args.out), expected, 1e-6, "in place");
}

TEST_P(ActivationTest, RejectsWrongShapes) {
  ActivationArgs args;
  args.gated = true;
  args.x = Poisoned(4, 64, activation());
  args.out = Poisoned(4, 64, activation());
  const absl::Status status = Activation(context(), args);
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_NE(std::string(status.message()).find("Activation: "),
            std::string::npos)
      << status;
}

SY_INSTANTIATE_OP_TEST(ActivationTest);

}  // namespace
}  // namespace switchyard
