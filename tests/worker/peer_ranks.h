// Ranks of the peers' kernels on one GPU, a stream each: few enough blocks that
// they run together. Needs a GPU.
#ifndef SWITCHYARD_TESTS_WORKER_PEER_RANKS_H_
#define SWITCHYARD_TESTS_WORKER_PEER_RANKS_H_

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "worker/peer_reduce.h"

namespace switchyard {

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
