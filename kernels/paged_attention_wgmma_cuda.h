// What the parts of the wgmma prefill attention share: tile shapes, parameters,
// and the pipeline between producer and consumers.
#ifndef SWITCHYARD_KERNELS_PAGED_ATTENTION_WGMMA_CUDA_H_
#define SWITCHYARD_KERNELS_PAGED_ATTENTION_WGMMA_CUDA_H_

#include <cuda.h>

#include <cstdint>

#include "kernels/cuda_common.h"
#include "kernels/cuda_paging.h"

namespace switchyard::internal::prefill {

using namespace switchyard::cuda;

constexpr int kWarpgroup = 128;  // threads
constexpr int kPanel = 64;       // columns of 128 swizzled bytes
constexpr int kRowBytes = kPanel * 2;
constexpr int kPatternBytes = 8 * kRowBytes;  // of the swizzle
constexpr int kStages = 2;
constexpr int kAlignment = 1024;
constexpr int32_t kNoWindow = 1 << 30;

// Shared memory, in panels of 64 columns: queries [HeadSize / 64][rows], the
// output's staging of the same shape where there is room for it, keys
// [kStages][Keys / 8][HeadSize / 64][8], values alike: so that a box of any
// multiple of eight positions is contiguous.
template <int HeadSize, int Keys, int Consumers>
struct Shape {
  static constexpr int kHeadSize = HeadSize, kKeys = Keys,
                       kConsumers = Consumers;
  static constexpr int kRows = 64 * Consumers;
  static constexpr int kPanels = HeadSize / kPanel;
  static constexpr int kThreads = kWarpgroup * (Consumers + 1);
  static constexpr int kQueryPanel = kRows * kRowBytes;
  static constexpr int kGroupBytes = kPanels * kPatternBytes;  // of 8 keys
  static constexpr int kQueryBytes = kPanels * kQueryPanel;
  static constexpr int kTileBytes = Keys * HeadSize * 2;
  static constexpr bool kOwnStaging = HeadSize <= 128;
  static constexpr int kKeysAt = (kOwnStaging ? 2 : 1) * kQueryBytes;
  static constexpr int kValuesAt = kKeysAt + kStages * kTileBytes;
  static constexpr int kSharedBytes =
      kValuesAt + kStages * kTileBytes + kAlignment;
  // Of the output, an instruction covers kOutColumns.
  static constexpr int kOutColumns = HeadSize < 128 ? HeadSize : 128;
  static constexpr int kOutParts = HeadSize / kOutColumns;
  static constexpr int kConsumerRegisters = Consumers == 2 ? 232 : 160;
  static constexpr int kProducerRegisters = Consumers == 2 ? 40 : 32;
};

struct PrefillMaps {
  CUtensorMap q;  // [64, heads, tokens, panels]
  // [64, tokens, panels of all KV heads, eights of tokens from there on]
  CUtensorMap k_tile, v_tile;  // by tiles
  CUtensorMap k_unit, v_unit;  // by units of the cache
  CUtensorMap cache;           // [64, vectors, panels, eights], by units
};

struct PrefillParams {
  Paging paging;
  const int32_t* token_offsets;
  const int32_t* context_lens;
  int32_t first_seq, num_seqs;
  int32_t num_tiles;     // of each KV head
  int32_t num_items;     // num_tiles * KV heads
  int32_t group;         // query heads of a KV head
  int32_t tile_tokens;   // group * tile_tokens <= rows
  int32_t unit;          // positions per box of the cache
  int32_t past_the_end;  // a token that there is not: its box arrives as zeros
  int32_t window;        // kNoWindow: none
  float scale;           // times log2(e)
  const bf16* k;
  const bf16* v;
  int64_t k_stride, v_stride;
  bf16* out;
  int64_t out_stride;
  int32_t* counters;  // items handed out beyond the first ones; blocks done
};

// What a block works on at a time.
struct Item {
  int32_t kv_head;
  int32_t row, tokens;  // of the matrices; 0 tokens: no more items
  int32_t position;     // of the first token
  int32_t first_tile, last_tile;
};

struct Pipeline {
  uint64_t item_full, item_empty;  // the item and its queries
  uint64_t key_full[kStages], key_empty[kStages];
  uint64_t value_full[kStages], value_empty[kStages];
  Item item;
};

// Position in a ring of stages.
struct StageCursor {
  int stage = 0, phase = 0;
  __device__ __forceinline__ void Next() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

}  // namespace switchyard::internal::prefill

#endif  // SWITCHYARD_KERNELS_PAGED_ATTENTION_WGMMA_CUDA_H_
