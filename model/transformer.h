// Transformer: the decoder of one rank, with every mixer of the supernet
// loaded. Which of them run is the batch's business, sequence by sequence.
//
// Written against ops only: the device decides what they are. Immutable after
// loading; one thread, the executor's, runs it. Every rank of the group makes
// the same calls.
#ifndef SWITCHYARD_MODEL_TRANSFORMER_H_
#define SWITCHYARD_MODEL_TRANSFORMER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/device.h"
#include "kernels/op_context.h"
#include "kernels/tensor.h"
#include "model/cache_spec.h"
#include "model/config.h"
#include "model/forward_batch.h"
#include "model/mixers/mixer.h"
#include "model/mlp.h"
#include "model/rank_group.h"
#include "model/rope_tables.h"
#include "model/weight_source.h"
#include "model/weights.h"

namespace switchyard {

struct TransformerOptions {
  int32_t rank = 0;
  int32_t world_size = 1;
  DType activation = DType::kF32;  // of activations and matrices
  DType kv_dtype = DType::kF32;
  int64_t max_positions = 0;  // of any sequence: rows of the RoPE tables
  std::function<void(int64_t bytes)> progress;  // see WeightReaderOptions
};

// What a forward pass leaves in the workspace. The hidden state of a row is
// residual + delta: the last addition is left to the final norm, which needs
// few rows.
struct HiddenState {
  MatrixView residual;  // [num_tokens, hidden] fp32
  MatrixView delta;     // [num_tokens, hidden] fp32
};

class Transformer {
 public:
  // Loads all layers and all their mixers. `cache` is of the same config and
  // world size. Errors: ValidateTensorParallel's, the source's,
  // ResourceExhausted.
  static absl::StatusOr<std::unique_ptr<Transformer>> Load(
      Device* device, const ModelConfig& config, const CacheSpec& cache,
      const WeightSource& source, TransformerOptions options);

  // Runs the batch through the embedding and all layers; the sequences' caches
  // advance by their new rows. The result lives in the workspace until the
  // caller rewinds it.
  //
  // It may come in parts, a batch each, whose rows follow each other, and of
  // which a later one may go on with sequences of one before it: they go
  // through each layer one after another, and the sums over ranks of one run
  // beside the products of the next.
  absl::StatusOr<HiddenState> Forward(
      const OpContext& context, RankGroup& group,
      absl::Span<const ForwardBatch> batches) const;

  // logits [num_rows, vocab] fp32 = those of the hidden rows `rows` (on the
  // device, no row twice). Completes these rows of the residual: a row may be
  // asked for once.
  absl::Status Logits(const OpContext& context, RankGroup& group,
                      const HiddenState& hidden, const int32_t* rows,
                      const MatrixView& logits) const;

  // Workspace that a Forward of `num_tokens` rows and then Logits of
  // `num_logits_rows` take, scratch of ops apart.
  int64_t WorkspaceBytes(int64_t num_tokens, int64_t num_logits_rows) const;

  // Bytes of weights on the device.
  int64_t weights_bytes() const { return weights_bytes_; }

 private:
  struct Layer {
    DeviceVector input_norm;
    DeviceVector post_attention_norm;
    std::vector<std::unique_ptr<Mixer>> mixers;
    Mlp mlp;
  };
  struct LogitsScratch {
    MatrixView normed;  // [num_rows, hidden]
    MatrixView shard;   // [num_rows, vocab rows of a rank]; world size above 1
    MatrixView shards;  // [world_size * num_rows, vocab rows of a rank]
  };

  class Part;

  Transformer(const ModelConfig& config, Device* device,
              TransformerOptions options);

  absl::Status LoadLayer(int32_t index, const CacheSpec& cache,
                         WeightReader& reader);
  absl::Status RunMixers(const OpContext& context, const ForwardBatch& batch,
                         int32_t layer, const MatrixView& x,
                         const MatrixView& out) const;
  std::vector<Part> MakeParts(absl::Span<const ForwardBatch> batches,
                              const HiddenState& hidden,
                              const MatrixView& x) const;
  HiddenState AllocateHidden(Workspace& workspace, int64_t num_tokens) const;
  LogitsScratch AllocateLogits(Workspace& workspace, int64_t num_rows) const;

  const ModelConfig config_;
  const TransformerOptions options_;
  VocabShard vocab_;
  RopeTables rope_tables_;
  DeviceTable embedding_;
  std::vector<Layer> layers_;
  DeviceVector final_norm_;
  WeightMatrix lm_head_;  // [vocab rows of a rank, hidden]
  int64_t weights_bytes_ = 0;
};

}  // namespace switchyard

#endif  // SWITCHYARD_MODEL_TRANSFORMER_H_
