// The producer warps of the wgmma prefill attention: one finds work and keeps
// queries and keys on their way into shared memory, the other values.
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
  for (int i = threadIdx.x % kWarpSize; i < p.unit * kChunks; i += kWarpSize) {
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
  const int lane = threadIdx.x % kWarpSize;
  const int32_t first = tile * S::kKeys;
  const int32_t panel = source.kv_head * S::kPanels;
  if (first >= source.context && first + S::kKeys <= source.total) {
    WaitBarrier(empty, phase ^ 1);
    if (lane == 0) {
      ArriveExpect(full, S::kTileBytes);
      CopyBox3(shared, values ? &maps.v_tile : &maps.k_tile, 0,
               first + source.new_rows, panel, full);
    }
    __syncwarp();
    return;
  }
  // A unit's panel per lane. Where it is, is looked up before its place is
  // free.
  static_assert(S::kKeys / kMinUnit * S::kPanels <= kWarpSize);
  const int c = lane % S::kPanels;
  const int32_t from = first + lane / S::kPanels * p.unit;
  const bool mine = from < first + S::kKeys;
  const bool mixed =
      mine && ((from < source.context && from + p.unit > source.context) ||
               (from < source.total && from + p.unit > source.total));
  const CUtensorMap* map = values ? &maps.v_unit : &maps.k_unit;
  int32_t row = p.past_the_end, box_panel = panel + c;
  if (from < source.context && from + p.unit > source.begin) {
    // A key of 512 bytes may start in the middle of the map's vectors.
    constexpr uint32_t kVectorBytes = S::kHeadSize * 2;
    const uint32_t id = p.paging.Id(source.seq, from);
    const int32_t head = source.kv_head + (values ? p.paging.num_kv_heads : 0);
    map = &maps.cache;
    row = kVectorBytes > kCacheUnitBytes
              ? id / (kVectorBytes / kCacheUnitBytes)
              : id * (kCacheUnitBytes / kVectorBytes);
    row += (head << p.paging.block_shift) +
           (from & ((1 << p.paging.block_shift) - 1));
    box_panel = id * kCacheUnitBytes % kVectorBytes / kRowBytes + c;
  } else if (from >= source.context && from < source.total) {
    row = from + source.new_rows;
  }
  uint32_t by_hand = __ballot_sync(kFullWarp, mixed);
  WaitBarrier(empty, phase ^ 1);
  const int bytes = S::kTileBytes - __popc(by_hand) * (p.unit * kRowBytes);
  while (by_hand != 0) {
    const int unit = (__ffs(by_hand) - 1) / S::kPanels;
    CopyMixed<S>(p, source, values, first + unit * p.unit, shared);
    by_hand &= ~(((1u << S::kPanels) - 1) << (unit * S::kPanels));
  }
  if (lane == 0) ArriveExpect(full, bytes);
  __syncwarp();
  if (mine && !mixed)
    CopyBox3(shared + c * S::kKeyPanel + from % S::kKeys * kRowBytes, map, 0,
             row, box_panel, full);
  __syncwarp();
}

// The first warp: work, queries and keys.
template <typename S>
__device__ __forceinline__ void ProduceKeys(const PrefillParams& p,
                                            const PrefillMaps& maps,
                                            uint32_t shared,
                                            Pipeline* pipeline) {
  Cursor stage;
  int phase = 0;  // of items
  int32_t next = blockIdx.x;
  Item item;
  Source source;
  while (NextItem<S>(p, &next, &item, &source)) {
    WaitBarrier(&pipeline->work_empty, phase ^ 1);
    if (threadIdx.x == 0) {
      pipeline->work = {source, item.first_tile, item.last_tile};
      Arrive(&pipeline->work_full);
    }
    for (int32_t t = item.first_tile; t <= item.last_tile; ++t) {
      CopyTile<S>(p, maps, source, false, t,
                  shared + S::kKeysAt + stage.stage * S::kTileBytes,
                  &pipeline->key_full[stage.stage],
                  &pipeline->key_empty[stage.stage], stage.phase);
      stage.Next();
      if (t > item.first_tile) continue;
      WaitBarrier(&pipeline->item_empty, phase ^ 1);
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
    phase ^= 1;
  }
  WaitBarrier(&pipeline->work_empty, phase ^ 1);
  WaitBarrier(&pipeline->item_empty, phase ^ 1);
  if (threadIdx.x != 0) return;
  pipeline->work.last_tile = -1;
  Arrive(&pipeline->work_full);
  pipeline->item.tokens = 0;
  Arrive(&pipeline->item_full);
  // The last block leaves the counters as it found them.
  __threadfence();
  if (atomicAdd(p.counters + 1, 1) == static_cast<int32_t>(gridDim.x) - 1) {
    p.counters[0] = 0;
    p.counters[1] = 0;
  }
}

// The second warp: values.
template <typename S>
__device__ __forceinline__ void ProduceValues(const PrefillParams& p,
                                              const PrefillMaps& maps,
                                              uint32_t shared,
                                              Pipeline* pipeline) {
  Cursor stage;
  for (int phase = 0;; phase ^= 1) {
    WaitBarrier(&pipeline->work_full, phase);
    const Work work = pipeline->work;
    __syncwarp();
    if (work.last_tile < 0) return;
    if (threadIdx.x % kWarpSize == 0) Arrive(&pipeline->work_empty);
    for (int32_t t = work.first_tile; t <= work.last_tile; ++t) {
      CopyTile<S>(p, maps, work.source, true, t,
                  shared + S::kValuesAt + stage.stage * S::kTileBytes,
                  &pipeline->value_full[stage.stage],
                  &pipeline->value_empty[stage.stage], stage.phase);
      stage.Next();
    }
  }
}

}  // namespace switchyard::internal::prefill

#endif  // SWITCHYARD_KERNELS_PAGED_ATTENTION_PRODUCE_CUDA_H_
