// Addresses in the paged KV cache and positions of rows, on the device.
#ifndef SWITCHYARD_KERNELS_CUDA_PAGING_H_
#define SWITCHYARD_KERNELS_CUDA_PAGING_H_

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/varlen.h"

namespace switchyard::cuda {

// BlockTables as kernels use it; block sizes are powers of two.
struct Paging {
  std::byte* arena;
  const uint32_t* ids;
  const int32_t* begins;
  int32_t block_shift;  // log2 of the block size
  int32_t ring_blocks;
  int32_t num_kv_heads;
  int32_t head_bytes;  // of one head's vector at one position

  // Table entry of a position.
  __device__ __forceinline__ uint32_t Id(int32_t seq, int32_t position) const {
    int32_t entry = position >> block_shift;
    if (ring_blocks > 0) entry %= ring_blocks;
    return ids[begins[seq] + entry];
  }
  // The key at `position`, in the block `id`.
  __device__ __forceinline__ std::byte* Key(uint32_t id, int32_t head,
                                            int32_t position) const {
    const int32_t row =
        (head << block_shift) + (position & ((1 << block_shift) - 1));
    return arena + int64_t{id} * kCacheUnitBytes + int64_t{row} * head_bytes;
  }
  // From a key to its value.
  __device__ __forceinline__ int64_t ValueOffset() const {
    return (int64_t{num_kv_heads} << block_shift) * head_bytes;
  }
};

inline Paging MakePaging(const BlockTables& blocks, int32_t num_kv_heads,
                         int64_t head_bytes) {
  int32_t shift = 0;
  while ((1 << shift) < blocks.block_size) ++shift;
  return {blocks.arena,
          blocks.ids,
          blocks.begins,
          shift,
          blocks.ring_blocks,
          num_kv_heads,
          static_cast<int32_t>(head_bytes)};
}

// Fixed-size tiles of rows over sequences of any length, without a host-side
// plan: sequence s owns tiles [offsets[s] / size + s, ...), a few of which at
// its end may be empty. NumTiles bounds their number.
struct RowTile {
  int32_t seq;
  int32_t index;  // of the tile within its sequence
  int32_t row;    // first row of the matrices
  int32_t rows;   // 0: an empty tile
};

inline int64_t NumTiles(int64_t num_rows, int64_t num_seqs, int64_t size) {
  return num_rows / size + num_seqs;
}

// Over sequences [first_seq, num_seqs).
__device__ __forceinline__ RowTile FindTile(const int32_t* offsets,
                                            int32_t first_seq, int32_t num_seqs,
                                            int32_t size, int32_t tile) {
  const int32_t origin = offsets[first_seq];
  int32_t low = first_seq, high = num_seqs - 1;
  while (low < high) {
    const int32_t middle = (low + high + 1) / 2;
    if ((offsets[middle] - origin) / size + (middle - first_seq) <= tile)
      low = middle;
    else
      high = middle - 1;
  }
  RowTile found;
  found.seq = low;
  found.index = tile - (offsets[low] - origin) / size - (low - first_seq);
  const int32_t begin = offsets[low] + found.index * size;
  found.row = begin;
  found.rows = max(0, min(size, offsets[low + 1] - begin));
  return found;
}

// The sequence of a row, among [first_seq, num_seqs).
__device__ __forceinline__ int32_t SeqOfRow(const int32_t* offsets,
                                            int32_t first_seq, int32_t num_seqs,
                                            int32_t row) {
  int32_t low = first_seq, high = num_seqs - 1;
  while (low < high) {
    const int32_t middle = (low + high + 1) / 2;
    if (offsets[middle] <= row)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

}  // namespace switchyard::cuda

#endif  // SWITCHYARD_KERNELS_CUDA_PAGING_H_
