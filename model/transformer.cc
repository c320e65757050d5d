#include "model/transformer.h"

#include <algorithm>
#include <utility>

#include "kernels/check.h"
#include "kernels/embedding.h"
#include "kernels/logits.h"
#include "kernels/rms_norm.h"
#include "kernels/status.h"
#include "model/mixers/load_mixer.h"
#include "model/scratch.h"

namespace switchyard {

Transformer::Transformer(const ModelConfig& config, Device* device,
                         TransformerOptions options)
    : config_(config),
      options_(std::move(options)),
      vocab_(VocabRows(config.vocab_size, options_.rank, options_.world_size)),
      rope_tables_(device, options_.max_positions) {}

absl::StatusOr<std::unique_ptr<Transformer>> Transformer::Load(
    Device* device, const ModelConfig& config, const CacheSpec& cache,
    const WeightSource& source, TransformerOptions options) {
  SY_RETURN_IF_ERROR(ValidateTensorParallel(config, options.world_size));
  std::unique_ptr<Transformer> model(
      new Transformer(config, device, std::move(options)));
  WeightReader reader(device, config, &source,
                      {model->options_.rank, model->options_.world_size,
                       model->options_.activation, model->options_.progress});
  model->weights_bytes_ = reader.bytes_total();

  const WeightScope outside = reader.Model();
  SY_ASSIGN_OR_RETURN(model->embedding_, outside.Table(TensorRole::kEmbedding));
  for (int32_t layer = 0; layer < config.num_layers(); ++layer) {
    SY_RETURN_IF_ERROR(model->LoadLayer(layer, cache, reader));
  }
  SY_ASSIGN_OR_RETURN(model->final_norm_,
                      outside.Vector({TensorRole::kFinalNorm}));
  SY_ASSIGN_OR_RETURN(
      model->lm_head_,
      outside.Matrix({config.tie_word_embeddings ? TensorRole::kEmbedding
                                                 : TensorRole::kLmHead}));
  SY_RETURN_IF_ERROR(reader.CheckAllRead());
  return model;
}

absl::Status Transformer::LoadLayer(int32_t index, const CacheSpec& cache,
                                    WeightReader& reader) {
  const LayerConfig& config = config_.layers[index];
  const WeightScope scope = reader.Layer(index);
  SY_ASSIGN_OR_RETURN(Mlp mlp,
                      Mlp::Load(config.mlp, options_.activation, scope));
  Layer layer{{}, {}, {}, std::move(mlp)};
  SY_ASSIGN_OR_RETURN(layer.input_norm, scope.Vector({TensorRole::kInputNorm}));
  SY_ASSIGN_OR_RETURN(layer.post_attention_norm,
                      scope.Vector({TensorRole::kPostAttentionNorm}));
  const MixerContext context{options_.world_size, cache.block_size(),
                             options_.activation, options_.kv_dtype,
                             &rope_tables_};
  for (int32_t i = 0; i < static_cast<int32_t>(config.mixers.size()); ++i) {
    SY_ASSIGN_OR_RETURN(auto mixer,
                        LoadMixer(config.mixers[i], cache.At(index, i), context,
                                  reader.Mixer(index, i)));
    layer.mixers.push_back(std::move(mixer));
  }
  layers_.push_back(std::move(layer));
  return absl::OkStatus();
}

HiddenState Transformer::AllocateHidden(Workspace& workspace,
                                        int64_t num_tokens) const {
  return {
      AllocateMatrix(workspace, DType::kF32, num_tokens, config_.hidden_size),
      AllocateMatrix(workspace, DType::kF32, num_tokens, config_.hidden_size)};
}

// The rows of one part of a batch on their way through the layers. Their deltas
// are summed over the ranks as soon as they are there where another part is
// computed meanwhile; a part that is alone leaves its sum to the norm, which
// may be one operation with it.
class Transformer::Part {
 public:
  Part(const ForwardBatch* batch, bool alone, const MatrixView& residual,
       const MatrixView& delta, const MatrixView& x)
      : batch_(batch),
        alone_(alone),
        residual_(residual),
        delta_(delta),
        x_(x) {}

  const ForwardBatch& batch() const { return *batch_; }
  const MatrixView& residual() const { return residual_; }
  const MatrixView& delta() const { return delta_; }
  const MatrixView& x() const { return x_; }

  // REQUIRES: what writes this rank's share of the delta has been launched.
  absl::Status BeginSum(RankGroup& group) {
    if (alone_) return absl::OkStatus();
    SY_ASSIGN_OR_RETURN(sum_, group.BeginAllReduceSum(delta_));
    return absl::OkStatus();
  }
  absl::Status EndSum(RankGroup& group) {
    if (alone_) return group.AllReduceSum(delta_);
    return group.AwaitSum(sum_);
  }
  // AddRmsNorm of the delta's sum, if `has_delta`, from residual to x.
  absl::Status Norm(const OpContext& context, RankGroup& group,
                    AddRmsNormArgs args, bool has_delta) {
    args.residual = residual_;
    args.out = x_;
    if (has_delta) args.delta = delta_;
    if (alone_) return group.AllReduceAddRmsNorm(context, args);
    if (has_delta) SY_RETURN_IF_ERROR(group.AwaitSum(sum_));
    return AddRmsNorm(context, args);
  }

 private:
  const ForwardBatch* batch_;
  bool alone_;
  MatrixView residual_;
  MatrixView delta_;
  MatrixView x_;
  int64_t sum_ = 0;  // of what was begun last
};

std::vector<Transformer::Part> Transformer::MakeParts(
    absl::Span<const ForwardBatch> batches, const HiddenState& hidden,
    const MatrixView& x) const {
  std::vector<Part> parts;
  int64_t row = 0;
  for (const ForwardBatch& batch : batches) {
    SY_CHECK(batch.layers.size() == layers_.size());
    const auto rows = [&](const MatrixView& all) {
      return all.Rows(row, batch.num_tokens);
    };
    parts.emplace_back(&batch, batches.size() == 1, rows(hidden.residual),
                       rows(hidden.delta), rows(x));
    row += batch.num_tokens;
  }
  return parts;
}

absl::StatusOr<HiddenState> Transformer::Forward(
    const OpContext& step_context, RankGroup& group,
    absl::Span<const ForwardBatch> batches) const {
  OpContext context = step_context;
  // A part goes on from cache that one before it writes in this step.
  if (batches.size() > 1) context.early_start = false;
  int64_t num_tokens = 0;
  for (const ForwardBatch& batch : batches) num_tokens += batch.num_tokens;
  Workspace& workspace = *context.workspace;
  const HiddenState hidden = AllocateHidden(workspace, num_tokens);
  const int64_t mark = workspace.used();
  const MatrixView x = AllocateMatrix(workspace, options_.activation,
                                      num_tokens, config_.hidden_size);
  std::vector<Part> parts = MakeParts(batches, hidden, x);

  EmbeddingArgs embed;
  embed.table = embedding_.view;
  embed.vocab_begin = static_cast<int32_t>(vocab_.begin);
  for (const Part& part : parts) {
    embed.token_ids = part.batch().token_ids;
    embed.out = part.residual();
    SY_RETURN_IF_ERROR(Embedding(context, embed));
  }
  SY_RETURN_IF_ERROR(group.AllReduceSum(hidden.residual));

  AddRmsNormArgs norm;
  norm.epsilon = static_cast<float>(config_.norm_epsilon);
  for (int32_t i = 0; i < static_cast<int32_t>(layers_.size()); ++i) {
    const Layer& layer = layers_[i];
    for (Part& part : parts) {
      // From batch order to the order of the layer's segments, with what the
      // MLP before has left to be summed...
      const ForwardBatch& batch = part.batch();
      const Grouping& grouping = batch.groupings[batch.layers[i].grouping];
      norm.rows = grouping.rows;
      norm.delta_rows = grouping.rows;
      norm.weight = layer.input_norm.data();
      SY_RETURN_IF_ERROR(part.Norm(context, group, norm, i > 0));
      SY_RETURN_IF_ERROR(RunMixers(context, batch, i, part.x(), part.delta()));
      SY_RETURN_IF_ERROR(part.BeginSum(group));
    }
    for (Part& part : parts) {
      // ... and back.
      const ForwardBatch& batch = part.batch();
      norm.rows = nullptr;
      norm.delta_rows = batch.groupings[batch.layers[i].grouping].inverse;
      norm.weight = layer.post_attention_norm.data();
      SY_RETURN_IF_ERROR(part.Norm(context, group, norm, true));
      SY_RETURN_IF_ERROR(layer.mlp.Forward(context, part.x(), part.delta()));
      SY_RETURN_IF_ERROR(part.BeginSum(group));
    }
  }
  for (Part& part : parts) SY_RETURN_IF_ERROR(part.EndSum(group));
  workspace.Rewind(mark);
  return hidden;
}

absl::Status Transformer::RunMixers(const OpContext& context,
                                    const ForwardBatch& batch, int32_t layer,
                                    const MatrixView& x,
                                    const MatrixView& out) const {
  const LayerPlan& plan = batch.layers[layer];
  const Grouping& grouping = batch.groupings[plan.grouping];
  SY_CHECK(plan.runs.size() == grouping.segments.size());
  for (size_t i = 0; i < plan.runs.size(); ++i) {
    const MixerRun& run = plan.runs[i];
    const Segment& segment = grouping.segments[i];
    MixerInput input;
    input.batch = segment.batch;
    input.x = x.Rows(segment.first_row, segment.batch.num_tokens);
    input.arena = batch.arena;
    input.cache_ids = run.cache_ids;
    input.table_begins = run.table_begins;
    input.host_table_begins = run.host_table_begins;
    SY_RETURN_IF_ERROR(layers_[layer].mixers[run.mixer]->Forward(
        context, input, out.Rows(segment.first_row, segment.batch.num_tokens)));
  }
  return absl::OkStatus();
}

Transformer::LogitsScratch Transformer::AllocateLogits(Workspace& workspace,
                                                       int64_t num_rows) const {
  LogitsScratch scratch;
  scratch.normed = AllocateMatrix(workspace, options_.activation, num_rows,
                                  config_.hidden_size);
  if (options_.world_size > 1) {
    scratch.shard =
        AllocateMatrix(workspace, DType::kF32, num_rows, vocab_.num_rows_local);
    scratch.shards =
        AllocateMatrix(workspace, DType::kF32, options_.world_size * num_rows,
                       vocab_.num_rows_local);
  }
  return scratch;
}

absl::Status Transformer::Logits(const OpContext& context, RankGroup& group,
                                 const HiddenState& hidden, const int32_t* rows,
                                 const MatrixView& logits) const {
  const int64_t mark = context.workspace->used();
  const LogitsScratch scratch = AllocateLogits(*context.workspace, logits.rows);
  AddRmsNormArgs norm;
  norm.residual = hidden.residual;
  norm.delta = hidden.delta;
  norm.rows = rows;
  norm.delta_rows = rows;
  norm.weight = final_norm_.data();
  norm.epsilon = static_cast<float>(config_.norm_epsilon);
  norm.out = scratch.normed;
  SY_RETURN_IF_ERROR(AddRmsNorm(context, norm));

  if (options_.world_size == 1) {
    SY_RETURN_IF_ERROR(
        Matmul(context, {scratch.normed, &lm_head_, nullptr, logits}));
  } else {
    SY_RETURN_IF_ERROR(
        Matmul(context, {scratch.normed, &lm_head_, nullptr, scratch.shard}));
    float* const shards = scratch.shards.Row<float>(0);
    SY_RETURN_IF_ERROR(group.AllGather(scratch.shard, shards));
    SY_RETURN_IF_ERROR(JoinShards(
        context, {shards, options_.world_size, vocab_.num_rows_local, logits}));
  }
  context.workspace->Rewind(mark);
  return absl::OkStatus();
}

int64_t Transformer::WorkspaceBytes(int64_t num_tokens,
                                    int64_t num_logits_rows) const {
  Workspace counter;
  AllocateHidden(counter, num_tokens);
  const int64_t hidden = counter.used();
  AllocateMatrix(counter, options_.activation, num_tokens, config_.hidden_size);
  const int64_t layers = counter.used();
  int64_t scratch = 0;
  for (const Layer& layer : layers_) {
    scratch = std::max(scratch, layer.mlp.ScratchBytes(num_tokens));
    for (const auto& mixer : layer.mixers) {
      scratch = std::max(scratch, mixer->ScratchBytes(num_tokens));
    }
  }
  counter.Rewind(hidden);
  AllocateLogits(counter, num_logits_rows);
  return std::max(layers + scratch, counter.used());
}

}  // namespace switchyard
