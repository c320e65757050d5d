// The producer warp of the wgmma prefill attention: finds work, and keeps
// queries, keys and values on their way into shared memory.
#ifndef SWITCHYARD_KERNELS_PAGED_ATTENTION_PRODUCE_CUDA_H_
#define SWITCHYARD_KERNELS_PAGED_ATTENTION_PRODUCE_CUDA_H_

#include "kernels/cuda_bulk.h"
#include "kernels/cuda_ptx.h"
#include "kernels/paged_attention_wgmma_cuda.h"

namespace switchyard::internal::prefill {

__device__ __forceinline__ void CopyBox3(uint32_t shared,
                                         const CUtensorMap* map, int32_t x,
                                         int32_t y, int32_t z,
                                         uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::"
      "bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(shared),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(SharedAddress(barrier))
      : "memory");
}
__device__ __forceinline__ void CopyBox4(uint32_t shared,
                                         const CUtensorMap* map, int32_t x,
                                         int32_t y, int32_t z, int32_t w,
                                         uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::"
      "bytes [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(shared),
      "l"(map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(SharedAddress(barrier))
      : "memory");
}

__device__ __forceinline__ void StoreShared16(uint32_t address, uint4 x) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
               : "memory");
}

// Where the positions of an item's sequence are: before `context` in the cache,
// from there to `total` in the new rows; before `begin` nobody looks.
struct Source {
  int32_t seq, kv_head, begin, context, total;
  int32_t new_rows;  // position + new_rows is its row in the matrices
};

// Work from `*next` on, which a block advances; false: there is none left.
template <typename S>
__device__ __forceinline__ bool NextItem(const PrefillParams& p, int32_t* next,
                                         Item* item, Source* source) {
  while (*next < p.num_items) {
    // Head after head, whose keys then stay in the L2; later tiles have more
    // keys and go first.
    const int32_t kv_head = *next / p.num_tiles;
    const RowTile tile =
        FindTile(p.token_offsets, p.first_seq, p.num_seqs, p.tile_tokens,
                 p.num_tiles - 1 - *next % p.num_tiles);
    int32_t fetched = 0;
    if (threadIdx.x == 0) fetched = atomicAdd(p.counters, 1);
    *next = gridDim.x + __shfl_sync(kFullWarp, fetched, 0);
    if (tile.rows == 0) continue;
    source->seq = tile.seq;
    source->kv_head = kv_head;
    source->context = p.context_lens[tile.seq];
    source->new_rows = p.token_offsets[tile.seq] - source->context;
    source->total = p.token_offsets[tile.seq + 1] - source->new_rows;
    item->kv_head = kv_head;
    item->row = tile.row;
    item->tokens = tile.rows;
    item->position = tile.row - source->new_rows;
    source->begin = max(0, item->position + 1 - p.window);
    item->first_tile = source->begin / S::kKeys;
    item->last_tile = (item->position + tile.rows - 1) / S::kKeys;
    return true;
  }
  return false;
}

// Positions [from, from + unit) through registers; what is past the end becomes
// zeros.
template <typename S>
__device__ __forceinline__ void CopyMixed(const PrefillParams& p,
                                          const Source& source, bool values,
                                          int32_t from, uint32_t shared) {
  constexpr int kChunks = S::kHeadSize / 8;
#pragma unroll 1
  for (int i = threadIdx.x; i < p.unit * kChunks; i += kWarpSize) {
    const int j = i % kChunks;
    const int32_t position = from + i / kChunks;
    uint4 x = make_uint4(0, 0, 0, 0);
    if (position < source.context) {
      const std::byte* key = p.paging.Key(p.paging.Id(source.seq, position),
                                          source.kv_head, position);
      if (values) key += p.paging.ValueOffset();
      x = *reinterpret_cast<const uint4*>(key + j * 16);
    } else if (position < source.total) {
      const int64_t row = position + source.new_rows;
      const bf16* rows =
          values ? p.v + row * p.v_stride : p.k + row * p.k_stride;
      x = *reinterpret_cast<const uint4*>(rows + source.kv_head * S::kHeadSize +
                                          j * 8);
    }
    const int row = position % S::kKeys;
    StoreShared16(
        shared + j / 8 * S::kKeyPanel + row * kRowBytes + ((j ^ row) & 7) * 16,
        x);
  }
  FenceSharedForBulk();
  __syncwarp();
}

// Keys or values of one tile into a stage.
template <typename S>
__device__ __forceinline__ void CopyTile(const PrefillParams& p,
                                         const PrefillMaps& maps,
                                         const Source& source, bool values,
                                         int32_t tile, uint32_t shared,
                                         uint64_t* full, uint64_t* empty,
                                         int phase) {
  const int32_t first = tile * S::kKeys;
  const int32_t panel = source.kv_head * S::kPanels;
  WaitBarrier(empty, phase ^ 1);
  if (first >= source.context && first + S::kKeys <= source.total) {
    if (threadIdx.x == 0) {
      ArriveExpect(full, S::kTileBytes);
      CopyBox3(shared, values ? &maps.v_tile : &maps.k_tile, 0,
               first + source.new_rows, panel, full);
    }
    __syncwarp();
    return;
  }
  const auto mixed = [&](int32_t from) {
    return (from < source.context && from + p.unit > source.context) ||
           (from < source.total && from + p.unit > source.total);
  };
  int32_t bytes = S::kTileBytes;  // by the copy engine
#pragma unroll 1
  for (int32_t from = first; from < first + S::kKeys; from += p.unit) {
    if (!mixed(from)) continue;
    CopyMixed<S>(p, source, values, from, shared);
    bytes -= p.unit * S::kPanels * kRowBytes;
  }
  if (threadIdx.x == 0) ArriveExpect(full, bytes);
  __syncwarp();
  // Lane by lane a unit's panel.
#pragma unroll 1
  for (int32_t i = threadIdx.x; i * p.unit < S::kKeys * S::kPanels;
       i += kWarpSize) {
    const int c = i % S::kPanels;
    const int32_t from = first + i / S::kPanels * p.unit;
    if (mixed(from)) continue;
    const uint32_t to = shared + c * S::kKeyPanel + from % S::kKeys * kRowBytes;
    if (from < source.context && from + p.unit > source.begin) {
      // A key of 512 bytes may start in the middle of the map's vectors.
      constexpr uint32_t kVectorBytes = S::kHeadSize * 2;
      const uint32_t id = p.paging.Id(source.seq, from);
      const int32_t head =
          source.kv_head + (values ? p.paging.num_kv_heads : 0);
      const int32_t vector = kVectorBytes > kCacheUnitBytes
                                 ? id / (kVectorBytes / kCacheUnitBytes)
                                 : id * (kCacheUnitBytes / kVectorBytes);
      const int32_t odd = id * kCacheUnitBytes % kVectorBytes / kRowBytes;
      CopyBox3(to, &maps.cache, 0,
               vector + (head << p.paging.block_shift) +
                   (from & ((1 << p.paging.block_shift) - 1)),
               odd + c, full);
    } else {
      const bool there = from >= source.context && from < source.total;
      CopyBox3(to, values ? &maps.v_unit : &maps.k_unit, 0,
               there ? from + source.new_rows : p.past_the_end, panel + c,
               full);
    }
  }
  __syncwarp();
}

template <typename S>
__device__ __forceinline__ void Produce(const PrefillParams& p,
                                        const PrefillMaps& maps,
                                        uint32_t shared, Pipeline* pipeline) {
  Cursor stage;
  int item_phase = 0;
  int32_t next = blockIdx.x;
  Item item;
  Source source;
  const auto wait_for_queries = [&] {
    WaitBarrier(&pipeline->item_empty, item_phase ^ 1);
    item_phase ^= 1;
  };
  while (NextItem<S>(p, &next, &item, &source)) {
    for (int32_t t = item.first_tile; t <= item.last_tile; ++t) {
      CopyTile<S>(p, maps, source, false, t,
                  shared + S::kKeysAt + stage.stage * S::kTileBytes,
                  &pipeline->key_full[stage.stage],
                  &pipeline->key_empty[stage.stage], stage.phase);
      if (t == item.first_tile) {
        wait_for_queries();
        if (threadIdx.x == 0) {
          pipeline->item = item;
          ArriveExpect(&pipeline->item_full,
                       p.tile_tokens * p.group * S::kHeadSize * 2);
          for (int c = 0; c < S::kPanels; ++c)
            CopyBox4(shared + c * S::kQueryPanel, &maps.q, 0,
                     item.kv_head * p.group, item.row, c, &pipeline->item_full);
        }
        __syncwarp();
      }
      CopyTile<S>(p, maps, source, true, t,
                  shared + S::kValuesAt + stage.stage * S::kTileBytes,
                  &pipeline->value_full[stage.stage],
                  &pipeline->value_empty[stage.stage], stage.phase);
      stage.Next();
    }
  }
  wait_for_queries();
  if (threadIdx.x != 0) return;
  pipeline->item.tokens = 0;
  Arrive(&pipeline->item_full);
  // The last block leaves the counters as it found them.
  __threadfence();
  if (atomicAdd(p.counters + 1, 1) == static_cast<int32_t>(gridDim.x) - 1) {
    p.counters[0] = 0;
    p.counters[1] = 0;
  }
}

}  // namespace switchyard::internal::prefill

#endif  // SWITCHYARD_KERNELS_PAGED_ATTENTION_PRODUCE_CUDA_H_
