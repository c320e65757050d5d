#include "model/mixers/mamba.h"

#include <utility>
#include <vector>

#include "kernels/causal_conv.h"
#include "kernels/selective_scan.h"
#include "kernels/status.h"
#include "model/scratch.h"

namespace switchyard {
namespace {

class MambaMixer final : public Mixer {
 public:
  absl::Status Load(const MambaConfig& config, const MixerCacheSpec& cache,
                    const MixerContext& context, const WeightScope& weights) {
    context_ = context;
    config_ = config;
    d_inner_ = config.d_inner / context.world_size;
    d_xb_ = config.d_xb / context.world_size;
    x_cols_ = config.repeat_kv_before_conv ? d_inner_ : d_xb_;
    state_offset_ = cache.state_offset;

    const std::vector<int64_t> rows = InputRows();
    SY_ASSIGN_OR_RETURN(in_proj_, weights.Matrix({{TensorRole::kInProj, rows},
                                                  {TensorRole::kDtInProj}}));
    SY_ASSIGN_OR_RETURN(dt_proj_, weights.Matrix({{TensorRole::kDtProj}}));
    SY_ASSIGN_OR_RETURN(out_proj_, weights.Matrix({{TensorRole::kOutProj}}));
    if (config.linear_biases) {
      SY_ASSIGN_OR_RETURN(in_bias_, weights.Vector({{TensorRole::kInBias, rows},
                                                    {TensorRole::kDtInBias}}));
      SY_ASSIGN_OR_RETURN(out_bias_, weights.OutputBias(TensorRole::kOutBias));
    }
    if (config.dt_proj_bias) {
      // The public implementation adds it twice, in the product and again in
      // the scan, and checkpoints are trained that way.
      SY_ASSIGN_OR_RETURN(
          dt_bias_,
          weights.Vector({WeightPart::Scaled(TensorRole::kDtProjBias, 2)}));
    }
    SY_ASSIGN_OR_RETURN(conv_, weights.Vector({{TensorRole::kConv}}));
    if (config.conv_bias) {
      SY_ASSIGN_OR_RETURN(conv_bias_,
                          weights.Vector({{TensorRole::kConvBias}}));
    }
    SY_ASSIGN_OR_RETURN(a_log_, weights.Vector({{TensorRole::kALog}}));
    SY_ASSIGN_OR_RETURN(d_, weights.Vector({{TensorRole::kSkip}}));
    return absl::OkStatus();
  }

  absl::Status Forward(const OpContext& context, const MixerInput& input,
                       const MatrixView& out) const override {
    const int64_t mark = context.workspace->used();
    const Scratch scratch = Allocate(*context.workspace, input.x.rows);
    SY_RETURN_IF_ERROR(Matmul(
        context, {input.x, &in_proj_, in_bias_.data(), scratch.projected}));
    const MatrixView x = scratch.projected.Columns(d_inner_, x_cols_);
    const int64_t b_begin = d_inner_ + x_cols_;
    const MatrixView dt_in =
        scratch.projected.Columns(b_begin + d_xb_ + d_inner_, config_.dt_rank);
    SY_RETURN_IF_ERROR(
        Matmul(context, {dt_in, &dt_proj_, dt_bias_.data(), scratch.dt}));

    CausalConvArgs conv;
    conv.batch = input.batch;
    conv.state = {input.arena, input.cache_ids, 0};
    conv.x = x;
    conv.weight = conv_.data();
    conv.bias = conv_bias_.data();
    conv.kernel_size = config_.d_conv;
    conv.out = x;
    SY_RETURN_IF_ERROR(CausalConv(context, conv));

    SelectiveScanArgs scan;
    scan.batch = input.batch;
    scan.state = {input.arena, input.cache_ids, state_offset_};
    scan.state_size = config_.state_size;
    scan.num_heads = d_inner_ / config_.state_size;
    scan.num_b_heads = d_xb_ / config_.state_size;
    scan.num_x_heads = x_cols_ / config_.state_size;
    scan.x = x;
    scan.dt = scratch.dt;
    scan.b = scratch.projected.Columns(b_begin, d_xb_);
    scan.c = scratch.projected.Columns(b_begin + d_xb_, d_inner_);
    scan.z = scratch.projected.Columns(0, d_inner_);
    scan.a_log = a_log_.data();
    scan.d = d_.data();
    scan.out = scratch.scanned;
    SY_RETURN_IF_ERROR(SelectiveScan(context, scan));

    SY_RETURN_IF_ERROR(
        Matmul(context, {scratch.scanned, &out_proj_, out_bias_.data(), out}));
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
    MatrixView projected;  // [num_tokens, z | x | B | C | dt_in]
    MatrixView dt;         // [num_tokens, d_inner] fp32
    MatrixView scanned;    // [num_tokens, d_inner]
  };
  Scratch Allocate(Workspace& workspace, int64_t num_tokens) const {
    return {
        AllocateMatrix(workspace, context_.activation, num_tokens,
                       in_proj_.out_features()),
        AllocateMatrix(workspace, DType::kF32, num_tokens, d_inner_),
        AllocateMatrix(workspace, context_.activation, num_tokens, d_inner_)};
  }

  // Rows of this rank's in_proj [z | x | B | C] in the order of the product's
  // columns: x repeated to d_inner where the convolution wants it so.
  std::vector<int64_t> InputRows() const {
    std::vector<int64_t> rows;
    const auto append = [&rows](int64_t begin, int64_t num) {
      for (int64_t i = 0; i < num; ++i) rows.push_back(begin + i);
    };
    append(0, d_inner_);
    const int64_t repeats = x_cols_ / d_xb_;
    for (int64_t head = 0; head < x_cols_ / config_.state_size; ++head) {
      append(d_inner_ + head / repeats * config_.state_size,
             config_.state_size);
    }
    append(d_inner_ + d_xb_, d_xb_ + d_inner_);
    return rows;
  }

  MixerContext context_;
  MambaConfig config_;
  int64_t d_inner_ = 0;
  int64_t d_xb_ = 0;
  int64_t x_cols_ = 0;  // width of the convolution: d_inner or d_xb
  int64_t state_offset_ = 0;
  WeightMatrix in_proj_;  // [z | x | B | C | dt_in, hidden]
  DeviceVector in_bias_;
  WeightMatrix dt_proj_;  // [d_inner, dt_rank]
  DeviceVector dt_bias_;
  DeviceVector conv_;  // [x_cols, kernel]
  DeviceVector conv_bias_;
  DeviceVector a_log_;     // [d_inner, state_size]
  DeviceVector d_;         // [d_inner]
  WeightMatrix out_proj_;  // [hidden, d_inner]
  DeviceVector out_bias_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Mixer>> LoadMamba(const MambaConfig& config,
                                                 const MixerCacheSpec& cache,
                                                 const MixerContext& context,
                                                 const WeightScope& weights) {
  auto mixer = std::make_unique<MambaMixer>();
  SY_RETURN_IF_ERROR(mixer->Load(config, cache, context, weights));
  return mixer;
}

}  // namespace switchyard
