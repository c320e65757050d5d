// Who computes what in decode attention.
//
// The work is a line of units: 64 cached positions of one KV head of one
// sequence, ordered by (sequence, head, unit). A fixed grid shares the line
// out, so the launch does not depend on the lengths: evenly, or, where each
// (sequence, head) can have several blocks, so that no block has parts of two,
// whose starts and merges would follow one another.
//
// Device code: every thread of a block computes the same from the lengths on
// the device.
#ifndef SWITCHYARD_KERNELS_PAGED_ATTENTION_SHARES_CUDA_H_
#define SWITCHYARD_KERNELS_PAGED_ATTENTION_SHARES_CUDA_H_

#include "kernels/cuda_common.h"
#include "kernels/cuda_paging.h"

namespace switchyard::internal::decode {

using namespace switchyard::cuda;

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kTileKeys = 16;  // of one warp
constexpr int kUnitKeys = kWarps * kTileKeys;
constexpr int kMinUnits = 2;  // worth a block
// Blocks of the grid for each (sequence, head) from which none is shared.
constexpr int kWholeBlocks = 4;

struct DecodeParams {
  Paging paging;
  const int32_t* context_lens;
  int32_t num_seqs;
  int32_t num_kv_heads;
  int32_t group;  // query heads of a KV head
  int32_t window;
  float scale;    // times log2(e)
  const bf16* q;  // row i belongs to sequence i
  const bf16* k;
  const bf16* v;
  int64_t q_stride, k_stride, v_stride;
  const float* rope_table;
  bf16* out;
  int64_t out_stride;
  // Of block b, slot 0 if it is the block's first segment, else 1.
  float* partial_out;   // [blocks, 2, group, head_size]
  float2* partial_sum;  // [blocks, 2, group] (maximum, sum)
  int32_t* counters;    // [num_seqs * num_kv_heads], zero before and after
};

// The cached positions a sequence's new token sees: [begin, context), cut into
// units from `first`, a multiple of 16.
struct SeqSpan {
  int32_t context, begin, first, units;
  __device__ __forceinline__ SeqSpan(int32_t context, int32_t window)
      : context(context) {
    begin = window > 0 ? max(0, context + 1 - window) : 0;
    first = begin & ~(kTileKeys - 1);
    units = max(1, (context - first + kUnitKeys - 1) / kUnitKeys);
  }
};

// The blocks that have a part of a (sequence, head).
struct Parts {
  int32_t first_block, count;
  int32_t first_slot;  // see DecodeParams; that of all others is 0
};

// The line of units cut into one contiguous share a block.
struct Shares {
  bool whole;             // no share has parts of two (sequence, head)
  int32_t blocks;         // that have one, unless `whole`
  int32_t units, longer;  // the first `longer` have one unit more

  __device__ __forceinline__ Shares(const DecodeParams& p, int32_t total)
      : whole(p.num_seqs * p.num_kv_heads * kWholeBlocks <= gridDim.x),
        blocks(min(gridDim.x, max(1, total / kMinUnits))),
        units(total / blocks),
        longer(total - units * blocks) {}

  __device__ __forceinline__ int32_t Begin(int32_t block) const {
    return block * units + min(block, longer);
  }
  __device__ __forceinline__ int32_t OwnerOf(int32_t index) const {
    const int32_t rest = index - longer * (units + 1);
    return rest < 0 ? index / (units + 1) : longer + rest / units;
  }
  // Unless `whole`, of the (sequence, head) with these units of the line.
  __device__ __forceinline__ Parts PartsOf(int32_t first, int32_t last) const {
    const int32_t first_block = OwnerOf(first);
    // The first block's share may begin before this (sequence, head).
    return {first_block, OwnerOf(last) - first_block + 1,
            Begin(first_block) < first ? 1 : 0};
  }

  // This block's share [begin, end), empty if it has none; `parts` if `whole`.
  __device__ __forceinline__ void Find(const DecodeParams& p,
                                       const int32_t* units_before,
                                       int32_t* begin, int32_t* end,
                                       Parts* parts) const {
    const int32_t block = blockIdx.x;
    if (!whole) {
      *begin = block < blocks ? Begin(block) : 0;
      *end = block < blocks ? Begin(block + 1) : 0;
      return;
    }
    // One block for each (sequence, head), and the rest of them by units.
    const int32_t spare = gridDim.x - p.num_seqs * p.num_kv_heads;
    const int32_t total = units_before[p.num_seqs] * p.num_kv_heads;
    int32_t before = 0;
    *begin = *end = 0;
    for (int32_t seq = 0; seq < p.num_seqs; ++seq) {
      const int32_t of_head = units_before[seq + 1] - units_before[seq];
      const int32_t count =
          max(1, min(of_head / kMinUnits, 1 + of_head * spare / total));
      if (block >= before + count * p.num_kv_heads) {
        before += count * p.num_kv_heads;
        continue;
      }
      const int32_t head = (block - before) / count;
      const int32_t part = block - before - head * count;
      const int32_t first = units_before[seq] * p.num_kv_heads + head * of_head;
      *begin = first + part * of_head / count;
      *end = first + (part + 1) * of_head / count;
      *parts = {block - part, count, 0};
      return;
    }
  }
};

// A place on the line of units.
struct UnitCursor {
  int32_t seq, head, unit;
  SeqSpan span;

  __device__ __forceinline__ UnitCursor(const DecodeParams& p,
                                        const int32_t* units_before,
                                        int32_t index)
      : span(0, 0) {
    int32_t low = 0, high = p.num_seqs - 1;
    while (low < high) {
      const int32_t middle = (low + high + 1) / 2;
      if (units_before[middle] * p.num_kv_heads <= index)
        low = middle;
      else
        high = middle - 1;
    }
    seq = low;
    span = SeqSpan(p.context_lens[seq], p.window);
    const int32_t rest = index - units_before[low] * p.num_kv_heads;
    head = rest / span.units;
    unit = rest - head * span.units;
  }
  __device__ __forceinline__ void Advance(const DecodeParams& p) {
    if (++unit == span.units) NextHead(p);
  }
  __device__ __forceinline__ void NextHead(const DecodeParams& p) {
    unit = 0;
    if (++head < p.num_kv_heads) return;
    head = 0;
    if (++seq < p.num_seqs) span = SeqSpan(p.context_lens[seq], p.window);
  }
  __device__ __forceinline__ int32_t TileBegin(int warp) const {
    return span.first + unit * kUnitKeys + warp * kTileKeys;
  }
};

// units_before[s]: units of one KV head in the sequences before s.
__device__ __forceinline__ void CountUnits(const DecodeParams& p,
                                           int32_t* units_before) {
  __shared__ int32_t warp_sums[kWarps];
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  int32_t before = 0;
  for (int32_t first = 0; first < p.num_seqs; first += kThreads) {
    const int32_t seq = first + threadIdx.x;
    const int32_t units =
        seq < p.num_seqs ? SeqSpan(p.context_lens[seq], p.window).units : 0;
    int32_t inclusive = units;
#pragma unroll
    for (int delta = 1; delta < kWarpSize; delta *= 2) {
      const int32_t other = __shfl_up_sync(kFullWarp, inclusive, delta);
      if (lane >= delta) inclusive += other;
    }
    if (lane == kWarpSize - 1) warp_sums[warp] = inclusive;
    __syncthreads();
    int32_t offset = before;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) offset += warp_sums[w];
      before += warp_sums[w];
    }
    if (seq < p.num_seqs) units_before[seq] = offset + inclusive - units;
    __syncthreads();
  }
  if (threadIdx.x == 0) units_before[p.num_seqs] = before;
  __syncthreads();
}

}  // namespace switchyard::internal::decode

#endif  // SWITCHYARD_KERNELS_PAGED_ATTENTION_SHARES_CUDA_H_
