#include "model/mixers/attention.h"

#include <cmath>
#include <utility>

#include "kernels/paged_attention.h"
#include "kernels/status.h"
#include "model/scratch.h"

namespace switchyard {
namespace {

class AttentionMixer final : public Mixer {
 public:
  absl::Status Load(const AttentionConfig& config, const MixerCacheSpec& cache,
                    const MixerContext& context, const WeightScope& weights) {
    context_ = context;
    num_heads_ = config.num_heads / context.world_size;
    num_kv_heads_ = cache.num_kv_heads_local;
    head_size_ = config.head_size;
    window_ = cache.window;
    ring_blocks_ = cache.ring_blocks;
    SY_ASSIGN_OR_RETURN(
        rope_, context.rope_tables->Get({config.rope_theta, head_size_,
                                         config.bf16_rope_frequencies}));

    SY_ASSIGN_OR_RETURN(qkv_, weights.Matrix({{TensorRole::kQProj},
                                              {TensorRole::kKProj},
                                              {TensorRole::kVProj}}));
    if (config.q_bias || config.k_bias || config.v_bias) {
      const auto bias = [&](bool present, TensorRole role, int64_t heads) {
        return present ? WeightPart(role)
                       : WeightPart::Zeros(heads * head_size_);
      };
      SY_ASSIGN_OR_RETURN(
          qkv_bias_,
          weights.Vector(
              {bias(config.q_bias, TensorRole::kQBias, num_heads_),
               bias(config.k_bias, TensorRole::kKBias, num_kv_heads_),
               bias(config.v_bias, TensorRole::kVBias, num_kv_heads_)}));
    }
    SY_ASSIGN_OR_RETURN(o_, weights.Matrix({{TensorRole::kOutProj}}));
    if (config.o_bias) {
      SY_ASSIGN_OR_RETURN(o_bias_, weights.OutputBias(TensorRole::kOutBias));
    }
    return absl::OkStatus();
  }

  absl::Status Forward(const OpContext& context, const MixerInput& input,
                       const MatrixView& out) const override {
    const int64_t mark = context.workspace->used();
    const Scratch scratch = Allocate(*context.workspace, input.x.rows);
    SY_RETURN_IF_ERROR(
        Matmul(context, {input.x, &qkv_, qkv_bias_.data(), scratch.projected}));

    PagedAttentionArgs args;
    args.batch = input.batch;
    args.blocks.arena = input.arena;
    args.blocks.ids = input.cache_ids;
    args.blocks.begins = input.table_begins;
    args.blocks.host_begins = input.host_table_begins;
    args.blocks.block_size = context_.block_size;
    args.blocks.ring_blocks = ring_blocks_;
    args.kv_dtype = context_.kv_dtype;
    args.num_heads = num_heads_;
    args.num_kv_heads = num_kv_heads_;
    args.head_size = head_size_;
    args.window = window_;
    args.scale = 1.0f / std::sqrt(static_cast<float>(head_size_));
    const int64_t q_cols = num_heads_ * head_size_;
    const int64_t kv_cols = num_kv_heads_ * head_size_;
    args.q = scratch.projected.Columns(0, q_cols);
    args.k = scratch.projected.Columns(q_cols, kv_cols);
    args.v = scratch.projected.Columns(q_cols + kv_cols, kv_cols);
    args.rope_table = rope_.data;
    args.rope_positions = rope_.num_positions;
    args.out = scratch.attended;
    SY_RETURN_IF_ERROR(PagedAttention(context, args));

    SY_RETURN_IF_ERROR(
        Matmul(context, {scratch.attended, &o_, o_bias_.data(), out}));
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
    MatrixView projected;  // [num_tokens, q | k | v]
    MatrixView attended;   // [num_tokens, num_heads * head_size]
  };
  Scratch Allocate(Workspace& workspace, int64_t num_tokens) const {
    return {AllocateMatrix(workspace, context_.activation, num_tokens,
                           qkv_.out_features()),
            AllocateMatrix(workspace, context_.activation, num_tokens,
                           num_heads_ * head_size_)};
  }

  MixerContext context_;
  int32_t num_heads_ = 0;
  int32_t num_kv_heads_ = 0;
  int32_t head_size_ = 0;
  int32_t window_ = 0;
  int32_t ring_blocks_ = 0;
  RopeTable rope_;
  WeightMatrix qkv_;  // [(heads + 2 kv heads) * head_size, hidden]
  DeviceVector qkv_bias_;
  WeightMatrix o_;  // [hidden, heads * head_size]
  DeviceVector o_bias_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Mixer>> LoadAttention(
    const AttentionConfig& config, const MixerCacheSpec& cache,
    const MixerContext& context, const WeightScope& weights) {
  auto mixer = std::make_unique<AttentionMixer>();
  SY_RETURN_IF_ERROR(mixer->Load(config, cache, context, weights));
  return mixer;
}

}  // namespace switchyard
