// Ranks of the peers' kernels on one GPU, a stream each: few enough blocks that
// they run together. Needs a GPU.
#ifndef SWITCHYARD_TESTS_WORKER_PEER_RANKS_H_
#define SWITCHYARD_TESTS_WORKER_PEER_RANKS_H_

#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "worker/peer_reduce.h"

namespace switchyard {

inline constexpr PeerForm kPeerForms[] = {PeerForm::kOneShot,
                                          PeerForm::kTwoShot};

#define ASSERT_CUDA(call) ASSERT_EQ((call), cudaSuccess)

// A rank and its memory.
struct PeerRank {
  PeerBuffers buffers;
  cudaStream_t stream = nullptr;
  uint32_t* stop = nullptr;
};

// The parameter is the number of ranks.
class PeerRanksTest : public testing::TestWithParam<int> {
 protected:
  explicit PeerRanksTest(int64_t slot_bytes) : slot_bytes_(slot_bytes) {}

  static void SetUpTestSuite() {
    // A hardware queue for every stream: kernels of different ranks must not
    // wait for each other's launch.
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", /*overwrite=*/1);
  }

  void SetUp() override {
    ranks_.resize(GetParam());
    for (PeerRank& rank : ranks_) {
      PeerBuffers& b = rank.buffers;
      b.rank = static_cast<int>(&rank - ranks_.data());
      b.world_size = GetParam();
      b.slot_bytes = slot_bytes_;
      ASSERT_CUDA(
          cudaStreamCreateWithFlags(&rank.stream, cudaStreamNonBlocking));
      ASSERT_CUDA(cudaMalloc(&b.slots[b.rank], PeerSlotsBytes(b)));
      ASSERT_CUDA(cudaMemset(b.slots[b.rank], 0xff, PeerSlotsBytes(b)));
      ASSERT_CUDA(cudaMalloc(&b.state, sizeof(PeerState)));
      ASSERT_CUDA(cudaMemset(b.state, 0, sizeof(PeerState)));
      ASSERT_CUDA(cudaHostAlloc(&rank.stop, 4, cudaHostAllocMapped));
      *rank.stop = 0;
      b.stop = rank.stop;
    }
    for (PeerRank& rank : ranks_)
      for (PeerRank& peer : ranks_)
        rank.buffers.slots[peer.buffers.rank] =
            peer.buffers.slots[peer.buffers.rank];
    ASSERT_CUDA(cudaDeviceSynchronize());
  }

  void TearDown() override {
    for (PeerRank& rank : ranks_)
      __atomic_store_n(rank.stop, 1u, __ATOMIC_RELEASE);
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    for (PeerRank& rank : ranks_) {
      cudaFree(rank.buffers.state);
      cudaFree(rank.buffers.slots[rank.buffers.rank]);
      cudaFreeHost(rank.stop);
      cudaStreamDestroy(rank.stream);
    }
  }

  int world_size() const { return GetParam(); }

  // As if all peers had sent rank 0 its share of `bytes` at `offset` of message
  // `turn`, in two shots: zeros. Rank 0 then sums, and waits for their sums.
  void SendFirstHopToRank0(uint32_t turn, int64_t offset, int64_t bytes) {
    const PeerBuffers& b = ranks_[0].buffers;
    const int64_t lines = (bytes + 127) / 128;
    const int64_t share = (lines + world_size() - 1) / world_size() * 128;
    for (int r = 1; r < world_size(); ++r) {
      ASSERT_CUDA(cudaMemset(
          b.slots[0] + (turn % 2 * world_size() + r) * b.slot_bytes + offset, 0,
          std::min(share, bytes)));
    }
    ASSERT_CUDA(cudaDeviceSynchronize());
  }
  // The first word that rank 1 has from rank 0 there. In two shots its share
  // is not what it would be sent before the sum.
  uint32_t FirstWordFromRank0(uint32_t turn, int64_t offset) {
    const PeerBuffers& b = ranks_[1].buffers;
    uint32_t word = 0;
    EXPECT_EQ(
        cudaMemcpy(&word,
                   b.slots[1] + turn % 2 * world_size() * b.slot_bytes + offset,
                   4, cudaMemcpyDeviceToHost),
        cudaSuccess);
    return word;
  }
  // Returns once rank 0 has sent rank 1 a sum there. It has none from its peers.
  void AwaitSumOfRank0(uint32_t turn, int64_t offset) {
    const auto start = std::chrono::steady_clock::now();
    while (FirstWordFromRank0(turn, offset) == kEmptyWord) {
      ASSERT_LT(std::chrono::steady_clock::now() - start,
                std::chrono::seconds(10));
    }
  }
  // The rank has been given messages in which no peer takes part, so that they
  // are not done whenever this is asked.
  void ExpectThatStoppingEnds(PeerRank& rank) {
    ASSERT_EQ(cudaStreamQuery(rank.stream), cudaErrorNotReady);
    const auto start = std::chrono::steady_clock::now();
    __atomic_store_n(rank.stop, 1u, __ATOMIC_RELEASE);
    ASSERT_CUDA(cudaStreamSynchronize(rank.stream));
    EXPECT_LT(std::chrono::steady_clock::now() - start,
              std::chrono::seconds(1));
  }
  // Messages that rank 0 has been part of.
  uint32_t TurnOfRank0() {
    uint32_t turn = 0;
    EXPECT_EQ(cudaMemcpy(&turn, ranks_[0].buffers.state->turn, 4,
                         cudaMemcpyDeviceToHost),
              cudaSuccess);
    return turn;
  }

  // Numbers of unlike magnitudes, so that sums round.
  std::vector<float> DrawOne(int64_t n) {
    std::normal_distribution<float> normal;
    std::uniform_int_distribution<int> exponent(-8, 8);
    std::vector<float> x(n);
    for (float& v : x) v = std::ldexp(normal(random_), exponent(random_));
    return x;
  }
  // Of every rank.
  std::vector<std::vector<float>> Draw(int64_t n) {
    std::vector<std::vector<float>> all;
    for (int r = 0; r < world_size(); ++r) all.push_back(DrawOne(n));
    return all;
  }

  const int64_t slot_bytes_;
  std::vector<PeerRank> ranks_;
  std::mt19937 random_{std::random_device()()};
};

}  // namespace switchyard

#endif  // SWITCHYARD_TESTS_WORKER_PEER_RANKS_H_
