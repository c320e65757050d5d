// VarlenBatch: the sequences of one mixer's segment in one step, and the cache
// they own. The CPU-side plan is made once per step and shared by every layer
// with the same grouping; ops only read it.
#ifndef SWITCHYARD_KERNELS_VARLEN_H_
#define SWITCHYARD_KERNELS_VARLEN_H_

#include <cstddef>
#include <cstdint>

namespace switchyard {

// A cache id is a byte offset into the rank's arena in these units.
constexpr int64_t kCacheUnitBytes = 256;

// Sequences that decode (exactly one new token) come first. Rows of the
// segment's matrices are the new tokens, sequence after sequence. Every
// `host_x` has the same content as `x`, which lies on the device (on the CPU:
// the same pointer). Host arrays may be null on CUDA inside a captured graph,
// where all sequences decode.
struct VarlenBatch {
  int32_t num_seqs = 0;
  int32_t num_decodes = 0;     // sequences [0, num_decodes) have one new token
  int32_t num_tokens = 0;      // new tokens of all sequences
  int32_t max_new_tokens = 0;  // of any sequence
  // Upper bound of context + new tokens of any sequence (bounds what kernels
  // count).
  int32_t max_total_tokens = 0;

  // [num_seqs + 1] first row of each sequence.
  const int32_t* token_offsets = nullptr;
  // [num_seqs] positions already in the cache before this step.
  const int32_t* context_lens = nullptr;
  // [num_tokens] position of each row in its sequence.
  const int32_t* positions = nullptr;
  const int32_t* host_token_offsets = nullptr;
  const int32_t* host_context_lens = nullptr;
};

// Where one attention layer's KV blocks are. Block layout: [2 (K, V),
// num_kv_heads, block_size, head_size] of kv dtype. Position p of a sequence is
// in table entry p / block_size, and with a ring in entry (p / block_size) %
// ring_blocks. Tables are as long as their sequences: that of sequence s is
// ids[begins[s]] to ids[begins[s + 1] - 1].
struct BlockTables {
  std::byte* arena = nullptr;       // the rank's cache arena, on the device
  const uint32_t* ids = nullptr;    // cache ids, on the device
  const int32_t* begins = nullptr;  // [num_seqs + 1], on the device
  // The same on the host; may be null where VarlenBatch's may.
  const int32_t* host_begins = nullptr;
  int32_t block_size = 0;   // positions per block, a power of two
  int32_t ring_blocks = 0;  // 0: no ring (full attention)
};

// Where one recurrent layer's slots are. The state at hand starts `offset`
// bytes into the slot.
struct SlotTable {
  std::byte* arena = nullptr;
  const uint32_t* ids = nullptr;  // [num_seqs] cache ids, on the device
  int64_t offset = 0;
};

}  // namespace switchyard

#endif  // SWITCHYARD_KERNELS_VARLEN_H_
