// The kernel of sum, residual and norm with all ranks on one GPU, against the
// all-reduce kernel and AddRmsNorm one after the other. Needs a GPU.
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/device.h"
#include "kernels/op_context.h"
#include "kernels/rms_norm.h"
#include "tests/worker/peer_ranks.h"
#include "worker/peer_reduce.h"
#include "worker/peer_reduce_norm.h"

namespace switchyard {
namespace {

struct Shape {
  int64_t rows = 1;
  int64_t hidden = 8;
  DType out = DType::kBF16;
  bool maps = false;    // rows in other orders, and some that are not named
  int64_t padding = 0;  // columns between rows
};

// The matrices of one rank, beside those of the two ops.
struct Matrices {
  AddRmsNormArgs args, reference;
  std::vector<std::byte*> allocations;
};

class PeerReduceNormTest : public PeerRanksTest {
 protected:
  PeerReduceNormTest() : PeerRanksTest(/*slot_bytes=*/2 << 20) {}

  void SetUp() override {
    PeerRanksTest::SetUp();
    auto device = MakeDevice("cuda:0", 1);
    ASSERT_TRUE(device.ok()) << device.status();
    device_ = *std::move(device);
    context_.device = device_.get();
    context_.workspace = &workspace_;
  }

  void TearDown() override {
    PeerRanksTest::TearDown();
    for (std::byte* p : allocations_) cudaFree(p);
  }

  std::byte* Allocate(int64_t bytes) {
    std::byte* p = nullptr;
    EXPECT_EQ(cudaMalloc(&p, bytes), cudaSuccess);
    allocations_.push_back(p);
    return p;
  }
  template <typename T>
  T* Upload(const std::vector<T>& host) {
    std::byte* const p = Allocate(host.size() * sizeof(T));
    EXPECT_EQ(cudaMemcpy(p, host.data(), host.size() * sizeof(T),
                         cudaMemcpyHostToDevice),
              cudaSuccess);
    return reinterpret_cast<T*>(p);
  }

  // Args of every rank for the kernel, and for the two ops on copies.
  std::vector<Matrices> Make(const Shape& shape) {
    const int64_t total = shape.rows + (shape.maps ? 2 : 0);
    const int64_t stride = shape.hidden + shape.padding;
    const std::vector<float> residual = DrawOne(total * stride),
                             weight = DrawOne(shape.hidden);
    auto deltas = Draw(total * stride);
    // What looks as if it were missing is a NaN like any other, and its row's.
    const uint32_t empty = kEmptyWord;
    if (total > 1) std::memcpy(&deltas[0][(total - 1) * stride + 5], &empty, 4);
    std::vector<int32_t> rows(total), delta_rows(total);
    std::iota(rows.begin(), rows.end(), 0);
    std::iota(delta_rows.begin(), delta_rows.end(), 0);
    std::shuffle(rows.begin(), rows.end(), random_);
    std::shuffle(delta_rows.begin(), delta_rows.end(), random_);
    std::vector<Matrices> all(ranks_.size());
    for (size_t r = 0; r < all.size(); ++r) {
      for (AddRmsNormArgs* args : {&all[r].args, &all[r].reference}) {
        args->residual = {Upload(residual), DType::kF32, total, shape.hidden,
                          stride};
        args->delta = {Upload(deltas[r]), DType::kF32, total, shape.hidden,
                       stride};
        if (shape.maps) {
          args->rows = Upload(rows);
          args->delta_rows = Upload(delta_rows);
        }
        args->weight = Upload(weight);
        args->epsilon = 1e-5f;
        args->out = {Upload(std::vector<float>(shape.rows * stride, -1.0f)),
                     shape.out, shape.rows, shape.hidden, stride};
      }
    }
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    return all;
  }

  void LaunchOps(const std::vector<Matrices>& all) {
    for (size_t r = 0; r < all.size(); ++r) {
      const MatrixView& delta = all[r].reference.delta;
      const absl::Status status = LaunchPeerReduce(
          ranks_[r].buffers, delta.data, delta.rows * delta.row_stride,
          CollectiveType::kFloat32, ranks_[r].stream,
          {/*threads=*/128, /*max_blocks=*/24});
      ASSERT_TRUE(status.ok()) << status;
    }
    for (PeerRank& rank : ranks_)
      ASSERT_CUDA(cudaStreamSynchronize(rank.stream));
    for (const Matrices& m : all) {
      const absl::Status status = AddRmsNorm(context_, m.reference);
      ASSERT_TRUE(status.ok()) << status;
    }
    const absl::Status status = device_->Synchronize();
    ASSERT_TRUE(status.ok()) << status;
  }

  void LaunchKernel(const std::vector<Matrices>& all, int first,
                    PeerForm form) {
    for (size_t i = 0; i < all.size(); ++i) {
      const size_t r = (i + first) % all.size();
      ASSERT_TRUE(CanReduceNorm(ranks_[r].buffers, all[r].args));
      const absl::Status status = LaunchPeerReduceNorm(
          ranks_[r].buffers, all[r].args, ranks_[r].stream, form);
      ASSERT_TRUE(status.ok()) << status;
    }
  }

  static std::vector<std::byte> Bytes(const MatrixView& m) {
    std::vector<std::byte> host(m.rows * m.row_stride * DTypeBytes(m.dtype));
    EXPECT_EQ(
        cudaMemcpy(host.data(), m.data, host.size(), cudaMemcpyDeviceToHost),
        cudaSuccess);
    return host;
  }

  // Residual and out, padding and rows that are not named included.
  void ExpectSameBits(const std::vector<Matrices>& all, const Shape& shape) {
    for (size_t r = 0; r < all.size(); ++r) {
      EXPECT_TRUE(Bytes(all[r].args.residual) ==
                  Bytes(all[r].reference.residual))
          << "residual of rank " << r << " of " << all.size() << ", "
          << shape.rows << " x " << shape.hidden;
      EXPECT_TRUE(Bytes(all[r].args.out) == Bytes(all[r].reference.out))
          << "out of rank " << r << " of " << all.size() << ", " << shape.rows
          << " x " << shape.hidden;
    }
  }

  // In both forms.
  void Check(const Shape& shape) {
    for (const PeerForm form : kPeerForms) {
      SCOPED_TRACE(form == PeerForm::kTwoShot ? "two shots" : "one shot");
      const std::vector<Matrices> all = Make(shape);
      LaunchOps(all);
      LaunchKernel(all, shape.rows % world_size(), form);
      for (PeerRank& rank : ranks_)
        ASSERT_CUDA(cudaStreamSynchronize(rank.stream));
      ExpectSameBits(all, shape);
    }
  }

  std::unique_ptr<Device> device_;
  Workspace workspace_;
  OpContext context_;
  std::vector<std::byte*> allocations_;
};

TEST_P(PeerReduceNormTest, HasTheBitsOfTheTwoOps) {
  // All blocks of all ranks are to run at once: one of 5120 columns fills half
  // an SM's registers.
  for (int64_t rows : {1, 2, 3, 16, 64}) {
    if (rows * world_size() <= 128) Check({rows, 5120});
    Check({rows, 512, DType::kF32});
  }
  for (int64_t hidden : {8, 16, 248, 256, 264, 1000, 8192}) {
    Check({5, hidden});
    Check({5, hidden, DType::kF32, /*maps=*/true, /*padding=*/8});
  }
}

TEST_P(PeerReduceNormTest, FollowsTheRowMaps) {
  for (int64_t rows : {1, 7, 64})
    Check({rows, 520, DType::kBF16, /*maps=*/true});
}

// A row's bits are its own, whatever travels beside it, and in whatever form.
TEST_P(PeerReduceNormTest, ARowDoesNotDependOnItsNeighbours) {
  const Shape shape{16, 1024};
  for (const PeerForm form : kPeerForms) {
    std::vector<Matrices> all = Make(shape);
    LaunchKernel(all, 0, form);
    for (PeerRank& rank : ranks_)
      ASSERT_CUDA(cudaStreamSynchronize(rank.stream));
    // The same rows one by one, on the copies.
    for (int64_t row = 0; row < shape.rows; ++row) {
      std::vector<Matrices> one = all;
      for (Matrices& m : one) {
        m.args = m.reference;
        for (MatrixView* view : {&m.args.residual, &m.args.delta, &m.args.out})
          *view = view->Rows(row, 1);
      }
      LaunchKernel(one, 0, kPeerForms[row % 2]);
      for (PeerRank& rank : ranks_)
        ASSERT_CUDA(cudaStreamSynchronize(rank.stream));
    }
    ExpectSameBits(all, shape);
  }
}

// Layers that go on from one residual, with plain sums between, again and
// again; another rank is the first one each time.
TEST_P(PeerReduceNormTest, GraphsReplayManyTimes) {
  constexpr int kCalls = 5, kReplays = 100;
  const Shape shape{3, 1032, DType::kBF16, /*maps=*/true};
  std::vector<std::vector<Matrices>> calls;
  for (int i = 0; i < kCalls; ++i) {
    calls.push_back(Make(shape));
    for (size_t r = 0; r < ranks_.size(); ++r) {
      calls[i][r].args.residual = calls[0][r].args.residual;
      calls[i][r].reference.residual = calls[0][r].reference.residual;
    }
  }
  Check(shape);  // loads the kernels: that waits for kernels that run
  std::vector<float*> words;
  for (size_t r = 0; r < ranks_.size(); ++r)
    words.push_back(Upload(std::vector<float>(1, 0.0f)));
  std::vector<cudaGraphExec_t> graphs;
  for (size_t r = 0; r < ranks_.size(); ++r) {
    ASSERT_CUDA(cudaStreamBeginCapture(ranks_[r].stream,
                                       cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < kCalls; ++i) {
      ASSERT_TRUE(LaunchPeerReduceNorm(ranks_[r].buffers, calls[i][r].args,
                                       ranks_[r].stream, kPeerForms[i / 2 % 2])
                      .ok());
      if (i % 2 == 0) continue;
      ASSERT_TRUE(LaunchPeerReduce(ranks_[r].buffers, words[r], 1,
                                   CollectiveType::kFloat32, ranks_[r].stream)
                      .ok());
    }
    cudaGraph_t graph;
    ASSERT_CUDA(cudaStreamEndCapture(ranks_[r].stream, &graph));
    graphs.emplace_back();
    ASSERT_CUDA(cudaGraphInstantiate(&graphs.back(), graph, 0));
    ASSERT_CUDA(cudaGraphDestroy(graph));
  }
  for (int replay = 0; replay < kReplays; ++replay) {
    for (size_t i = 0; i < ranks_.size(); ++i) {
      const size_t r = (i + replay) % ranks_.size();
      ASSERT_CUDA(cudaGraphLaunch(graphs[r], ranks_[r].stream));
    }
  }
  for (PeerRank& rank : ranks_) ASSERT_CUDA(cudaStreamSynchronize(rank.stream));
  // The sums of the two ops replace their deltas, and stay the same.
  for (int i = 0; i < kCalls; ++i) LaunchOps(calls[i]);
  for (int replay = 1; replay < kReplays; ++replay) {
    for (int i = 0; i < kCalls; ++i) {
      for (const Matrices& m : calls[i])
        ASSERT_TRUE(AddRmsNorm(context_, m.reference).ok());
    }
  }
  ASSERT_TRUE(device_->Synchronize().ok());
  for (int i = 0; i < kCalls; ++i) ExpectSameBits(calls[i], shape);
  for (cudaGraphExec_t graph : graphs) cudaGraphExecDestroy(graph);
}

TEST_P(PeerReduceNormTest, WaitsForARankThatComesLate) {
  const Shape shape{4, 2048};
  Check(shape);  // loads the kernels
  for (const PeerForm form : kPeerForms) {
    const std::vector<Matrices> all = Make(shape);
    LaunchOps(all);
    for (size_t r = 1; r < ranks_.size(); ++r) {
      ASSERT_TRUE(LaunchPeerReduceNorm(ranks_[r].buffers, all[r].args,
                                       ranks_[r].stream, form)
                      .ok());
    }
    // Whoever waits has sent what it sends first, and looks again and again.
    const auto start = std::chrono::steady_clock::now();
    while (std::chrono::steady_clock::now() - start <
           std::chrono::milliseconds(20)) {
      for (size_t r = 1; r < ranks_.size(); ++r)
        ASSERT_EQ(cudaStreamQuery(ranks_[r].stream), cudaErrorNotReady);
    }
    ASSERT_TRUE(LaunchPeerReduceNorm(ranks_[0].buffers, all[0].args,
                                     ranks_[0].stream, form)
                    .ok());
    for (PeerRank& rank : ranks_)
      ASSERT_CUDA(cudaStreamSynchronize(rank.stream));
    ExpectSameBits(all, shape);
  }
}

TEST_P(PeerReduceNormTest, StoppingEndsKernelsThatWait) {
  const Shape shape{4, 2048};
  Check(shape);  // loads the kernels
  const std::vector<Matrices> all = Make(shape);
  for (const PeerForm form : kPeerForms) {
    const int r = form == PeerForm::kTwoShot ? 1 : 0;
    PeerRank& rank = ranks_[r];
    for (int call = 0; call < 100; ++call) {
      ASSERT_TRUE(
          LaunchPeerReduceNorm(rank.buffers, all[r].args, rank.stream, form)
              .ok());
    }
    ASSERT_NO_FATAL_FAILURE(ExpectThatStoppingEnds(rank));
  }
}

TEST_P(PeerReduceNormTest, StoppingEndsKernelsThatWaitForSums) {
  const Shape shape{4, 2048};
  Check(shape);  // loads the kernels
  const std::vector<Matrices> all = Make(shape);
  PeerRank& rank = ranks_[0];
  const uint32_t turn = TurnOfRank0();
  const int64_t row_bytes = shape.hidden * 4;
  for (int64_t row = 0; row < shape.rows; ++row)
    SendFirstHopToRank0(turn, row * row_bytes, row_bytes);
  for (int call = 0; call < 100; ++call) {
    ASSERT_TRUE(LaunchPeerReduceNorm(rank.buffers, all[0].args, rank.stream,
                                     PeerForm::kTwoShot)
                    .ok());
  }
  for (int64_t row = 0; row < shape.rows; ++row)
    ASSERT_NO_FATAL_FAILURE(AwaitSumOfRank0(turn, row * row_bytes));
  ASSERT_NO_FATAL_FAILURE(ExpectThatStoppingEnds(rank));
}

// Which shapes have the kernel does not depend on where matrices lie.
TEST_P(PeerReduceNormTest, ServesRowsOfABlock) {
  PeerBuffers buffers = ranks_[0].buffers;
  const auto serves = [&](int64_t rows, int64_t hidden, DType delta) {
    std::byte* const place = reinterpret_cast<std::byte*>(4);
    AddRmsNormArgs args;
    args.residual = MakeMatrix(place, DType::kF32, rows, hidden);
    args.delta = MakeMatrix(place, delta, rows, hidden);
    args.out = MakeMatrix(place, DType::kBF16, rows, hidden);
    return CanReduceNorm(buffers, args);
  };
  EXPECT_TRUE(serves(1, 8, DType::kF32));
  EXPECT_TRUE(serves(64, 8192, DType::kF32));  // 2 MiB, a whole message
  EXPECT_TRUE(serves(kMaxPeerNormRows, 64, DType::kF32));
  EXPECT_FALSE(serves(kMaxPeerNormRows + 1, 64, DType::kF32));
  EXPECT_FALSE(serves(1, 8200, DType::kF32));
  EXPECT_FALSE(serves(1, 12, DType::kF32));
  EXPECT_FALSE(serves(1, 64, DType::kBF16));
  EXPECT_FALSE(serves(0, 64, DType::kF32));
  buffers.slot_bytes -= 16;
  EXPECT_FALSE(serves(64, 8192, DType::kF32));
  AddRmsNormArgs alone;  // nothing to sum
  alone.residual = alone.out = MakeMatrix(buffers.slots[0], DType::kF32, 1, 64);
  EXPECT_FALSE(CanReduceNorm(buffers, alone));
}

INSTANTIATE_TEST_SUITE_P(Ranks, PeerReduceNormTest, testing::Values(2, 4, 8));

}  // namespace
}  // namespace switchyard
