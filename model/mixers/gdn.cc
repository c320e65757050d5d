#include "model/mixers/gdn.h"

#include <algorithm>
#include <utility>

#include "kernels/gated_delta.h"
#include "kernels/status.h"
#include "model/scratch.h"

namespace switchyard {
namespace {

class GdnMixer final : public Mixer {
 public:
  absl::Status Load(const GdnConfig& config, const MixerCacheSpec& cache,
                    const MixerContext& context, const WeightScope& weights) {
    context_ = context;
    config_ = config;
    // Replicated where there are fewer than ranks.
    num_key_heads_ = std::max(1, config.num_key_heads / context.world_size);
    num_value_heads_ = config.num_value_heads / context.world_size;
    key_cols_ = num_key_heads_ * config.key_head_dim;
    value_cols_ = num_value_heads_ * config.value_head_dim;
    state_offset_ = cache.state_offset;

    SY_ASSIGN_OR_RETURN(in_proj_, weights.Matrix({{TensorRole::kQkvzProj},
                                                  {TensorRole::kBaProj}}));
    SY_ASSIGN_OR_RETURN(conv_, weights.Vector({{TensorRole::kConv}}));
    SY_ASSIGN_OR_RETURN(a_log_, weights.Vector({{TensorRole::kALog}}));
    SY_ASSIGN_OR_RETURN(dt_bias_, weights.Vector({{TensorRole::kDtBias}}));
    SY_ASSIGN_OR_RETURN(norm_, weights.Vector({{TensorRole::kGateNorm}}));
    SY_ASSIGN_OR_RETURN(out_proj_, weights.Matrix({{TensorRole::kOutProj}}));
    return absl::OkStatus();
  }

  absl::Status Forward(const OpContext& context, const MixerInput& input,
                       const MatrixView& out) const override {
    const int64_t mark = context.workspace->used();
    const Scratch scratch = Allocate(*context.workspace, input.x.rows);
    SY_RETURN_IF_ERROR(
        Matmul(context, {input.x, &in_proj_, nullptr, scratch.projected}));
    const MatrixView qkv =
        scratch.projected.Columns(0, 2 * key_cols_ + value_cols_);
    const MatrixView z = scratch.projected.Columns(qkv.cols, value_cols_);
    const MatrixView beta =
        scratch.projected.Columns(qkv.cols + value_cols_, num_value_heads_);
    const MatrixView alpha = scratch.projected.Columns(
        qkv.cols + value_cols_ + num_value_heads_, num_value_heads_);

    GatedDeltaArgs args;
    CausalConvArgs& conv = args.conv;
    conv.batch = input.batch;
    conv.state = {input.arena, input.cache_ids, 0};
    conv.x = qkv;
    conv.weight = conv_.data();
    conv.kernel_size = config_.conv_kernel_size;
    conv.out = qkv;

    DeltaRuleArgs& rule = args.rule;
    rule.batch = input.batch;
    rule.state = {input.arena, input.cache_ids, state_offset_};
    rule.decay = DecayKind::kPerHead;
    rule.num_key_heads = num_key_heads_;
    rule.num_value_heads = num_value_heads_;
    rule.key_dim = config_.key_head_dim;
    rule.value_dim = config_.value_head_dim;
    rule.q = qkv.Columns(0, key_cols_);
    rule.k = qkv.Columns(key_cols_, key_cols_);
    rule.v = qkv.Columns(2 * key_cols_, value_cols_);
    rule.beta = beta;
    rule.alpha = alpha;
    rule.a_log = a_log_.data();
    rule.dt_bias = dt_bias_.data();
    rule.out = scratch.recalled;

    GatedRmsNormArgs& norm = args.norm;
    norm.x = scratch.recalled;
    norm.gate = z;
    norm.weight = norm_.data();
    norm.epsilon = static_cast<float>(config_.norm_epsilon);
    norm.activation = GateActivation::kSilu;
    norm.head_dim = config_.value_head_dim;
    norm.out = scratch.normed;
    SY_RETURN_IF_ERROR(GatedDelta(context, args));

    SY_RETURN_IF_ERROR(
        Matmul(context, {scratch.normed, &out_proj_, nullptr, out}));
    context.workspace->Rewind(mark);
    return absl::OkStatus();
  }

  int64_t ScratchBytes(int64_t num_tokens) const override {
    Workspace counter;
    Allocate(counter, num_tokens);
    return counter.used();
  }

 private:
  struct Scratch {
    MatrixView projected;  // [num_tokens, q | k | v | z | beta | alpha]
    MatrixView recalled;   // [num_tokens, value heads * value_head_dim] fp32
    MatrixView normed;     // the same shape, activation type
  };
  Scratch Allocate(Workspace& workspace, int64_t num_tokens) const {
    return {AllocatePadded(workspace, context_.activation, num_tokens,
                           in_proj_.out_features()),
            AllocateMatrix(workspace, DType::kF32, num_tokens, value_cols_),
            AllocateMatrix(workspace, context_.activation, num_tokens,
                           value_cols_)};
  }

  MixerContext context_;
  GdnConfig config_;
  int32_t num_key_heads_ = 0;
  int32_t num_value_heads_ = 0;
  int64_t key_cols_ = 0;
  int64_t value_cols_ = 0;
  int64_t state_offset_ = 0;
  WeightMatrix in_proj_;   // [q | k | v | z | beta | alpha, hidden]
  DeviceVector conv_;      // [q | k | v, kernel]
  DeviceVector a_log_;     // [value heads]
  DeviceVector dt_bias_;   // [value heads]
  DeviceVector norm_;      // [value_head_dim]
  WeightMatrix out_proj_;  // [hidden, value heads * value_head_dim]
};

}  // namespace

absl::StatusOr<std::unique_ptr<Mixer>> LoadGdn(const GdnConfig& config,
                                               const MixerCacheSpec& cache,
                                               const MixerContext& context,
                                               const WeightScope& weights) {
  auto mixer = std::make_unique<GdnMixer>();
  SY_RETURN_IF_ERROR(mixer->Load(config, cache, context, weights));
  return mixer;
}

}  // namespace switchyard
