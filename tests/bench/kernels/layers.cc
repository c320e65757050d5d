// One decoder layer of Apriel2-15B at decode, op after op as the model runs
// them: what the kernels cost together, launches and all.
#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "kernels/backends.h"
#include "kernels/matmul_cuda.h"
#include "tests/bench/kernels/harness.h"

namespace switchyard::bench {
namespace {

constexpr int kWeightSets = 3;  // layers with weights of their own
// Layers with a cache of their own: more, as three sets of keys and values of
// one sequence would stay in the L2.
constexpr int kSets = 4 * kWeightSets;
constexpr int64_t kHidden = 5120, kMlp = 14336;

// What every layer has: the residual stream, two norms and the MLP.
class Layer {
 public:
  Layer(Harness* h, int32_t batch) : h_(h), batch_(batch) {
    residual_ = h->Large(batch, kHidden, DType::kF32);
    delta_ = h->Large(batch, kHidden, DType::kF32);
    normed_ = h->Large(batch, kHidden, DType::kBF16);
    gate_up_ = h->Large(batch, 2 * kMlp, DType::kBF16);
    act_ = h->Large(batch, kMlp, DType::kBF16);
    norm_weight_ = h->Large(1, kHidden, DType::kF32);
    for (int s = 0; s < kWeightSets; ++s) {
      up_weights_.push_back(h->LargeWeight(2 * kMlp, kHidden));
      down_weights_.push_back(h->LargeWeight(kHidden, kMlp));
    }
    for (int32_t s = 0; s <= batch; ++s) offsets_host_.push_back(s);
    offsets_ = h->Upload(offsets_host_);
  }
  virtual ~Layer() = default;

  virtual double Bytes() const = 0;  // of one decode step
  void Run(int set) {
    Norm();
    Mix(set);
    Norm();
    Ok(internal::GatedMatmulCuda(
        h_->context(), {normed_.view, &up_weights_[set % kWeightSets], nullptr,
                        ActivationKind::kSilu, gate_up_.view, act_.view}));
    Multiply(act_.view, down_weights_[set % kWeightSets], delta_.view);
  }

 protected:
  virtual void Mix(int set) = 0;  // normed_ to delta_

  void Norm() {
    AddRmsNormArgs args;
    args.residual = residual_.view;
    args.delta = delta_.view;
    args.weight = static_cast<const float*>(norm_weight_.view.data);
    args.epsilon = 1e-5f;
    args.out = normed_.view;
    Ok(internal::AddRmsNormCuda(h_->context(), args));
  }
  void Multiply(const MatrixView& x, const WeightMatrix& weight,
                const MatrixView& out) {
    MatmulArgs args;
    args.x = x;
    args.weight = &weight;
    args.out = out;
    Ok(internal::MatmulCuda(h_->context(), args));
  }
  VarlenBatch batch() const {
    VarlenBatch batch;
    batch.num_seqs = batch.num_decodes = batch.num_tokens = batch_;
    batch.max_new_tokens = 1;
    batch.token_offsets = reinterpret_cast<const int32_t*>(offsets_.get());
    return batch;
  }
  static double MlpBytes() { return 2.0 * 3 * kMlp * kHidden; }

  Harness* const h_;
  const int32_t batch_;
  Tensor residual_, delta_, normed_, gate_up_, act_, norm_weight_;
  std::vector<WeightMatrix> up_weights_, down_weights_;
  std::vector<int32_t> offsets_host_;
  DeviceBuffer offsets_;
};

class AttentionLayer final : public Layer {
 public:
  AttentionLayer(Harness* h, int32_t batch, int32_t context)
      : Layer(h, batch), context_(context) {
    constexpr int64_t kBlockElements = 2 * 8 * 16 * 128;
    const int32_t stride = context / 16 + 1;
    const int64_t num_blocks = int64_t{kSets} * batch * stride;
    arena_ = h->Large(num_blocks, kBlockElements, DType::kBF16);
    std::vector<uint32_t> ids;
    for (int64_t i = 0; i < num_blocks; ++i)
      ids.push_back(
          static_cast<uint32_t>(i * kBlockElements * 2 / kCacheUnitBytes));
    std::shuffle(ids.begin(), ids.end(), h->random());
    ids_ = h->Upload(ids);
    std::vector<int32_t> begins;  // of every set, one after another
    for (int32_t s = 0; s <= kSets * batch; ++s) begins.push_back(s * stride);
    begins_ = h->Upload(begins);
    contexts_ = h->Upload(std::vector<int32_t>(batch, context));
    table_ = h->Large(context + 1, 128, DType::kF32);
    qkv_ = h->Large(batch, 6144, DType::kBF16);
    mixed_ = h->Large(batch, 4096, DType::kBF16);
    for (int s = 0; s < kWeightSets; ++s) {
      in_weights_.push_back(h->LargeWeight(6144, kHidden));
      out_weights_.push_back(h->LargeWeight(kHidden, 4096));
    }
    args_.blocks.arena = arena_.buffer.get();
    args_.blocks.ids = reinterpret_cast<uint32_t*>(ids_.get());
    args_.blocks.block_size = 16;
    args_.kv_dtype = DType::kBF16;
    args_.num_heads = 32;
    args_.num_kv_heads = 8;
    args_.head_size = 128;
    args_.scale = 0.0883883f;
    args_.q = qkv_.view.Columns(0, 4096);
    args_.k = qkv_.view.Columns(4096, 1024);
    args_.v = qkv_.view.Columns(5120, 1024);
    args_.rope_table = static_cast<const float*>(table_.view.data);
    args_.rope_positions = context + 1;
    args_.out = mixed_.view;
    args_.batch = Layer::batch();
    args_.batch.max_total_tokens = context + 1;
    args_.batch.context_lens = reinterpret_cast<int32_t*>(contexts_.get());
    args_.batch.positions = args_.batch.context_lens;
  }
  double Bytes() const override {
    return MlpBytes() + 2.0 * kHidden * (6144 + 4096) +
           4096.0 * batch_ * context_;
  }

 private:
  void Mix(int set) override {
    Multiply(normed_.view, in_weights_[set % kWeightSets], qkv_.view);
    args_.blocks.begins =
        reinterpret_cast<int32_t*>(begins_.get()) + set * batch_;
    Ok(internal::PagedAttentionCuda(h_->context(), args_));
    Multiply(mixed_.view, out_weights_[set % kWeightSets], delta_.view);
  }

  const int32_t context_;
  Tensor arena_, table_, qkv_, mixed_;
  DeviceBuffer ids_, begins_, contexts_;
  std::vector<WeightMatrix> in_weights_, out_weights_;
  PagedAttentionArgs args_;
};

// Gated delta net, or the same with a decay for every channel (kda).
class DeltaLayer final : public Layer {
 public:
  // parts: the ops of GatedDelta one by one, as gdn and batches that hold
  // prompts run them.
  DeltaLayer(Harness* h, int32_t batch, bool kda, bool parts)
      : Layer(h, batch),
        kda_(kda),
        parts_(parts),
        conv_cols_(kda ? 3 * 4096 : 6144),
        in_cols_(kda ? 3 * 4096 + 2 * 128 + 32 : 6144 + 4096 + 2 * 32),
        slot_floats_(3 * conv_cols_ + 32 * 128 * 128) {
    arena_ = h->Large(int64_t{kSets} * batch, slot_floats_, DType::kF32, 0.1f);
    std::vector<uint32_t> ids;
    for (int64_t i = 0; i < int64_t{kSets} * batch; ++i)
      ids.push_back(
          static_cast<uint32_t>(i * slot_floats_ * 4 / kCacheUnitBytes));
    ids_ = h->Upload(ids);
    projected_ = h->Large(batch, in_cols_, DType::kBF16);
    decay_ = h->Large(batch, 4096, DType::kF32);
    gate_ = h->Large(batch, 4096, DType::kBF16);
    mixed_ = h->Large(batch, 4096, DType::kF32);
    normed_mix_ = h->Large(batch, 4096, DType::kBF16);
    small_ = h->Large(12288, 4, DType::kF32);
    for (int s = 0; s < kWeightSets; ++s) {
      in_weights_.push_back(h->LargeWeight(in_cols_, kHidden));
      if (kda) {
        decay_weights_.push_back(h->LargeWeight(4096, 128));
        gate_weights_.push_back(h->LargeWeight(4096, 128));
      }
      out_weights_.push_back(h->LargeWeight(kHidden, 4096));
    }
  }
  double Bytes() const override {
    return MlpBytes() + 2.0 * kHidden * (in_cols_ + 4096) +
           (kda_ ? 2.0 * 2 * 4096 * 128 : 0) + 8.0 * batch_ * slot_floats_;
  }

 private:
  void Mix(int set) override {
    Multiply(normed_.view, in_weights_[set % kWeightSets], projected_.view);
    const int64_t rest = conv_cols_;  // first column after q, k, v
    const float* small = static_cast<const float*>(small_.view.data);
    GatedDeltaArgs args;
    if (kda_) {
      args.decay.x = projected_.view.Columns(rest, 128);
      args.decay.weight = &decay_weights_[set % kWeightSets];
      args.decay.out = decay_.view;
      args.gate.x = projected_.view.Columns(rest + 128, 128);
      args.gate.weight = &gate_weights_[set % kWeightSets];
      args.gate.out = gate_.view;
    }
    CausalConvArgs& conv = args.conv;
    conv.batch = batch();
    conv.state = {
        arena_.buffer.get(),
        reinterpret_cast<uint32_t*>(ids_.get()) + int64_t{set} * batch_, 0};
    conv.x = conv.out = projected_.view.Columns(0, conv_cols_);
    conv.weight = small;
    conv.kernel_size = 4;
    const int64_t key_cols = kda_ ? 4096 : 1024;
    DeltaRuleArgs& rule = args.rule;
    rule.batch = batch();
    rule.state = conv.state;
    rule.state.offset = 3 * conv_cols_ * 4;
    rule.decay = kda_ ? DecayKind::kPerChannel : DecayKind::kPerHead;
    rule.num_key_heads = static_cast<int32_t>(key_cols / 128);
    rule.num_value_heads = 32;
    rule.key_dim = rule.value_dim = 128;
    rule.q = projected_.view.Columns(0, key_cols);
    rule.k = projected_.view.Columns(key_cols, key_cols);
    rule.v = projected_.view.Columns(2 * key_cols, 4096);
    rule.beta = projected_.view.Columns(kda_ ? rest + 256 : rest + 4096, 32);
    rule.alpha =
        kda_ ? decay_.view : projected_.view.Columns(rest + 4096 + 32, 32);
    rule.a_log = small;
    rule.dt_bias = small + 64;
    rule.out = mixed_.view;
    GatedRmsNormArgs& norm = args.norm;
    norm.x = mixed_.view;
    norm.gate = kda_ ? gate_.view : projected_.view.Columns(rest, 4096);
    norm.weight = small;
    norm.epsilon = 1e-5f;
    norm.head_dim = 128;
    norm.out = normed_mix_.view;
    if (parts_) {
      if (kda_) {
        Ok(internal::MatmulCuda(h_->context(), args.decay));
        Ok(internal::MatmulCuda(h_->context(), args.gate));
      }
      Ok(internal::CausalConvCuda(h_->context(), conv));
      Ok(internal::DeltaRuleCuda(h_->context(), rule));
      Ok(internal::GatedRmsNormCuda(h_->context(), norm));
    } else {
      Ok(internal::CanStepGatedDelta(h_->context(), args)
             ? internal::StepGatedDelta(h_->context(), args)
             : absl::InternalError("no kernel for the layer's step"));
    }
    Multiply(normed_mix_.view, out_weights_[set % kWeightSets], delta_.view);
  }

  const bool kda_, parts_;
  const int64_t conv_cols_, in_cols_, slot_floats_;
  Tensor arena_, projected_, decay_, gate_, mixed_, normed_mix_, small_;
  DeviceBuffer ids_;
  std::vector<WeightMatrix> in_weights_, decay_weights_, gate_weights_,
      out_weights_;
};

void TimeLayer(Harness* h, const std::string& name, Layer* layer) {
  h->Time(name, kSets, layer->Bytes(), Roof::kRead,
          [&](int set) { layer->Run(set); });
}

}  // namespace

void BenchLayers(Harness* h) {
  if (!h->times_wanted()) return;
  for (const auto& [batch, context] :
       {std::pair(1, 64), std::pair(1, 512), std::pair(1, 2048),
        std::pair(8, 512), std::pair(8, 2048), std::pair(16, 2048),
        std::pair(64, 2048), std::pair(8, 32768)}) {
    AttentionLayer layer(h, batch, context);
    TimeLayer(h, absl::StrCat("attention layer ", batch, " x ", context),
              &layer);
  }
  for (const bool kda : {false, true}) {
    for (const int32_t batch : {1, 4, 16, 64}) {
      DeltaLayer layer(h, batch, kda, /*parts=*/!kda);
      TimeLayer(h, absl::StrCat(kda ? "kda" : "gdn", " layer ", batch), &layer);
      if (!kda) continue;
      DeltaLayer parts(h, batch, kda, /*parts=*/true);
      TimeLayer(h, absl::StrCat("kda layer ", batch, ", op by op"), &parts);
    }
  }
}

}  // namespace switchyard::bench
