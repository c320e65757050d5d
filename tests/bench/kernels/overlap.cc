// Mixers between the products around them, launched as the model launches them,
// each kernel free to start before the one before it has ended: that nothing is
// read too early, and what the mixer adds to the time of the products.
#include <algorithm>
#include <functional>
#include <memory>

#include "absl/strings/str_cat.h"
#include "kernels/backends.h"
#include "kernels/cuda_status.h"
#include "kernels/matmul_cuda.h"
#include "tests/bench/kernels/harness.h"

namespace switchyard::bench {
namespace {

constexpr int kSets = 3;  // layers, with weights and caches of their own
constexpr int64_t kHidden = 5120, kMixed = 4096;

// hidden -> projected -> mixed -> hidden, in kSets layers one after the other.
class Chain {
 public:
  Chain(Harness* h, int32_t batch, int64_t projected, int64_t arena_floats)
      : h_(h), batch_(batch) {
    arena_ = h->Large(arena_floats, 1, DType::kF32, 0.1f);
    hidden_ = h->Large(batch, kHidden, DType::kBF16);
    for (Tensor& out : out_) out = h->Poisoned(batch, kHidden, DType::kBF16);
    projected_ = h->Poisoned(batch, projected, DType::kBF16);
    mixed_ = h->Poisoned(batch, kMixed, DType::kBF16);
    for (int s = 0; s < kSets; ++s) {
      in_weights_.push_back(h->LargeWeight(projected, kHidden));
      out_weights_.push_back(h->LargeWeight(kHidden, kMixed));
    }
    std::vector<int32_t> offsets;
    for (int32_t s = 0; s <= batch; ++s) offsets.push_back(s);
    offsets_ = h->Upload(offsets);
  }
  virtual ~Chain() = default;

  double ProductBytes() const {
    return 2.0 * kHidden * (projected_.view.cols + kMixed);
  }
  // Bytes of one layer's weights, caches and states.
  virtual double Bytes() const = 0;

  // Reads the hidden state, or what the layer before wrote.
  void RunLayer(int set, bool with_mixer) {
    Multiply(set == 0 ? hidden_.view : out_[(set + 1) % 2].view,
             in_weights_[set], projected_.view);
    if (with_mixer) Mix(set);
    Multiply(mixed_.view, out_weights_[set], out_[set % 2].view);
  }

  // All layers, step after step: first waiting after every op, then as a graph
  // from the same caches. Every bit of every step must agree.
  void Check(const std::string& name, int num_steps) {
    const int64_t bytes = arena_.view.rows * 4;
    const DeviceBuffer saved = Value(h_->device()->Allocate(bytes));
    Ok(h_->device()->CopyOnDevice(saved.get(), arena_.buffer.get(), bytes));
    after_op_ = [this] { Ok(h_->device()->Synchronize()); };
    std::vector<std::vector<uint16_t>> expected;
    for (int step = 0; step < num_steps; ++step) {
      RunStep();
      expected.push_back(Result());
    }
    after_op_ = [] {};
    const auto arena = Arena();
    Ok(h_->device()->CopyOnDevice(arena_.buffer.get(), saved.get(), bytes));
    const cudaStream_t stream = h_->device()->cuda_stream();
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    Ok(CudaStatus(
        cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
        "cudaStreamBeginCapture"));
    RunStep();
    Ok(CudaStatus(cudaStreamEndCapture(stream, &graph),
                  "cudaStreamEndCapture"));
    Ok(CudaStatus(cudaGraphInstantiate(&executable, graph, 0),
                  "cudaGraphInstantiate"));
    int wrong = 0;
    for (int step = 0; step < num_steps; ++step) {
      Ok(CudaStatus(cudaGraphLaunch(executable, stream), "cudaGraphLaunch"));
      wrong += Result() != expected[step];
    }
    cudaGraphExecDestroy(executable);
    cudaGraphDestroy(graph);
    const bool finite =
        std::all_of(expected.back().begin(), expected.back().end(),
                    [](uint16_t bits) { return (bits & 0x7f80) != 0x7f80; });
    h_->Expect(absl::StrCat("overlap ", name, ": finite"), finite);
    h_->Expect(absl::StrCat("overlap ", name, ": bits of ", num_steps,
                            " serial steps, ", wrong, " wrong"),
               wrong == 0);
    h_->Expect(absl::StrCat("overlap ", name, ": bits of the caches"),
               Arena() == arena);
  }

  void Time(const std::string& name) {
    h_->Time(absl::StrCat(name, " between its products"), kSets, Bytes(),
             Roof::kRead, [&](int set) { RunLayer(set, true); });
    h_->Time(absl::StrCat(name, ": the products alone"), kSets, ProductBytes(),
             Roof::kRead, [&](int set) { RunLayer(set, false); });
  }

 protected:
  virtual void Mix(int set) = 0;  // projected_ to mixed_

  void Multiply(const MatrixView& x, const WeightMatrix& weight,
                const MatrixView& out) {
    MatmulArgs args;
    args.x = x;
    args.weight = &weight;
    args.out = out;
    Ok(internal::MatmulCuda(h_->context(), args));
    after_op_();
  }
  VarlenBatch batch() const {
    VarlenBatch batch;
    batch.num_seqs = batch.num_decodes = batch.num_tokens = batch_;
    batch.max_new_tokens = 1;
    batch.token_offsets = reinterpret_cast<const int32_t*>(offsets_.get());
    return batch;
  }

  Harness* const h_;
  const int32_t batch_;
  std::function<void()> after_op_ = [] {};
  Tensor arena_, hidden_, projected_, mixed_;

 private:
  void RunStep() {
    for (Tensor* tensor : {&projected_, &mixed_, &out_[0], &out_[1]}) {
      Ok(h_->device()->Fill(tensor->buffer.get(), 0xff,
                            tensor->view.rows * tensor->view.cols * 2));
    }
    after_op_();
    for (int set = 0; set < kSets; ++set) RunLayer(set, true);
  }
  std::vector<uint16_t> Result() {
    return h_->Download<uint16_t>(out_[(kSets - 1) % 2].buffer.get(),
                                  batch_ * kHidden);
  }
  std::vector<uint32_t> Arena() {
    return h_->Download<uint32_t>(arena_.buffer.get(), arena_.view.rows);
  }

  Tensor out_[2];
  DeviceBuffer offsets_;
  std::vector<WeightMatrix> in_weights_, out_weights_;
};

// 32 query heads, 8 heads of keys and values of 128, blocks of 16.
class AttentionChain final : public Chain {
 public:
  AttentionChain(Harness* h, const std::vector<int32_t>& contexts,
                 int32_t window = 0, bool ring = false)
      : Chain(h, static_cast<int32_t>(contexts.size()), 6144,
              kSets * contexts.size() * Stride(contexts, window, ring) *
                  kBlockElements / 2),
        stride_(Stride(contexts, window, ring)),
        ring_blocks_(ring ? stride_ : 0) {
    const int64_t num_blocks = int64_t{kSets} * batch_ * stride_;
    // The arena as floats is no sensible bf16: halves of floats.
    Ok(FillRandom(arena_.buffer.get(), DType::kBF16,
                  num_blocks * kBlockElements, 1, 77, h->device()->stream()));
    std::vector<uint32_t> ids;
    for (int64_t i = 0; i < num_blocks; ++i)
      ids.push_back(
          static_cast<uint32_t>(i * kBlockElements * 2 / kCacheUnitBytes));
    std::shuffle(ids.begin(), ids.end(), h->random());
    ids_ = h->Upload(ids);
    std::vector<int32_t> begins;  // of every set, one after another
    for (int32_t s = 0; s <= kSets * batch_; ++s) begins.push_back(s * stride_);
    begins_ = h->Upload(begins);
    contexts_ = h->Upload(contexts);
    const int32_t longest =
        *std::max_element(contexts.begin(), contexts.end()) + 1;
    table_ = h->Large(longest, 128, DType::kF32);
    args_.blocks.arena = arena_.buffer.get();
    args_.blocks.ids = reinterpret_cast<uint32_t*>(ids_.get());
    args_.blocks.block_size = 16;
    args_.blocks.ring_blocks = ring_blocks_;
    args_.kv_dtype = DType::kBF16;
    args_.num_heads = 32;
    args_.num_kv_heads = 8;
    args_.head_size = 128;
    args_.window = window;
    args_.scale = 0.0883883f;
    args_.q = projected_.view.Columns(0, 4096);
    args_.k = projected_.view.Columns(4096, 1024);
    args_.v = projected_.view.Columns(5120, 1024);
    args_.rope_table = static_cast<const float*>(table_.view.data);
    args_.rope_positions = longest;
    args_.out = mixed_.view;
    args_.batch = batch();
    args_.batch.max_total_tokens = longest;
    args_.batch.context_lens = reinterpret_cast<int32_t*>(contexts_.get());
    args_.batch.positions = args_.batch.context_lens;
    for (const int32_t context : contexts) {
      const int32_t seen = window > 0 ? std::min(context, window - 1) : context;
      cache_bytes_ += 4096.0 * seen;
    }
  }
  double Bytes() const override { return ProductBytes() + cache_bytes_; }

 private:
  static constexpr int64_t kBlockElements = 2 * 8 * 16 * 128;
  static int32_t Stride(const std::vector<int32_t>& contexts, int32_t window,
                        bool ring) {
    return ring ? (window + 15) / 16
                : *std::max_element(contexts.begin(), contexts.end()) / 16 + 1;
  }

  void Mix(int set) override {
    args_.blocks.begins =
        reinterpret_cast<int32_t*>(begins_.get()) + set * batch_;
    Ok(internal::PagedAttentionCuda(h_->context(), args_));
    after_op_();
  }

  const int32_t stride_, ring_blocks_;
  double cache_bytes_ = 0;
  Tensor table_;
  DeviceBuffer ids_, begins_, contexts_;
  PagedAttentionArgs args_;
};

// Convolution, delta rule and gated norm of 32 value heads of 128.
class RecurrentChain final : public Chain {
 public:
  RecurrentChain(Harness* h, DecayKind decay, int32_t batch)
      : Chain(h, batch, decay == DecayKind::kPerHead ? 10304 : 12576,
              int64_t{kSets} * batch * SlotFloats(decay)),
        decay_(decay) {
    const int64_t slot_bytes = SlotFloats(decay) * 4;
    std::vector<uint32_t> ids;
    for (int64_t i = 0; i < int64_t{kSets} * batch; ++i)
      ids.push_back(static_cast<uint32_t>(i * slot_bytes / kCacheUnitBytes));
    std::shuffle(ids.begin(), ids.end(), h->random());
    ids_ = h->Upload(ids);
    recalled_ = h->Poisoned(batch, kMixed, DType::kF32);
    alpha_ = h->Poisoned(batch, kMixed, DType::kF32);
    gate_ = h->Poisoned(batch, kMixed, DType::kBF16);
    small_ = h->Large(12288, 4, DType::kF32, 0.5f);
    if (decay == DecayKind::kPerHead) return;
    for (int s = 0; s < kSets; ++s) {
      alpha_weights_.push_back(h->LargeWeight(kMixed, 128));
      gate_weights_.push_back(h->LargeWeight(kMixed, 128));
    }
  }
  double Bytes() const override {
    return ProductBytes() + 8.0 * batch_ * SlotFloats(decay_) +
           (decay_ == DecayKind::kPerChannel ? 2.0 * 2 * 128 * kMixed : 0);
  }

 private:
  static int64_t ConvChannels(DecayKind decay) {
    return decay == DecayKind::kPerHead ? 6144 : 12288;
  }
  static int64_t SlotFloats(DecayKind decay) {
    return ConvChannels(decay) * 3 + 32 * 128 * 128;
  }

  void Mix(int set) override {
    const bool per_head = decay_ == DecayKind::kPerHead;
    const int64_t channels = ConvChannels(decay_);
    const int32_t key_heads = per_head ? 8 : 32;
    const int64_t keys = int64_t{key_heads} * 128;
    const MatrixView& x = projected_.view;
    // gdn: q k v z beta alpha; kda: q k v, inputs of alpha and gate, beta.
    MatrixView alpha = x.Columns(per_head ? 10272 : 0, 32);
    MatrixView gate = x.Columns(channels, kMixed);
    if (!per_head) {
      Multiply(x.Columns(12288, 128), alpha_weights_[set], alpha_.view);
      Multiply(x.Columns(12416, 128), gate_weights_[set], gate_.view);
      alpha = alpha_.view;
      gate = gate_.view;
    }
    const float* small = static_cast<const float*>(small_.view.data);
    CausalConvArgs conv;
    conv.batch = batch();
    conv.state = {
        arena_.buffer.get(),
        reinterpret_cast<uint32_t*>(ids_.get()) + int64_t{set} * batch_, 0};
    conv.x = conv.out = x.Columns(0, channels);
    conv.weight = small;
    conv.kernel_size = 4;
    Ok(internal::CausalConvCuda(h_->context(), conv));
    after_op_();
    DeltaRuleArgs delta;
    delta.batch = batch();
    delta.state = conv.state;
    delta.state.offset = channels * 3 * 4;
    delta.decay = decay_;
    delta.num_key_heads = key_heads;
    delta.num_value_heads = 32;
    delta.key_dim = delta.value_dim = 128;
    delta.q = x.Columns(0, keys);
    delta.k = x.Columns(keys, keys);
    delta.v = x.Columns(2 * keys, kMixed);
    delta.beta = x.Columns(per_head ? 10240 : 12544, 32);
    delta.alpha = alpha;
    delta.a_log = small;
    delta.dt_bias = small + 64;
    delta.out = recalled_.view;
    Ok(internal::DeltaRuleCuda(h_->context(), delta));
    after_op_();
    GatedRmsNormArgs norm;
    norm.x = recalled_.view;
    norm.gate = gate;
    norm.weight = small;
    norm.epsilon = 1e-5f;
    norm.head_dim = 128;
    norm.out = mixed_.view;
    Ok(internal::GatedRmsNormCuda(h_->context(), norm));
    after_op_();
  }

  const DecayKind decay_;
  Tensor recalled_, alpha_, gate_, small_;
  DeviceBuffer ids_;
  std::vector<WeightMatrix> alpha_weights_, gate_weights_;
};

}  // namespace

void BenchOverlap(Harness* h) {
  constexpr int kSteps = 40;
  const std::vector<int32_t> odd = {0, 1, 15, 16, 17, 63, 64, 65, 700, 2100};
  AttentionChain(h, {2048}).Check("attention 1 x 2048", kSteps);
  AttentionChain(h, odd).Check("attention odd lengths", kSteps);
  AttentionChain(h, {2049}).Check("attention 1 x 2049", kSteps);
  AttentionChain(h, {2112, 5, 700}).Check("attention of 3", kSteps);
  AttentionChain(h, {0}).Check("attention 1 x 0", kSteps);
  AttentionChain(h, odd, 100, false).Check("attention window", kSteps);
  AttentionChain(h, odd, 100, true).Check("attention ring", kSteps);
  AttentionChain(h, std::vector<int32_t>(16, 2048))
      .Check("attention 16 x 2048", kSteps);
  AttentionChain(h, std::vector<int32_t>(33, 500))
      .Check("attention 33 x 500", kSteps);
  for (const DecayKind decay : {DecayKind::kPerHead, DecayKind::kPerChannel}) {
    for (const int32_t batch : {1, 3, 16, 33}) {
      RecurrentChain(h, decay, batch)
          .Check(absl::StrCat(decay == DecayKind::kPerHead ? "gdn " : "kda ",
                              batch),
                 kSteps);
    }
  }
  if (!h->times_wanted()) return;
  for (const auto& [batch, context] :
       {std::pair(1, 256), std::pair(1, 2048), std::pair(1, 2100),
        std::pair(4, 2048), std::pair(4, 2100), std::pair(8, 2100),
        std::pair(16, 2048), std::pair(16, 2100), std::pair(64, 2048),
        std::pair(1, 32768), std::pair(8, 32768)}) {
    AttentionChain(h, std::vector<int32_t>(batch, context))
        .Time(absl::StrCat("attention ", batch, " x ", context));
  }
  for (const DecayKind decay : {DecayKind::kPerHead, DecayKind::kPerChannel}) {
    for (const int32_t batch : {1, 4, 8, 16, 64}) {
      RecurrentChain(h, decay, batch)
          .Time(absl::StrCat(decay == DecayKind::kPerHead ? "gdn " : "kda ",
                             batch));
    }
  }
}

}  // namespace switchyard::bench
