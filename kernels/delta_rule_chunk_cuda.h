// The chunked delta rule in two kernels, and what the first hands the second.
//
// delta_rule_prepare_*cuda.cu, a block per (chunk, value head), compute what
// does not depend on the state: with A, T = (I + A)^-1 and P as in
// delta_rule_cpu_chunked.cc,
//   W = T (beta exp(G) K),  U = T (beta V),  P.
// delta_rule_scan_cuda.cu, two warps per 16 value columns of a head, goes
// through the chunks in order with the state in registers, transposed:
//   N^T = U^T - S^T W^T,  S^T = S^T d + N^T K,  O^T = S^T Q^T + N^T P^T.
// The first two are the first warp's, which others wait for; the outputs follow
// in the second one. Each product's left operand is what an earlier one left in
// the first warp's registers, and the right operands are common to all warps.
//
// All matrices are stored as blocks of 16 x 16 bf16 in the register layout of
// mma.m16n8k16's A operand: lane 4g + t holds 16 bytes, the pairs of columns at
// (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8). The same words are the B
// operands of the transposed block: (0, 2) for n = rows 0-7, (1, 3) for 8-15;
// and in this order two adjacent accumulators make a block.
#ifndef SWITCHYARD_KERNELS_DELTA_RULE_CHUNK_CUDA_H_
#define SWITCHYARD_KERNELS_DELTA_RULE_CHUNK_CUDA_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/delta_rule.h"
#include "kernels/op_context.h"

namespace switchyard::internal {

struct DeltaChunks {
  static constexpr int kTokens = 64;  // of a chunk
  static constexpr int kDim = 128;    // of keys and of values
  static constexpr int kTokenBlocks = kTokens / 16;
  static constexpr int kDimBlocks = kDim / 16;
  static constexpr int kBlockBytes = 16 * 16 * 2;

  // Of one value head.
  static constexpr int kWBytes = kTokenBlocks * kDimBlocks * kBlockBytes;
  // Blocks (r, s <= r) of the lower triangle, row after row.
  static constexpr int kPBytes =
      kTokenBlocks * (kTokenBlocks + 1) / 2 * kBlockBytes;
  static constexpr int kUBytes = kWBytes;  // U^T: [value block][token block]
  // fp32. Per head: what multiplies the rows of Q and N, [64] each, and the
  // chunk's decay. Per channel, where Q and K already contain their factors:
  // the decays [128].
  static constexpr int kScaleFloats = 2 * kTokens + 4;
  static constexpr int kScaleBytes = kScaleFloats * 4;
  static constexpr int kHeadBytes =
      (kWBytes + kPBytes + kUBytes + kScaleBytes + 127) / 128 * 128;
  static constexpr int kPOffset = kWBytes;
  static constexpr int kUOffset = kPOffset + kPBytes;
  static constexpr int kScaleOffset = kUOffset + kUBytes;

  // Of one key head: Q, then K^T [channel block][token block].
  static constexpr int kQBytes = kWBytes;
  static constexpr int kKeyBytes = 2 * kQBytes;

  // Tiles of all sequences from first_seq on (cuda_paging.h); this launch works
  // on [first_tile, first_tile + num_tiles).
  int32_t first_seq = 0;
  int32_t end_seq = 0;
  int32_t first_tile = 0;
  int32_t num_tiles = 0;
  std::byte* heads = nullptr;  // [num_tiles, num_value_heads] * kHeadBytes
  std::byte* keys = nullptr;   // [num_tiles, num_key_heads] * kKeyBytes

  static int64_t BytesPerTile(const DeltaRuleArgs& args) {
    return int64_t{args.num_value_heads} * kHeadBytes +
           int64_t{args.num_key_heads} * kKeyBytes;
  }
};

// Both REQUIRE bf16 q, k, v with 16-byte aligned rows, and dims of 128.
absl::Status DeltaRulePrepare(const OpContext& context,
                              const DeltaRuleArgs& args,
                              const DeltaChunks& chunks);
absl::Status DeltaRuleScan(const OpContext& context, const DeltaRuleArgs& args,
                           const DeltaChunks& chunks);

}  // namespace switchyard::internal

#endif  // SWITCHYARD_KERNELS_DELTA_RULE_CHUNK_CUDA_H_
