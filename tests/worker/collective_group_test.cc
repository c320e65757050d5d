#include "worker/collective_group.h"

#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/device.h"
#include "kernels/op_context.h"
#include "kernels/rms_norm.h"
#include "tests/worker/thread_collective.h"
#include "worker/collective.h"
#include "worker/step_device.h"

namespace switchyard {
namespace {

constexpr int64_t kRows = 5, kHidden = 37;

std::vector<float> Draw(uint32_t seed, int64_t n) {
  std::mt19937 bits(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(n);
  for (float& v : x) v = normal(bits);
  return x;
}

// A rank's matrices; the same on all ranks but for the delta.
struct Matrices {
  explicit Matrices(int rank)
      : residual(Draw(1, kRows * kHidden)),
        delta(Draw(10 + rank, kRows * kHidden)),
        weight(Draw(2, kHidden)),
        out(kRows * kHidden) {
    args.residual = MakeMatrix(residual.data(), DType::kF32, kRows, kHidden);
    args.delta = MakeMatrix(delta.data(), DType::kF32, kRows, kHidden);
    args.rows = rows.data();
    args.delta_rows = delta_rows.data();
    args.weight = weight.data();
    args.epsilon = 1e-5f;
    args.out = MakeMatrix(out.data(), DType::kF32, kRows, kHidden);
  }

  std::vector<int32_t> rows = {3, 0, 4, 1, 2}, delta_rows = {1, 2, 0, 4, 3};
  std::vector<float> residual, delta, weight, out;
  AddRmsNormArgs args;
};

class CollectiveGroupTest : public testing::TestWithParam<int> {
 protected:
  CollectiveGroupTest() { context_.device = device_.get(); }

  std::unique_ptr<Device> device_ = MakeCpuDevice(1);
  OpContext context_;
};

TEST_P(CollectiveGroupTest, SumsThenAddsAndNorms) {
  const int world_size = GetParam();
  const auto collectives = MakeThreadCollectives(world_size);
  std::vector<Matrices> joint, apart;
  joint.reserve(world_size);
  apart.reserve(world_size);
  for (int rank = 0; rank < world_size; ++rank) {
    joint.emplace_back(rank);
    apart.emplace_back(rank);
  }
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world_size; ++rank) {
    threads.emplace_back([&, rank] {
      CollectiveGroup group(collectives[rank].get(), nullptr);
      EXPECT_TRUE(group.AllReduceAddRmsNorm(context_, joint[rank].args).ok());
      const AddRmsNormArgs args = apart[rank].args;
      EXPECT_TRUE(group.AllReduceSum(args.delta).ok());
      EXPECT_TRUE(AddRmsNorm(context_, args).ok());
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int rank = 0; rank < world_size; ++rank) {
    EXPECT_EQ(joint[rank].residual, apart[rank].residual);
    EXPECT_EQ(joint[rank].out, apart[rank].out);
    EXPECT_EQ(joint[rank].out, joint[0].out);
  }
  // And all ranks' deltas are in it.
  double want = Draw(1, kRows * kHidden)[3 * kHidden];
  for (int rank = 0; rank < world_size; ++rank)
    want += Draw(10 + rank, kRows * kHidden)[1 * kHidden];
  EXPECT_NEAR(joint[0].residual[3 * kHidden], want, 1e-5);
}

// The first norm of a pass has nothing to add, and nothing to sum.
TEST_P(CollectiveGroupTest, NormsWithoutADelta) {
  const int world_size = GetParam();
  const auto collectives = MakeThreadCollectives(world_size);
  Matrices m(0), alone(0);
  m.args.delta = alone.args.delta = MatrixView();
  // No peer takes part.
  CollectiveGroup group(collectives[0].get(), nullptr);
  ASSERT_TRUE(group.AllReduceAddRmsNorm(context_, m.args).ok());
  ASSERT_TRUE(AddRmsNorm(context_, alone.args).ok());
  EXPECT_EQ(m.out, alone.out);
  EXPECT_EQ(m.residual, alone.residual);
}

INSTANTIATE_TEST_SUITE_P(Ranks, CollectiveGroupTest, testing::Values(1, 2, 4));

// Has one operation for both, for as long as it is told to.
class FusedCollective final : public Collective {
 public:
  absl::Status AllReduceSum(void*, int64_t, CollectiveType,
                            CollectiveStream) override {
    ++num_sums;
    return absl::OkStatus();
  }
  absl::StatusOr<bool> TryAllReduceAddRmsNorm(
      const AddRmsNormArgs& args, CollectiveStream stream) override {
    asked_with = args.out.data;
    asked_on = stream;
    return answer;
  }
  absl::Status AllGather(const void*, void*, int64_t, CollectiveType,
                         CollectiveStream) override {
    return absl::OkStatus();
  }
  absl::Status Barrier() override { return absl::OkStatus(); }
  void Abort() override {}
  int rank() const override { return 0; }
  int world_size() const override { return 2; }
  absl::Duration time_spent() const override { return absl::ZeroDuration(); }

  absl::StatusOr<bool> answer = true;
  int num_sums = 0;
  void* asked_with = nullptr;
  CollectiveStream asked_on = nullptr;
};

TEST(CollectiveGroup, LeavesItToACollectiveThatDoesBoth) {
  const std::unique_ptr<Device> device = MakeCpuDevice(1);
  OpContext context;
  context.device = device.get();
  FusedCollective collective;
  int stream = 0;
  CollectiveGroup group(&collective, &stream);
  Matrices m(0);
  const std::vector<float> before = m.residual;

  ASSERT_TRUE(group.AllReduceAddRmsNorm(context, m.args).ok());
  EXPECT_EQ(collective.asked_with, m.out.data());
  EXPECT_EQ(collective.asked_on, &stream);
  EXPECT_EQ(collective.num_sums, 0);
  EXPECT_EQ(m.residual, before);

  collective.answer = absl::UnavailableError("rank 1 is gone");
  EXPECT_EQ(group.AllReduceAddRmsNorm(context, m.args),
            absl::UnavailableError("rank 1 is gone"));
  EXPECT_EQ(m.residual, before);

  collective.answer = false;
  ASSERT_TRUE(group.AllReduceAddRmsNorm(context, m.args).ok());
  EXPECT_EQ(collective.num_sums, 1);
  EXPECT_NE(m.residual, before);
}

// Remembers what it was told.
class ListeningStream final : public SideStream {
 public:
  void* handle() const override { return const_cast<ListeningStream*>(this); }
  absl::Status Fork() override {
    heard += "fork ";
    return fork;
  }
  absl::StatusOr<int64_t> Mark() override {
    heard += "mark ";
    return num_marks++;
  }
  absl::Status Join(int64_t mark) override {
    heard += "join" + std::to_string(mark) + " ";
    return absl::OkStatus();
  }

  std::string heard;
  absl::Status fork;
  int64_t num_marks = 0;
};

TEST(CollectiveGroup, NothingElseRunsWhileASumIsUnderWay) {
  const std::unique_ptr<Device> device = MakeCpuDevice(1);
  OpContext context;
  context.device = device.get();
  FusedCollective collective;
  ListeningStream side;
  CollectiveGroup group(&collective, nullptr, &side);
  Matrices m(0);
  const MatrixView x = m.args.delta;
  ASSERT_EQ(group.BeginAllReduceSum(x).value(), 0);
  ASSERT_EQ(group.BeginAllReduceSum(x).value(), 1);
  EXPECT_EQ(collective.num_sums, 2);
  ASSERT_TRUE(group.AwaitSum(0).ok());
  EXPECT_EQ(group.AllReduceSum(x).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(group.AllReduceAddRmsNorm(context, m.args).code(),
            absl::StatusCode::kInternal);
  EXPECT_EQ(group.AllGather(x, nullptr).code(), absl::StatusCode::kInternal);
  EXPECT_EQ(collective.num_sums, 2);
  ASSERT_TRUE(group.AwaitSum(1).ok());
  EXPECT_TRUE(group.AllReduceSum(x).ok());
  EXPECT_EQ(side.heard, "fork mark fork mark join0 join1 ");

  side.fork = absl::InternalError("no event");
  EXPECT_EQ(group.BeginAllReduceSum(x).status(), side.fork);
  EXPECT_EQ(collective.num_sums, 3);
}

TEST(CollectiveGroup, WithoutASecondStreamASumIsDoneAtOnce) {
  FusedCollective collective;
  CollectiveGroup group(&collective, nullptr);
  Matrices m(0);
  const absl::StatusOr<int64_t> sum = group.BeginAllReduceSum(m.args.delta);
  ASSERT_TRUE(sum.ok()) << sum.status();
  EXPECT_EQ(collective.num_sums, 1);
  EXPECT_TRUE(group.AllReduceSum(m.args.delta).ok());
  EXPECT_TRUE(group.AwaitSum(*sum).ok());
}

}  // namespace
}  // namespace switchyard
