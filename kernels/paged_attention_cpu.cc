// Keys are visited in position order, in tiles of 64 positions that start at
// multiples of 64, whether a key comes from the cache or from this step's rows.
// So the arithmetic of a query depends on its position and its window alone:
// however a prompt is cut into chunks, every bit is the same.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/backends.h"
#include "kernels/cpu_math.h"
#include "kernels/cpu_parallel.h"
#include "kernels/dtype.h"
#include "kernels/status.h"

namespace switchyard::internal {
namespace {

constexpr int64_t kTile = 64;
// Queries of one sequence that share the gathering of a tile.
constexpr int64_t kQueryBlock = 16;

// The part of one sequence that one KV head sees.
class KvHead {
 public:
  KvHead(const PagedAttentionArgs& args, int32_t seq, int32_t kv_head)
      : args_(args),
        ids_(args.blocks.ids + args.blocks.begins[seq]),
        kv_head_(kv_head),
        first_row_(args.batch.token_offsets[seq]),
        context_(args.batch.context_lens[seq]) {}

  int64_t context() const { return context_; }

  // The cached vector of a position; part 0 is K, 1 is V.
  template <typename T>
  T* Cached(int part, int64_t position) const {
    const BlockTables& blocks = args_.blocks;
    int64_t entry = position / blocks.block_size;
    if (blocks.ring_blocks > 0) entry %= blocks.ring_blocks;
    T* block = reinterpret_cast<T*>(blocks.arena +
                                    int64_t{ids_[entry]} * kCacheUnitBytes);
    return block + ((int64_t{part} * args_.num_kv_heads + kv_head_) *
                        blocks.block_size +
                    position % blocks.block_size) *
                       args_.head_size;
  }

  // The vector of a position of this step, as the projection left it.
  const float* New(int part, int64_t position) const {
    const MatrixView& rows = part == 0 ? args_.k : args_.v;
    return rows.Row<const float>(first_row_ + position - context_) +
           int64_t{kv_head_} * args_.head_size;
  }

  // Points rows[i] at the vector of position begin + i, for [begin, end). A
  // bf16 cache rounds keys and values, so those of this step are rounded here
  // too; `scratch` [kTile, head_size] holds what is not fp32 in place.
  void Gather(int part, int64_t begin, int64_t end, float* scratch,
              const float** rows) const {
    const int64_t head_size = args_.head_size;
    for (int64_t p = begin; p < end; ++p) {
      const float*& row = rows[p - begin];
      if (args_.kv_dtype == DType::kF32) {
        row = p < context_ ? Cached<const float>(part, p) : New(part, p);
        continue;
      }
      float* copy = scratch + (p - begin) * head_size;
      row = copy;
      if (p < context_) {
        const uint16_t* cached = Cached<const uint16_t>(part, p);
        for (int64_t d = 0; d < head_size; ++d)
          copy[d] = BF16ToFloat(cached[d]);
      } else {
        const float* fresh = New(part, p);
        for (int64_t d = 0; d < head_size; ++d) {
          copy[d] = BF16ToFloat(FloatToBF16(fresh[d]));
        }
      }
    }
  }

  void Append(int64_t position) const {
    for (int part : {0, 1}) {
      const float* from = New(part, position);
      if (args_.kv_dtype == DType::kF32) {
        std::copy_n(from, args_.head_size, Cached<float>(part, position));
      } else {
        uint16_t* to = Cached<uint16_t>(part, position);
        for (int64_t d = 0; d < args_.head_size; ++d) {
          to[d] = FloatToBF16(from[d]);
        }
      }
    }
  }

 private:
  const PagedAttentionArgs& args_;
  const uint32_t* ids_;
  const int32_t kv_head_;
  const int64_t first_row_;
  const int64_t context_;
};

// The running softmax of one query and head.
struct Softmax {
  float max = -HUGE_VALF;
  float sum = 0;

  // Takes the scores of `count` keys of a tile, the first of them in the tile's
  // place `offset`, and leaves their weights in their stead; returns what
  // earlier sums are to be scaled by.
  float Update(float* scores, int64_t offset, int64_t count) {
    float new_max = max;
    for (int64_t j = 0; j < count; ++j) new_max = std::max(scores[j], new_max);
    const float scale = Exp(max - new_max);
    max = new_max;
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) scores[j] = Exp(scores[j] - new_max);
    // By place in the tile, so that the order of the sum is the position's.
    float placed[kTile] = {};
    std::copy_n(scores, count, placed + offset);
    F8 total = {};
    for (int64_t j = 0; j < kTile; j += kLanes) total += Load8(placed + j);
    sum = std::fma(sum, scale, Sum8(total));
    return scale;
  }
};

// A run of consecutive new tokens of one sequence, for one KV head and the
// query heads that share it.
struct QueryBlock {
  int32_t seq = 0;
  int64_t begin = 0;  // new tokens [begin, end) of the sequence
  int64_t end = 0;
};

void Attend(const PagedAttentionArgs& args, const QueryBlock& block,
            int32_t kv_head) {
  const KvHead kv(args, block.seq, kv_head);
  const int64_t head_size = args.head_size;
  const int64_t group = args.num_heads / args.num_kv_heads;
  const int64_t first_row = args.batch.token_offsets[block.seq];
  const auto first_visible = [&](int64_t position) {
    return args.window == 0 ? int64_t{0}
                            : std::max<int64_t>(0, position - args.window + 1);
  };

  const bool convert = args.kv_dtype != DType::kF32;
  std::vector<float> scratch(convert ? 2 * kTile * head_size : 0);
  std::vector<Softmax> softmax((block.end - block.begin) * group);

  for (int64_t i = block.begin; i < block.end; ++i) {
    float* out =
        args.out.Row<float>(first_row + i) + kv_head * group * head_size;
    std::fill_n(out, group * head_size, 0.0f);
  }
  const int64_t begin = first_visible(kv.context() + block.begin);
  const int64_t end = kv.context() + block.end;
  for (int64_t tile = begin / kTile * kTile; tile < end; tile += kTile) {
    const int64_t tile_begin = std::max(tile, begin);
    const int64_t tile_end = std::min(tile + kTile, end);
    const float* keys[kTile];
    const float* values[kTile];
    kv.Gather(0, tile_begin, tile_end, scratch.data(), keys);
    kv.Gather(1, tile_begin, tile_end,
              scratch.data() + (convert ? kTile * head_size : 0), values);
    for (int64_t i = block.begin; i < block.end; ++i) {
      const int64_t position = kv.context() + i;
      const int64_t from = std::max(tile_begin, first_visible(position));
      const int64_t count = std::min(tile_end, position + 1) - from;
      if (count <= 0) continue;
      const int64_t skip = from - tile_begin;
      for (int64_t h = 0; h < group; ++h) {
        const int64_t column = (kv_head * group + h) * head_size;
        const float* q = args.q.Row<const float>(first_row + i) + column;
        float* out = args.out.Row<float>(first_row + i) + column;
        float scores[kTile];
        DotRows(
            q, [&](int64_t j) { return keys[skip + j]; }, count, head_size,
            scores);
        for (int64_t j = 0; j < count; ++j) scores[j] *= args.scale;
        const float scale = softmax[(i - block.begin) * group + h].Update(
            scores, from - tile, count);
        AddWeightedRows([&](int64_t j) { return values[skip + j]; }, scores,
                        count, scale, head_size, out);
      }
    }
  }
  for (int64_t i = block.begin; i < block.end; ++i) {
    float* out =
        args.out.Row<float>(first_row + i) + kv_head * group * head_size;
    for (int64_t h = 0; h < group; ++h) {
      const float scale = 1.0f / softmax[(i - block.begin) * group + h].sum;
      for (int64_t d = 0; d < head_size; ++d) out[h * head_size + d] *= scale;
    }
  }
}

absl::Status RotateQueriesAndKeys(const OpContext& context,
                                  const PagedAttentionArgs& args) {
  for (const MatrixView& x : {args.q, args.k}) {
    RopeArgs rope;
    rope.x = x;
    rope.head_size = args.head_size;
    rope.positions = args.batch.positions;
    rope.table = args.rope_table;
    rope.num_positions = args.rope_positions;
    SY_RETURN_IF_ERROR(RopeCpu(context, rope));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status PagedAttentionCpu(const OpContext& context,
                               const PagedAttentionArgs& args) {
  SY_RETURN_IF_ERROR(RotateQueriesAndKeys(context, args));

  const VarlenBatch& batch = args.batch;
  std::vector<QueryBlock> blocks;
  int64_t score_work = 0;
  for (int32_t s = 0; s < batch.num_seqs; ++s) {
    const int64_t num_new = batch.token_offsets[s + 1] - batch.token_offsets[s];
    for (int64_t begin = 0; begin < num_new; begin += kQueryBlock) {
      const int64_t end = std::min(begin + kQueryBlock, num_new);
      blocks.push_back({s, begin, end});
      int64_t visible = batch.context_lens[s] + end;
      if (args.window > 0) visible = std::min<int64_t>(visible, args.window);
      score_work += (end - begin) * visible;
    }
  }
  const int64_t num_items = blocks.size() * args.num_kv_heads;
  const int64_t work = score_work * args.num_heads * args.head_size / num_items;
  ParallelForUneven(num_items, work, [&](int64_t item) {
    // Late blocks see the most keys: they go first.
    const int64_t block = blocks.size() - 1 - item / args.num_kv_heads;
    Attend(args, blocks[block], item % args.num_kv_heads);
  });

  // Only now, since a chunk's first queries still read what its last keys
  // overwrite in a ring. Positions that the same step overwrites are skipped.
  const int64_t capacity =
      args.blocks.ring_blocks > 0
          ? int64_t{args.blocks.ring_blocks} * args.blocks.block_size
          : int64_t{1} << 62;
  ParallelFor(int64_t{batch.num_seqs} * args.num_kv_heads,
              2 * args.head_size * batch.num_tokens / batch.num_seqs,
              [&](int64_t item) {
                const int32_t s = item / args.num_kv_heads;
                const KvHead kv(args, s, item % args.num_kv_heads);
                const int64_t total = kv.context() +
                                      batch.token_offsets[s + 1] -
                                      batch.token_offsets[s];
                for (int64_t p = std::max(kv.context(), total - capacity);
                     p < total; ++p) {
                  kv.Append(p);
                }
              });
  return absl::OkStatus();
}

}  // namespace switchyard::internal
