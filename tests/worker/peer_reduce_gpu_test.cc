// The all-reduce kernel with all ranks on one GPU. Needs a GPU.
#include <cuda_runtime.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/dtype.h"
#include "tests/worker/peer_ranks.h"
#include "worker/peer_reduce.h"

namespace switchyard {
namespace {

class PeerReduceTest : public PeerRanksTest {
 protected:
  static constexpr int64_t kSlotBytes = 256 * 1024;
  // Eight ranks of two such grids fit on a GPU at once.
  static constexpr PeerShape kShape = {/*threads=*/128, /*max_blocks=*/24};

  PeerReduceTest() : PeerRanksTest(kSlotBytes) {}

  void SetUp() override {
    PeerRanksTest::SetUp();
    x_.resize(ranks_.size());
    for (std::byte*& x : x_) ASSERT_CUDA(cudaMalloc(&x, kSlotBytes + 64));
  }

  void TearDown() override {
    PeerRanksTest::TearDown();
    for (std::byte* x : x_) cudaFree(x);
  }

  // In both forms, whose results are the same bits on all ranks.
  void Check(const std::vector<std::vector<float>>& all, CollectiveType type,
             int64_t offset, PeerShape shape) {
    std::vector<std::byte> first;
    for (const PeerForm form : kPeerForms) {
      shape.form = form;
      CheckForm(all, type, offset, shape);
      if (HasFatalFailure()) return;
      for (const std::byte* x : x_) {
        std::vector<std::byte> sum(all[0].size() * CollectiveTypeBytes(type));
        ASSERT_CUDA(cudaMemcpy(sum.data(), x + offset, sum.size(),
                               cudaMemcpyDeviceToHost));
        if (first.empty()) first = sum;
        EXPECT_TRUE(sum == first)
            << all[0].size() << " elements of " << world_size() << " ranks";
      }
    }
  }

  // Sums the ranks' numbers, which lie `offset` bytes behind an aligned
  // address, and compares every rank's result with the sum in rank order, bit
  // for bit.
  void CheckForm(const std::vector<std::vector<float>>& all,
                 CollectiveType type, int64_t offset, PeerShape shape) {
    const int64_t n = all[0].size();
    const bool bf16 = type == CollectiveType::kBfloat16;
    const int64_t bytes = n * CollectiveTypeBytes(type);
    const auto rounded = [&](float v) {
      return bf16 ? BF16ToFloat(FloatToBF16(v)) : v;
    };
    for (int r = 0; r < world_size(); ++r) {
      // What lies around the message must stay.
      std::vector<std::byte> host(kSlotBytes + 64, std::byte{0xa5});
      for (int64_t i = 0; i < n; ++i) {
        const uint16_t half = FloatToBF16(all[r][i]);
        if (bf16)
          std::memcpy(&host[offset + 2 * i], &half, 2);
        else
          std::memcpy(&host[offset + 4 * i], &all[r][i], 4);
      }
      ASSERT_CUDA(
          cudaMemcpy(x_[r], host.data(), host.size(), cudaMemcpyHostToDevice));
    }
    // A copy from pageable memory returns once it is staged, and the ranks'
    // streams do not wait for it.
    ASSERT_CUDA(cudaDeviceSynchronize());
    for (PeerRank& rank : ranks_) {
      const absl::Status status =
          LaunchPeerReduce(rank.buffers, x_[rank.buffers.rank] + offset, n,
                           type, rank.stream, shape);
      ASSERT_TRUE(status.ok()) << status;
    }
    for (PeerRank& rank : ranks_)
      ASSERT_CUDA(cudaStreamSynchronize(rank.stream));
    for (PeerRank& rank : ranks_) {
      std::vector<std::byte> host(kSlotBytes + 64);
      ASSERT_CUDA(cudaMemcpy(host.data(), x_[rank.buffers.rank], host.size(),
                             cudaMemcpyDeviceToHost));
      int64_t wrong = 0;
      for (int64_t i = 0; i < n; ++i) {
        float want = rounded(all[0][i]);
        for (int r = 1; r < world_size(); ++r) want += rounded(all[r][i]);
        want = rounded(want);
        float got;
        if (bf16) {
          uint16_t half;
          std::memcpy(&half, &host[offset + 2 * i], 2);
          got = BF16ToFloat(half);
        } else {
          std::memcpy(&got, &host[offset + 4 * i], 4);
        }
        wrong += std::isnan(want) ? !std::isnan(got)
                                  : std::memcmp(&got, &want, 4) != 0;
      }
      EXPECT_EQ(wrong, 0) << "rank " << rank.buffers.rank << " of "
                          << world_size() << ", " << n << " elements, offset "
                          << offset << (bf16 ? ", bf16" : ", fp32")
                          << (shape.form == PeerForm::kTwoShot ? ", two shots"
                                                               : "");
      for (int64_t i = 0; i < kSlotBytes + 64; ++i) {
        if (i >= offset && i < offset + bytes) continue;
        ASSERT_EQ(host[i], std::byte{0xa5}) << "byte " << i << " of " << bytes;
      }
    }
  }

  // Loads the kernel: that waits for kernels that run.
  void WarmUp() { Check(Draw(1), CollectiveType::kFloat32, 0, kShape); }

  std::vector<std::byte*> x_;  // by rank
};

TEST_P(PeerReduceTest, SumsInRankOrderWhateverTheSize) {
  // In two shots some have shares of a line, ragged ones, or none.
  for (int64_t n : {1, 2, 3, 4, 5, 7, 8, 9, 33, 257, 1000, 5119, 5120, 65536}) {
    Check(Draw(n), CollectiveType::kFloat32, 0, kShape);
    Check(Draw(n), CollectiveType::kBfloat16, 0, kShape);
    // The count of blocks changes from message to message.
    Check(Draw(n), CollectiveType::kFloat32, 0, {/*threads=*/32, 1});
    if (HasFatalFailure()) return;
  }
}

TEST_P(PeerReduceTest, TakesAnyAlignmentOfWholeElements) {
  for (int64_t n : {1, 6, 8, 1021}) {
    Check(Draw(n), CollectiveType::kFloat32, 4, kShape);
    Check(Draw(n), CollectiveType::kFloat32, 12, kShape);
    Check(Draw(n), CollectiveType::kBfloat16, 2, kShape);
    if (HasFatalFailure()) return;
  }
}

TEST_P(PeerReduceTest, NumbersThatLookEmptyArrive) {
  auto all = Draw(1000);
  const uint32_t empty = kEmptyWord;
  for (int64_t i = 0; i < 1000; i += 3)
    std::memcpy(&all[i % world_size()][i], &empty, 4);
  all[0][1] = std::numeric_limits<float>::infinity();
  all[1][1] = -std::numeric_limits<float>::infinity();
  all[1][4] = std::numeric_limits<float>::infinity();
  Check(all, CollectiveType::kFloat32, 0, kShape);
  // 0xffff is a NaN, too; two of them look empty.
  for (int64_t i = 0; i < 1000; ++i) {
    all[1][i] = 1.0f;
    if (i % 6 < 2) std::memcpy(&all[1][i], &empty, 4);
  }
  EXPECT_EQ(FloatToBF16(all[1][0]), 0xffff);
  Check(all, CollectiveType::kBfloat16, 0, kShape);
}

TEST_P(PeerReduceTest, AnElementsSumDoesNotDependOnItsNeighbours) {
  const auto all = Draw(4096);
  Check(all, CollectiveType::kFloat32, 0, kShape);
  for (int64_t n : {1, 17, 2048}) {
    std::vector<std::vector<float>> fewer;
    for (const auto& x : all) fewer.emplace_back(x.begin(), x.begin() + n);
    Check(fewer, CollectiveType::kFloat32, 0, kShape);
  }
}

TEST_P(PeerReduceTest, GraphsReplayManyTimes) {
  WarmUp();
  constexpr int64_t kElements = 3000;
  constexpr int kCalls = 9, kReplays = 300;
  std::vector<cudaGraphExec_t> graphs;
  for (PeerRank& rank : ranks_) {
    ASSERT_CUDA(
        cudaStreamBeginCapture(rank.stream, cudaStreamCaptureModeThreadLocal));
    for (int call = 0; call < kCalls; ++call) {
      PeerShape shape = kShape;  // every length in both forms
      shape.form = kPeerForms[call / 2 % 2];
      ASSERT_TRUE(LaunchPeerReduce(rank.buffers, x_[rank.buffers.rank],
                                   call % 2 == 0 ? kElements : 5,
                                   CollectiveType::kFloat32, rank.stream, shape)
                      .ok());
    }
    cudaGraph_t graph;
    ASSERT_CUDA(cudaStreamEndCapture(rank.stream, &graph));
    graphs.emplace_back();
    ASSERT_CUDA(cudaGraphInstantiate(&graphs.back(), graph, 0));
    ASSERT_CUDA(cudaGraphDestroy(graph));
  }
  // Powers of two, so that a sum is a multiplication by the number of ranks.
  std::vector<float> host(kElements);
  std::vector<std::vector<float>> out(ranks_.size(),
                                      std::vector<float>(kElements));
  for (int replay = 0; replay < kReplays; ++replay) {
    for (int64_t i = 0; i < kElements; ++i)
      host[i] = std::ldexp(1.0f, (replay + i) % 13);
    for (size_t r = 0; r < ranks_.size(); ++r) {
      ASSERT_CUDA(cudaMemcpyAsync(x_[r], host.data(), kElements * 4,
                                  cudaMemcpyHostToDevice, ranks_[r].stream));
    }
    for (size_t i = 0; i < ranks_.size(); ++i) {
      const size_t r = (i + replay) % ranks_.size();  // another one is first
      ASSERT_CUDA(cudaGraphLaunch(graphs[r], ranks_[r].stream));
    }
    for (size_t r = 0; r < ranks_.size(); ++r) {
      ASSERT_CUDA(cudaMemcpyAsync(out[r].data(), x_[r], kElements * 4,
                                  cudaMemcpyDeviceToHost, ranks_[r].stream));
    }
    for (PeerRank& rank : ranks_)
      ASSERT_CUDA(cudaStreamSynchronize(rank.stream));
    for (const auto& x : out) {
      for (int64_t i = 0; i < kElements; ++i) {
        const int calls = i < 5 ? kCalls : (kCalls + 1) / 2;
        const float want = host[i] * std::pow(world_size(), calls);
        ASSERT_EQ(x[i], want) << "element " << i << ", replay " << replay;
      }
    }
  }
  for (cudaGraphExec_t graph : graphs) cudaGraphExecDestroy(graph);
}

TEST_P(PeerReduceTest, WaitsForARankThatComesLate) {
  WarmUp();
  constexpr int64_t kElements = 20000;
  for (const PeerForm form : kPeerForms) {
    PeerShape shape = kShape;
    shape.form = form;
    // Another rank each time; what it sums comes late as well.
    for (int late = 0; late < world_size(); ++late) {
      const auto all = Draw(kElements);
      const auto launch = [&](int r) {
        const absl::Status status =
            LaunchPeerReduce(ranks_[r].buffers, x_[r], kElements,
                             CollectiveType::kFloat32, ranks_[r].stream, shape);
        ASSERT_TRUE(status.ok()) << status;
      };
      for (int r = 0; r < world_size(); ++r) {
        ASSERT_CUDA(cudaMemcpy(x_[r], all[r].data(), kElements * 4,
                               cudaMemcpyHostToDevice));
      }
      ASSERT_CUDA(cudaDeviceSynchronize());
      for (int r = 0; r < world_size(); ++r)
        if (r != late) launch(r);
      const auto start = std::chrono::steady_clock::now();
      while (std::chrono::steady_clock::now() - start <
             std::chrono::milliseconds(2)) {
        for (int r = 0; r < world_size(); ++r) {
          if (r == late) continue;
          ASSERT_EQ(cudaStreamQuery(ranks_[r].stream), cudaErrorNotReady);
        }
      }
      launch(late);
      for (PeerRank& rank : ranks_)
        ASSERT_CUDA(cudaStreamSynchronize(rank.stream));
      for (int r = 0; r < world_size(); ++r) {
        std::vector<float> got(kElements);
        ASSERT_CUDA(cudaMemcpy(got.data(), x_[r], kElements * 4,
                               cudaMemcpyDeviceToHost));
        for (int64_t i = 0; i < kElements; ++i) {
          float want = all[0][i];
          for (int p = 1; p < world_size(); ++p) want += all[p][i];
          ASSERT_EQ(got[i], want) << "element " << i << " of rank " << r;
        }
      }
    }
  }
}

TEST_P(PeerReduceTest, StoppingEndsKernelsThatWait) {
  WarmUp();
  for (const PeerForm form : kPeerForms) {
    PeerRank& rank = ranks_[form == PeerForm::kTwoShot ? 1 : 0];
    PeerShape shape = kShape;
    shape.form = form;
    for (int call = 0; call < 200; ++call) {
      ASSERT_TRUE(LaunchPeerReduce(rank.buffers, x_[rank.buffers.rank], 5120,
                                   CollectiveType::kFloat32, rank.stream, shape)
                      .ok());
    }
    ASSERT_NO_FATAL_FAILURE(ExpectThatStoppingEnds(rank));
  }
}

TEST_P(PeerReduceTest, StoppingEndsKernelsThatWaitForSums) {
  WarmUp();
  constexpr int64_t kElements = 5120;
  PeerRank& rank = ranks_[0];
  const uint32_t turn = TurnOfRank0();
  SendFirstHopToRank0(turn, 0, kElements * 4);
  ASSERT_CUDA(cudaMemset(x_[0], 0, kElements * 4));
  ASSERT_CUDA(cudaDeviceSynchronize());
  PeerShape shape = kShape;
  shape.form = PeerForm::kTwoShot;
  for (int call = 0; call < 200; ++call) {
    ASSERT_TRUE(LaunchPeerReduce(rank.buffers, x_[0], kElements,
                                 CollectiveType::kFloat32, rank.stream, shape)
                    .ok());
  }
  ASSERT_NO_FATAL_FAILURE(AwaitSumOfRank0(turn, 0));
  ASSERT_NO_FATAL_FAILURE(ExpectThatStoppingEnds(rank));
}

INSTANTIATE_TEST_SUITE_P(Ranks, PeerReduceTest, testing::Values(2, 4, 8));

}  // namespace
}  // namespace switchyard
