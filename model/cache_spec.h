// What one sequence keeps between steps, per layer and mixer, on one rank.
//
// The single source of cache sizes and layouts: the coordinator's ledger counts
// with it, the worker addresses memory with it, `inspect` prints it. Pure
// arithmetic over ModelConfig; thread-safe as any const value. Sizes are the
// same on every rank.
//
// Layouts, row-major, within one unit (offsets in bytes from its start):
//   block  [2, num_kv_heads_local, block_size, head_size] of the KV type: keys,
//          then values. One run of block_size positions of one attention layer.
//   slot   the conv state [conv_channels_local, kernel - 1], oldest position
//          first, then the recurrent state in fp32, V (or N) contiguous:
//     gdn    conv channels [Q | K | V] of this rank
//            state [value_heads_local, key_head_dim, value_head_dim]
//     kda    conv channels [q | k | v], heads_local * head_dim each
//            state [heads_local, head_dim, head_dim]
//     mamba  conv channels: x of this rank, repeated to d_inner_local or not
//            state [1, d_inner_local, state_size]
#ifndef SWITCHYARD_MODEL_CACHE_SPEC_H_
#define SWITCHYARD_MODEL_CACHE_SPEC_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/varlen.h"  // kCacheUnitBytes
#include "model/config.h"
#include "model/placement.h"

namespace switchyard {

inline constexpr int32_t kDefaultBlockSize = 16;

enum class CacheKind { kBlocks, kSlot };

// The cache of one mixer in one layer, on one rank.
struct MixerCacheSpec {
  CacheKind kind = CacheKind::kBlocks;
  // Of one block or slot; a multiple of kCacheUnitBytes.
  int64_t unit_bytes = 0;

  // kBlocks.
  int32_t num_kv_heads_local = 0;
  int32_t head_size = 0;
  int64_t value_offset = 0;  // of the values, after the keys
  int32_t window = 0;        // positions a query sees; 0: all
  // With a window, the block table is a ring: position p lives in entry
  // (p / block_size) % ring_blocks. 0: it grows without bound.
  int32_t ring_blocks = 0;

  // kSlot. Offsets are multiples of kCacheUnitBytes; the conv state is at 0.
  int32_t conv_channels_local = 0;
  int32_t conv_state_length = 0;  // kernel - 1
  int64_t conv_bytes = 0;         // without padding
  int64_t state_offset = 0;
  int64_t state_bytes = 0;  // without padding
  int32_t state_heads_local = 0;
  int32_t state_rows = 0;  // K, or d_inner_local for mamba
  int32_t state_cols = 0;  // V, or state_size for mamba
};

struct CacheSpecOptions {
  int32_t world_size = 1;
  int32_t block_size = kDefaultBlockSize;  // a power of two
  int32_t kv_element_bytes = 4;
  int32_t conv_element_bytes = 4;
};

// InvalidArgument unless attention can page its cache in such blocks.
absl::Status ValidateBlockSize(int32_t block_size);

class CacheSpec {
 public:
  // InvalidArgument: options out of range, or as ValidateTensorParallel.
  static absl::StatusOr<CacheSpec> Create(const ModelConfig& config,
                                          const CacheSpecOptions& options);

  // REQUIRES: layer and mixer are of the config.
  const MixerCacheSpec& At(int32_t layer, int32_t mixer) const {
    return layers_[layer][mixer];
  }

  // Blocks or slots that a sequence holds in this layer once `num_tokens`
  // positions are cached: all of them for attention, at most the ring with a
  // window, one slot for a recurrent mixer (none for no tokens).
  int64_t NumUnits(int32_t layer, int32_t mixer, int64_t num_tokens) const;

  // The bytes of a sequence of `num_tokens` positions under `placement`.
  int64_t SequenceBytes(const Placement& placement, int64_t num_tokens) const;

  int32_t num_layers() const { return static_cast<int32_t>(layers_.size()); }
  int32_t num_mixers(int32_t layer) const {
    return static_cast<int32_t>(layers_[layer].size());
  }
  int32_t block_size() const { return options_.block_size; }
  const CacheSpecOptions& options() const { return options_; }

 private:
  CacheSpec() = default;

  CacheSpecOptions options_;
  std::vector<std::vector<MixerCacheSpec>> layers_;  // [layer][mixer]
};

}  // namespace switchyard

#endif  // SWITCHYARD_MODEL_CACHE_SPEC_H_
