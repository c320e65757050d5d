// The producer warp of the wgmma prefill attention: finds work, and keeps
// queries, keys and values on their way into shared memory.
#ifndef SWITCHYARD_KERNELS_PAGED_ATTENTION_PRODUCE_CUDA_H_
#define SWITCHYARD_KERNELS_PAGED_ATTENTION_PRODUCE_CUDA_H_

#include "kernels/cuda_bulk.h"
#include "kernels/cuda_ptx.h"
#include "kernels/paged_attention_wgmma_cuda.h"

namespace switchyard::internal::prefill {

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

// The block of this lane's unit of a tile: looked up while the copies of the
// tile before it still wait for their place.
template <typename S>
__device__ __forceinline__ uint32_t LookUp(const PrefillParams& p,
                                           const Source& source, int32_t tile) {
  const int32_t in_tile = threadIdx.x * p.unit;
  const int32_t from = tile * S::kKeys + in_tile;
  const bool cached = in_tile < S::kKeys && from < source.context &&
                      from + p.unit > source.begin;
  return cached ? p.paging.Id(source.seq, from) : 0;
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
    StoreShared16(shared + row / 8 * S::kGroupBytes + j / 8 * kPatternBytes +
                      row % 8 * kRowBytes + ((j ^ row) & 7) * 16,
                  x);
  }
  FenceSharedForBulk();
  __syncwarp();
}

// Keys or values of one tile into a stage; `id` is this lane's LookUp.
template <typename S>
__device__ __forceinline__ void CopyTile(const PrefillParams& p,
                                         const PrefillMaps& maps,
                                         const Source& source, bool values,
                                         int32_t tile, uint32_t id,
                                         uint32_t shared, uint64_t* full,
                                         uint64_t* empty, int phase) {
  const int32_t first = tile * S::kKeys;
  const int32_t panel = source.kv_head * S::kPanels;
  WaitBarrier(empty, phase ^ 1);
  if (first >= source.context && first + S::kKeys <= source.total) {
    if (threadIdx.x == 0) {
      ArriveExpect(full, S::kTileBytes);
      CopyBox4(shared, values ? &maps.v_tile : &maps.k_tile, 0,
               first + source.new_rows, panel, 0, full);
    }
    __syncwarp();
    return;
  }
  // A unit per lane.
  static_assert(S::kKeys / 8 <= kWarpSize);
  const int32_t in_tile = threadIdx.x * p.unit;
  const int32_t from = first + in_tile, to = from + p.unit;
  const bool mine = in_tile < S::kKeys;
  const bool mixed = mine && ((from < source.context && to > source.context) ||
                              (from < source.total && to > source.total));
  uint32_t by_hand = __ballot_sync(kFullWarp, mixed);
  const int32_t bytes =
      S::kTileBytes - __popc(by_hand) * p.unit * S::kHeadSize * 2;
  for (; by_hand != 0; by_hand &= by_hand - 1)
    CopyMixed<S>(p, source, values, first + (__ffs(by_hand) - 1) * p.unit,
                 shared);
  if (threadIdx.x == 0) ArriveExpect(full, bytes);
  __syncwarp();
  if (mine && !mixed) {
    const uint32_t place = shared + in_tile / 8 * S::kGroupBytes;
    if (from < source.context && to > source.begin) {
      // A key of 512 bytes may start in the middle of the map's vectors.
      constexpr uint32_t kVectorBytes = S::kHeadSize * 2;
      const int32_t head =
          source.kv_head + (values ? p.paging.num_kv_heads : 0);
      const int32_t vector = kVectorBytes > kCacheUnitBytes
                                 ? id / (kVectorBytes / kCacheUnitBytes)
                                 : id * (kCacheUnitBytes / kVectorBytes);
      const int32_t odd = id * kCacheUnitBytes % kVectorBytes / kRowBytes;
      CopyBox4(place, &maps.cache, 0,
               vector + (head << p.paging.block_shift) +
                   (from & ((1 << p.paging.block_shift) - 1)),
               odd, 0, full);
    } else {
      const bool there = from >= source.context && from < source.total;
      CopyBox4(place, values ? &maps.v_unit : &maps.k_unit, 0,
               there ? from + source.new_rows : p.past_the_end, panel, 0, full);
    }
  }
  __syncwarp();
}

template <typename S>
__device__ __forceinline__ void Produce(const PrefillParams& p,
                                        const PrefillMaps& maps,
                                        uint32_t shared, Pipeline* pipeline) {
  StageCursor key, value;
  int item_phase = 0;
  int32_t next = blockIdx.x;
  Item item;
  Source source;
  const auto wait_for_queries = [&] {
    WaitBarrier(&pipeline->item_empty, item_phase ^ 1);
    item_phase ^= 1;
  };
  while (NextItem<S>(p, &next, &item, &source)) {
    uint32_t id = LookUp<S>(p, source, item.first_tile), value_id = 0;
    // The place of keys is free before that of the values one tile earlier.
    for (int32_t t = item.first_tile; t <= item.last_tile + 1; ++t) {
      uint32_t next_id = 0;
      if (t <= item.last_tile) {
        if (t < item.last_tile) next_id = LookUp<S>(p, source, t + 1);
        CopyTile<S>(p, maps, source, false, t, id,
                    shared + S::kKeysAt + key.stage * S::kTileBytes,
                    &pipeline->key_full[key.stage],
                    &pipeline->key_empty[key.stage], key.phase);
        key.Next();
      }
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
      } else {
        CopyTile<S>(p, maps, source, true, t - 1, value_id,
                    shared + S::kValuesAt + value.stage * S::kTileBytes,
                    &pipeline->value_full[value.stage],
                    &pipeline->value_empty[value.stage], value.phase);
        value.Next();
      }
      value_id = id;
      id = next_id;
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
