#include "model/mixers/kda.h"

#include <utility>

#include "kernels/gated_delta.h"
#include "kernels/status.h"
#include "model/scratch.h"

namespace switchyard {
namespace {

class KdaMixer final : public Mixer {
 public:
  absl::Status Load(const KdaConfig& config, const MixerCacheSpec& cache,
                    const MixerContext& context, const WeightScope& weights) {
    context_ = context;
    config_ = config;
    num_heads_ = config.num_heads / context.world_size;
    head_cols_ = num_heads_ * config.head_dim;
    state_offset_ = cache.state_offset;

    SY_ASSIGN_OR_RETURN(in_proj_, weights.Matrix({{TensorRole::kQProj},
                                                  {TensorRole::kKProj},
                                                  {TensorRole::kVProj},
                                                  {TensorRole::kFAProj},
                                                  {TensorRole::kGAProj},
                                                  {TensorRole::kBetaProj}}));
    SY_ASSIGN_OR_RETURN(f_b_, weights.Matrix({{TensorRole::kFBProj}}));
    SY_ASSIGN_OR_RETURN(g_b_, weights.Matrix({{TensorRole::kGBProj}}));
    SY_ASSIGN_OR_RETURN(conv_, weights.Vector({{TensorRole::kQConv},
                                               {TensorRole::kKConv},
                                               {TensorRole::kVConv}}));
    SY_ASSIGN_OR_RETURN(a_log_, weights.Vector({{TensorRole::kALog}}));
    SY_ASSIGN_OR_RETURN(dt_bias_, weights.Vector({{TensorRole::kDtBias}}));
    SY_ASSIGN_OR_RETURN(norm_, weights.Vector({{TensorRole::kGateNorm}}));
    SY_ASSIGN_OR_RETURN(o_, weights.Matrix({{TensorRole::kOutProj}}));
    return absl::OkStatus();
  }

  absl::Status Forward(const OpContext& context, const MixerInput& input,
                       const MatrixView& out) const override {
    const int64_t mark = context.workspace->used();
    const Scratch scratch = Allocate(*context.workspace, input.x.rows);
    SY_RETURN_IF_ERROR(
        Matmul(context, {input.x, &in_proj_, nullptr, scratch.projected}));
    const MatrixView qkv = scratch.projected.Columns(0, 3 * head_cols_);
    const MatrixView f_a =
        scratch.projected.Columns(qkv.cols, config_.head_dim);
    const MatrixView g_a = scratch.projected.Columns(
        qkv.cols + config_.head_dim, config_.head_dim);
    const MatrixView beta =
        scratch.projected.Columns(qkv.cols + 2 * config_.head_dim, num_heads_);

    GatedDeltaArgs args;
    args.decay = {f_a, &f_b_, nullptr, scratch.decay};
    args.gate = {g_a, &g_b_, nullptr, scratch.gate};

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
    rule.decay = DecayKind::kPerChannel;
    rule.num_key_heads = num_heads_;
    rule.num_value_heads = num_heads_;
    rule.key_dim = config_.head_dim;
    rule.value_dim = config_.head_dim;
    rule.q = qkv.Columns(0, head_cols_);
    rule.k = qkv.Columns(head_cols_, head_cols_);
    rule.v = qkv.Columns(2 * head_cols_, head_cols_);
    rule.beta = beta;
    rule.alpha = scratch.decay;
    rule.a_log = a_log_.data();
    rule.dt_bias = dt_bias_.data();
    rule.out = scratch.recalled;

    GatedRmsNormArgs& norm = args.norm;
    norm.x = scratch.recalled;
    norm.gate = scratch.gate;
    norm.weight = norm_.data();
    norm.epsilon = static_cast<float>(config_.norm_epsilon);
    norm.activation = config_.gate_activation == ActivationFunction::kSigmoid
                          ? GateActivation::kSigmoid
                          : GateActivation::kSilu;
    norm.head_dim = config_.head_dim;
    norm.out = scratch.normed;
    SY_RETURN_IF_ERROR(GatedDelta(context, args));

    SY_RETURN_IF_ERROR(Matmul(context, {scratch.normed, &o_, nullptr, out}));
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
    MatrixView projected;  // [num_tokens, q | k | v | f_a | g_a | beta]
    MatrixView decay;      // [num_tokens, heads * head_dim] fp32
    MatrixView gate;       // the same shape, activation type
    MatrixView recalled;   // the same shape, fp32
    MatrixView normed;     // the same shape, activation type
  };
  Scratch Allocate(Workspace& workspace, int64_t num_tokens) const {
    const auto heads = [&](DType dtype) {
      return AllocateMatrix(workspace, dtype, num_tokens, head_cols_);
    };
    Scratch scratch;
    scratch.projected = AllocatePadded(workspace, context_.activation,
                                       num_tokens, in_proj_.out_features());
    scratch.decay = heads(DType::kF32);
    scratch.gate = heads(context_.activation);
    scratch.recalled = heads(DType::kF32);
    scratch.normed = heads(context_.activation);
    return scratch;
  }

  MixerContext context_;
  KdaConfig config_;
  int32_t num_heads_ = 0;
  int64_t head_cols_ = 0;  // num_heads * head_dim
  int64_t state_offset_ = 0;
  WeightMatrix in_proj_;  // [q | k | v | f_a | g_a | beta, hidden]
  WeightMatrix f_b_;      // [heads * head_dim, head_dim]
  WeightMatrix g_b_;      // [heads * head_dim, head_dim]
  DeviceVector conv_;     // [q | k | v, kernel]
  DeviceVector a_log_;    // [heads]
  DeviceVector dt_bias_;  // [heads * head_dim]
  DeviceVector norm_;     // [head_dim]
  WeightMatrix o_;        // [hidden, heads * head_dim]
};

}  // namespace

absl::StatusOr<std::unique_ptr<Mixer>> LoadKda(const KdaConfig& config,
                                               const MixerCacheSpec& cache,
                                               const MixerContext& context,
                                               const WeightScope& weights) {
  auto mixer = std::make_unique<KdaMixer>();
  SY_RETURN_IF_ERROR(mixer->Load(config, cache, context, weights));
  return mixer;
}

}  // namespace switchyard
