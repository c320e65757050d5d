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

constexpr int kSets = 3;  // layers with weights of their own
constexpr int64_t kHidden = 5120, kMlp = 14336;

WeightMatrix MakeWeight(Harness* h, int64_t n, int64_t k) {
  auto storage = std::make_unique<internal::CudaWeight>();
  storage->data = std::move(h->Large(n, k, DType::kBF16, 0.02f).buffer);
  Ok(internal::PlanStreaming(h->device()->num_sms(), n, k, storage.get()));
  return WeightMatrix(n, k, DType::kBF16, std::move(storage));
}

// What every layer has: the residual stream, two norms and the MLP.
class Layer {
 public:
  Layer(Harness* h, int32_t batch) : h_(h), batch_(batch) {
    residual_ = h->Large(batch, kHidden, DType::kF32);
    delta_ = h->Large(batch, kHidden, DType::kBF16);
    normed_ = h->Large(batch, kHidden, DType::kBF16);
    gate_up_ = h->Large(batch, 2 * kMlp, DType::kBF16);
    act_ = h->Large(batch, kMlp, DType::kBF16);
    norm_weight_ = h->Large(1, kHidden, DType::kF32);
    for (int s = 0; s < kSets; ++s) {
      up_weights_.push_back(MakeWeight(h, 2 * kMlp, kHidden));
      down_weights_.push_back(MakeWeight(h, kHidden, kMlp));
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
    Multiply(normed_.view, up_weights_[set], gate_up_.view);
    ActivationArgs activation;
    activation.x = gate_up_.view;
    activation.gated = true;
    activation.out = act_.view;
    Ok(internal::ActivationCuda(h_->context(), activation));
    Multiply(act_.view, down_weights_[set], delta_.view);
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
    contexts_ = h->Upload(std::vector<int32_t>(batch, context));
    table_ = h->Large(context + 1, 128, DType::kF32);
    qkv_ = h->Large(batch, 6144, DType::kBF16);
    mixed_ = h->Large(batch, 4096, DType::kBF16);
    for (int s = 0; s < kSets; ++s) {
      in_weights_.push_back(MakeWeight(h, 6144, kHidden));
      out_weights_.push_back(MakeWeight(h, kHidden, 4096));
    }
    args_.blocks = {arena_.buffer.get(), nullptr, stride, 16, 0};
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
    args_.batch.context_lens = reinterpret_cast<int32_t*>(contexts_.get());
    args_.batch.positions = args_.batch.context_lens;
  }
  double Bytes() const override {
    return MlpBytes() + 2.0 * kHidden * (6144 + 4096) +
           4096.0 * batch_ * context_;
  }

 private:
  void Mix(int set) override {
    Multiply(normed_.view, in_weights_[set], qkv_.view);
    args_.blocks.ids = reinterpret_cast<uint32_t*>(ids_.get()) +
                       int64_t{set} * batch_ * args_.blocks.stride;
    Ok(internal::PagedAttentionCuda(h_->context(), args_));
    Multiply(mixed_.view, out_weights_[set], delta_.view);
  }

  const int32_t context_;
  Tensor arena_, table_, qkv_, mixed_;
  DeviceBuffer ids_, contexts_;
  std::vector<WeightMatrix> in_weights_, out_weights_;
  PagedAttentionArgs args_;
};

class GdnLayer final : public Layer {
 public:
  GdnLayer(Harness* h, int32_t batch) : Layer(h, batch) {
    arena_ = h->Large(int64_t{kSets} * batch, kSlotFloats, DType::kF32, 0.1f);
    std::vector<uint32_t> ids;
    for (int64_t i = 0; i < int64_t{kSets} * batch; ++i)
      ids.push_back(
          static_cast<uint32_t>(i * kSlotFloats * 4 / kCacheUnitBytes));
    ids_ = h->Upload(ids);
    qkvz_ = h->Large(batch, 10240, DType::kBF16);
    gates_ = h->Large(batch, 64, DType::kBF16);
    mixed_ = h->Large(batch, 4096, DType::kF32);
    normed_mix_ = h->Large(batch, 4096, DType::kBF16);
    small_ = h->Large(6144, 4, DType::kF32);
    for (int s = 0; s < kSets; ++s) {
      in_weights_.push_back(MakeWeight(h, 10240, kHidden));
      gate_weights_.push_back(MakeWeight(h, 64, kHidden));
      out_weights_.push_back(MakeWeight(h, kHidden, 4096));
    }
  }
  double Bytes() const override {
    return MlpBytes() + 2.0 * kHidden * (10240 + 64 + 4096) +
           8.0 * batch_ * kSlotFloats;
  }

 private:
  static constexpr int64_t kConvFloats = 6144 * 3;
  static constexpr int64_t kSlotFloats = kConvFloats + 32 * 128 * 128;

  void Mix(int set) override {
    Multiply(normed_.view, in_weights_[set], qkvz_.view);
    Multiply(normed_.view, gate_weights_[set], gates_.view);
    const float* small = static_cast<const float*>(small_.view.data);
    CausalConvArgs conv;
    conv.batch = batch();
    conv.state = {
        arena_.buffer.get(),
        reinterpret_cast<uint32_t*>(ids_.get()) + int64_t{set} * batch_, 0};
    conv.x = conv.out = qkvz_.view.Columns(0, 6144);
    conv.weight = small;
    conv.kernel_size = 4;
    Ok(internal::CausalConvCuda(h_->context(), conv));
    DeltaRuleArgs delta;
    delta.batch = batch();
    delta.state = conv.state;
    delta.state.offset = kConvFloats * 4;
    delta.num_key_heads = 8;
    delta.num_value_heads = 32;
    delta.key_dim = delta.value_dim = 128;
    delta.q = qkvz_.view.Columns(0, 1024);
    delta.k = qkvz_.view.Columns(1024, 1024);
    delta.v = qkvz_.view.Columns(2048, 4096);
    delta.beta = gates_.view.Columns(0, 32);
    delta.alpha = gates_.view.Columns(32, 32);
    delta.a_log = small;
    delta.dt_bias = small + 64;
    delta.out = mixed_.view;
    Ok(internal::DeltaRuleCuda(h_->context(), delta));
    GatedRmsNormArgs norm;
    norm.x = mixed_.view;
    norm.gate = qkvz_.view.Columns(6144, 4096);
    norm.weight = small;
    norm.epsilon = 1e-5f;
    norm.head_dim = 128;
    norm.out = normed_mix_.view;
    Ok(internal::GatedRmsNormCuda(h_->context(), norm));
    Multiply(normed_mix_.view, out_weights_[set], delta_.view);
  }

  Tensor arena_, qkvz_, gates_, mixed_, normed_mix_, small_;
  DeviceBuffer ids_;
  std::vector<WeightMatrix> in_weights_, gate_weights_, out_weights_;
};

void TimeLayer(Harness* h, const std::string& name, Layer* layer) {
  h->Time(name, kSets, layer->Bytes(), Roof::kRead,
          [&](int set) { layer->Run(set); });
}

}  // namespace

void BenchLayers(Harness* h) {
  if (!h->times_wanted()) return;
  for (const auto& [batch, context] :
       {std::pair(1, 2048), std::pair(8, 2048), std::pair(16, 2048),
        std::pair(64, 2048), std::pair(8, 32768)}) {
    AttentionLayer layer(h, batch, context);
    TimeLayer(h, absl::StrCat("attention layer ", batch, " x ", context),
              &layer);
  }
  for (const int32_t batch : {1, 16, 64}) {
    GdnLayer layer(h, batch);
    TimeLayer(h, absl::StrCat("gdn layer ", batch), &layer);
  }
}

}  // namespace switchyard::bench
