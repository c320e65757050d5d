// One row of logits over a cluster of blocks: every block keeps its slice of
// the vocabulary in shared memory, so that the row is read from memory once
// however many passes follow; and the selection of its largest entries without
// a sort.
#ifndef SWITCHYARD_KERNELS_CUDA_VOCAB_H_
#define SWITCHYARD_KERNELS_CUDA_VOCAB_H_

#include <cooperative_groups.h>

#include <cstdint>

#include "kernels/cuda_common.h"

namespace switchyard::cuda {

constexpr int kVocabBlocks = 8;  // of a cluster, one row
constexpr int kVocabThreads = 512;
constexpr int kBins = 256;
constexpr int kBinCopies = 8;    // by lane, against atomics on one address
constexpr int kWeightParts = 3;  // of 12 bits: no sum of a slice overflows

// An order of all entries in one number: the larger logit, then the lower id.
__device__ __forceinline__ uint64_t RankKey(float logit, uint32_t id) {
  // The zeros are equal: -0 + 0 is 0.
  const uint32_t bits = __float_as_uint(__fadd_rn(logit, 0.0f));
  const uint32_t ordered =
      bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
  return uint64_t{ordered} << 32 | static_cast<uint32_t>(~id);
}
__device__ __forceinline__ uint32_t IdOfKey(uint64_t key) {
  return ~static_cast<uint32_t>(key);
}
__device__ __forceinline__ float LogitOfKey(uint64_t key) {
  const uint32_t ordered = static_cast<uint32_t>(key >> 32);
  return __uint_as_float(ordered ^
                         ((ordered >> 31) != 0 ? 0x80000000u : 0xffffffffu));
}

// exp(logit) for logit <= 0 in units of 2^-36: sums of integers do not depend
// on their order, so every rank finds the same ones.
__device__ __forceinline__ uint64_t FixedWeight(float logit) {
  return static_cast<uint64_t>(__expf(logit) * 0x1p36f);
}

struct VocabShared {
  uint64_t reduced[2];  // this block's value in a cluster-wide reduction
  float reduced_sum[2];
  uint64_t warp_key[kVocabThreads / kWarpSize];
  float warp_sum[kVocabThreads / kWarpSize];
  uint32_t count[kBins];
  uint64_t weight[kBins];
  uint64_t boundary[3];  // what FindBin found
  uint32_t counts[kBins][kBinCopies];
  uint32_t parts[kWeightParts][kBins][kBinCopies];
  float logits[];  // [slice]
};

// What all threads of a cluster do together. `shared` lies at the same place in
// every block.
class VocabRow {
 public:
  __device__ __forceinline__ VocabRow(VocabShared* shared, int32_t vocab)
      : cluster_(cooperative_groups::this_cluster()), shared_(shared) {
    slice_ = SliceSize(vocab);
    begin_ = static_cast<int32_t>(cluster_.block_rank()) * slice_;
    size_ = max(0, min(slice_, vocab - begin_));
  }
  __host__ __device__ static int32_t SliceSize(int32_t vocab) {
    return (vocab + 4 * kVocabBlocks - 1) / (4 * kVocabBlocks) * 4;
  }
  static int64_t SharedBytes(int32_t vocab) {
    return sizeof(VocabShared) + SliceSize(vocab) * sizeof(float);
  }

  __device__ int32_t begin() const { return begin_; }  // a multiple of 4
  __device__ int32_t size() const { return size_; }
  __device__ bool is_first_block() const { return cluster_.block_rank() == 0; }
  __device__ void Sync() { cluster_.sync(); }

  // The largest key of the cluster, in all threads.
  __device__ uint64_t MaxKey(uint64_t key) {
#pragma unroll
    for (int delta = 16; delta > 0; delta /= 2)
      key = max(key, __shfl_xor_sync(kFullWarp, key, delta));
    if (threadIdx.x % kWarpSize == 0)
      shared_->warp_key[threadIdx.x / kWarpSize] = key;
    __syncthreads();
    for (int w = 0; w < kVocabThreads / kWarpSize; ++w)
      key = max(key, shared_->warp_key[w]);
    parity_ ^= 1;
    if (threadIdx.x == 0) shared_->reduced[parity_] = key;
    cluster_.sync();
    for (int b = 0; b < kVocabBlocks; ++b)
      key = max(key, *cluster_.map_shared_rank(&shared_->reduced[parity_], b));
    return key;
  }

  // The sum over the cluster, in a fixed order, in all threads.
  __device__ float Sum(float x) {
    x = WarpSum(x);
    if (threadIdx.x % kWarpSize == 0)
      shared_->warp_sum[threadIdx.x / kWarpSize] = x;
    __syncthreads();
    parity_ ^= 1;
    if (threadIdx.x == 0) {
      float sum = 0;
      for (int w = 0; w < kVocabThreads / kWarpSize; ++w)
        sum += shared_->warp_sum[w];
      shared_->reduced_sum[parity_] = sum;
    }
    cluster_.sync();
    float sum = 0;
    for (int b = 0; b < kVocabBlocks; ++b)
      sum += *cluster_.map_shared_rank(&shared_->reduced_sum[parity_], b);
    return sum;
  }

  // The largest key T such that the entries with keys >= T (and >= floor)
  //   number at least `wanted_count`, or
  //   weigh at least `share` of all entries >= floor, where wanted_count is 0.
  // Radix selection from the top, eight bits a pass.
  __device__ uint64_t Select(uint64_t floor, uint32_t wanted_count,
                             float share) {
    const bool by_weight = wanted_count == 0;
    uint64_t wanted = wanted_count, prefix = 0;
    for (int shift = 56; shift >= 0; shift -= 8) {
      CountBins(floor, prefix, shift, by_weight);
      FindBin(wanted, by_weight, shift == 56 ? share : 0);
      const uint64_t bin = shared_->boundary[0];
      const bool all_of_bin = shared_->boundary[2] != 0;
      wanted = shared_->boundary[1];
      prefix |= bin << shift;
      __syncthreads();  // before the next pass changes `boundary`
      if (all_of_bin) break;
    }
    return max(prefix, floor);
  }

 private:
  // count[bin], weight[bin]: of the whole row, over entries whose key is >=
  // floor and agrees with `prefix` above `shift` + 8 bits.
  __device__ void CountBins(uint64_t floor, uint64_t prefix, int shift,
                            bool by_weight) {
    for (int i = threadIdx.x; i < kBins * kBinCopies; i += kVocabThreads) {
      (&shared_->counts[0][0])[i] = 0;
      for (int part = 0; part < kWeightParts; ++part)
        (&shared_->parts[part][0][0])[i] = 0;
    }
    __syncthreads();
    const int copy = threadIdx.x % kBinCopies;
    for (int i = threadIdx.x; i < size_; i += kVocabThreads) {
      const float logit = shared_->logits[i];
      const uint64_t key = RankKey(logit, begin_ + i);
      const bool agrees =
          shift == 56 || key >> (shift + 8) == prefix >> (shift + 8);
      if (key < floor || !agrees) continue;
      const int bin = static_cast<int>(key >> shift & 0xff);
      atomicAdd(&shared_->counts[bin][copy], 1u);
      if (!by_weight) continue;
      const uint64_t weight = FixedWeight(logit);
      for (int part = 0; part < kWeightParts; ++part) {
        const uint32_t bits = static_cast<uint32_t>(
            part + 1 < kWeightParts ? weight >> (12 * part) & 0xfff
                                    : weight >> (12 * part));
        if (bits != 0) atomicAdd(&shared_->parts[part][bin][copy], bits);
      }
    }
    __syncthreads();
    // The copies of this block, then the blocks of the cluster.
    __shared__ uint32_t block_count[kBins];
    __shared__ uint64_t block_weight[kBins];
    if (threadIdx.x < kBins) {
      uint32_t count = 0;
      uint64_t weight = 0;
      for (int c = 0; c < kBinCopies; ++c) {
        count += shared_->counts[threadIdx.x][c];
        for (int part = 0; part < kWeightParts; ++part)
          weight += uint64_t{shared_->parts[part][threadIdx.x][c]}
                    << (12 * part);
      }
      block_count[threadIdx.x] = count;
      block_weight[threadIdx.x] = weight;
    }
    cluster_.sync();
    if (threadIdx.x < kBins) {
      uint32_t count = 0;
      uint64_t weight = 0;
      for (int b = 0; b < kVocabBlocks; ++b) {
        count += *cluster_.map_shared_rank(&block_count[threadIdx.x], b);
        weight += *cluster_.map_shared_rank(&block_weight[threadIdx.x], b);
      }
      shared_->count[threadIdx.x] = count;
      shared_->weight[threadIdx.x] = weight;
    }
    cluster_.sync();
  }

  // boundary: the bin, from the top, in which `wanted` is reached; what of
  // `wanted` the bins above it leave; whether all of the bin is needed. Where
  // there is less than `wanted`: everything. With a share > 0 of weights,
  // `wanted` is that share of all.
  __device__ void FindBin(uint64_t wanted, bool by_weight, float share) {
    constexpr int kPerLane = kBins / kWarpSize;
    if (threadIdx.x < kWarpSize) {
      const int top_bin = kBins - 1 - static_cast<int>(threadIdx.x) * kPerLane;
      uint64_t here[kPerLane], sum = 0;
#pragma unroll
      for (int i = 0; i < kPerLane; ++i) {
        here[i] = by_weight ? shared_->weight[top_bin - i]
                            : shared_->count[top_bin - i];
        sum += here[i];
      }
      uint64_t through = sum;  // of this lane's bins and all above
#pragma unroll
      for (int delta = 1; delta < kWarpSize; delta *= 2) {
        const uint64_t other = __shfl_up_sync(kFullWarp, through, delta);
        if (threadIdx.x >= delta) through += other;
      }
      if (by_weight && share > 0) {
        const uint64_t total = __shfl_sync(kFullWarp, through, kWarpSize - 1);
        wanted = max(
            uint64_t{1},
            static_cast<uint64_t>(ceil(static_cast<double>(share) * total)));
        wanted = min(wanted, total);
      }
      uint64_t above = through - sum;
      const unsigned reached = __ballot_sync(kFullWarp, through >= wanted);
      if (reached == 0 && threadIdx.x == 0) {
        shared_->boundary[0] = 0;
        shared_->boundary[1] = wanted;
        shared_->boundary[2] = 1;
      }
      if (reached != 0 && threadIdx.x == __ffs(reached) - 1) {
        int i = 0;
#pragma unroll
        for (int step = 0; step < kPerLane - 1; ++step) {
          if (i == step && above + here[step] < wanted) {
            above += here[step];
            i = step + 1;
          }
        }
        uint64_t of_bin = 0;
#pragma unroll
        for (int step = 0; step < kPerLane; ++step)
          if (i == step) of_bin = here[step];
        shared_->boundary[0] = top_bin - i;
        shared_->boundary[1] = wanted - above;
        shared_->boundary[2] = shared_->count[top_bin - i] <= 1 ||
                               (!by_weight && above + of_bin == wanted);
      }
    }
    __syncthreads();
  }

  cooperative_groups::cluster_group cluster_;
  VocabShared* shared_;
  int32_t slice_, begin_, size_;
  int parity_ = 0;
};

}  // namespace switchyard::cuda

#endif  // SWITCHYARD_KERNELS_CUDA_VOCAB_H_
