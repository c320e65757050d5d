// Every tensor a ModelConfig implies, as data: its name in the checkpoint, what
// it is for, its shape, and how tensor parallelism cuts it.
//
// This one enumeration drives the completeness check of a checkpoint, the
// reading of a rank's slices, random initialisation, parameter counts and the
// tests. Names and row orders are those of the public HF implementation
// (ServiceNow/Fast-LLM, fast_llm_external_models/apriel2/modeling_apriel2.py).
//
// How the sharding stays consistent inside a mixer, rank r of w:
//   attention  q head h belongs to KV head h / (heads / head_groups). Both are
//              cut in contiguous runs, so a rank's q heads meet their KV heads;
//              with fewer KV heads than ranks, rank r holds KV head
//              r / (w / head_groups).
//   gdn        in_proj_qkvz rows [Q | K | V | Z], in_proj_ba rows [beta |
//              alpha], convolution channels [Q | K | V]: every segment is cut
//              by its own heads (the split of _fix_query_key_value_ordering).
//              Value head h uses key head h / (value_heads / key_heads)
//              (repeat_interleave), so contiguous runs match; fewer key heads
//              than ranks are replicated like KV heads.
//   kda        heads are rows [head, head_dim] of q, k, v, f_b, g_b, dt_bias
//              and of the convolutions.
//   mamba      in_proj rows [z d_inner | x d_xb | B d_xb | C d_inner]; a head
//   is
//              state_size rows. x and B head j serves the z, C and dt heads
//              [j * d_inner / d_xb, (j + 1) * d_inner / d_xb) (repeat_kv), so
//              runs of x/B heads match runs of z/C heads.
// A bias that follows an all-reduce (o_proj, down_proj, out_proj) is not cut:
// it must be added once, after the reduction or on one rank.
#ifndef SWITCHYARD_MODEL_WEIGHT_TABLE_H_
#define SWITCHYARD_MODEL_WEIGHT_TABLE_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "model/config.h"

namespace switchyard {

enum class TensorRole {
  kEmbedding,  // [vocab, h]; rows padded to equal shares
  kFinalNorm,
  kLmHead,  // as kEmbedding; absent when tied to it
  // Every layer.
  kInputNorm,
  kPostAttentionNorm,
  kMlpGate,  // gated only
  kMlpUp,
  kMlpUpBias,
  kMlpDown,
  kMlpDownBias,
  // attention and kda.
  kQProj,
  kKProj,
  kVProj,
  // attention.
  kQBias,
  kKBias,
  kVBias,
  // Every mixer: o_proj or out_proj. The bias: attention, mamba.
  kOutProj,
  kOutBias,
  // gdn, kda, mamba: [heads]; mamba [d_inner, state_size].
  kALog,
  // gdn [value_heads], kda [heads * head_dim].
  kDtBias,
  // gdn, kda: the gated norm, [value_head_dim] or [head_dim].
  kGateNorm,
  // gdn and mamba: the depthwise convolution, [channels, kernel].
  kConv,
  kConvBias,  // mamba
  // gdn.
  kQkvzProj,
  kBaProj,
  // kda.
  kQConv,
  kKConv,
  kVConv,
  kFAProj,
  kFBProj,
  kGAProj,
  kGBProj,
  kBetaProj,
  // mamba.
  kInProj,
  kInBias,
  kDtInProj,
  kDtInBias,
  kDtProj,
  kDtProjBias,
  kSkip,  // D
};

enum class ShardAxis { kNone, kRows, kCols };

// Rows (or columns) [begin, begin + num_groups * group_size), cut between
// groups. Each rank gets num_groups / w consecutive groups; with fewer groups
// than ranks (KV heads, gdn's key heads), w / num_groups consecutive ranks get
// the same one.
struct ShardSegment {
  int64_t begin = 0;
  int64_t num_groups = 0;
  int64_t group_size = 0;
};

struct Shard {
  ShardAxis axis = ShardAxis::kNone;  // kNone: every rank holds it whole
  std::vector<ShardSegment> segments;
  // The only segment need not divide: every rank holds ceil(num_groups / w)
  // groups, and those past the end are zeros.
  bool padded = false;
};

// One tensor of the checkpoint, seen as a matrix: a vector [n] is [n, 1], a
// convolution weight [channels, 1, kernel] is [channels, kernel].
struct TensorSpec {
  std::string name;
  TensorRole role = TensorRole::kEmbedding;
  int32_t layer = -1;          // -1: outside the layers
  int32_t mixer = -1;          // index into the layer's mixers; -1: of no mixer
  std::vector<int64_t> shape;  // in the checkpoint
  Shard shard;
  // A GEMM operand or the embedding: kept in the device's weight type. The
  // others (norms, biases, convolutions, A_log, ...) are wanted in fp32.
  bool is_matrix = false;

  int64_t rows() const { return shape[0]; }
  int64_t cols() const { return shape.size() == 1 ? 1 : shape.back(); }
  int64_t num_elements() const { return rows() * cols(); }
};

// All tensors of the model, layer by layer, in a fixed order.
std::vector<TensorSpec> EnumerateTensors(const ModelConfig& config);

// Rows and columns of the slice that each rank of `world_size` holds.
// REQUIRES: ValidateTensorParallel holds.
struct SliceShape {
  int64_t rows = 0;
  int64_t cols = 0;
};
SliceShape LocalShape(const TensorSpec& spec, int32_t world_size);

// What rank `rank` holds along the sharded axis: [begin, end) ranges of the
// checkpoint's tensor, in the order in which they lie in the slice. Shorter
// than the slice only where it is padded. REQUIRES: as LocalShape; the axis is
// not kNone.
std::vector<std::pair<int64_t, int64_t>> LocalRanges(const TensorSpec& spec,
                                                     int32_t rank,
                                                     int32_t world_size);

// The vocabulary rows of one rank: [begin, end), of num_rows_local held.
struct VocabShard {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t num_rows_local = 0;
};
VocabShard VocabRows(int32_t vocab_size, int32_t rank, int32_t world_size);

// Parameters of the whole checkpoint.
int64_t NumParameters(const ModelConfig& config);

// Bytes that each rank holds, with `matrix_element_bytes` an element for the
// matrices and fp32 for the rest.
int64_t WeightBytesPerRank(const ModelConfig& config, int32_t world_size,
                           int32_t matrix_element_bytes);

}  // namespace switchyard

#endif  // SWITCHYARD_MODEL_WEIGHT_TABLE_H_
