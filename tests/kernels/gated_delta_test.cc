#include "kernels/gated_delta.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/kernels/device_fixture.h"

namespace switchyard {
namespace {

struct Config {
  DecayKind decay = DecayKind::kPerHead;
  int32_t num_key_heads = 1;
  int32_t num_value_heads = 1;
  int32_t head_dim = 128;
  int32_t kernel_size = 4;
  // Of kda: decay and gate come from low-rank projections of this rank.
  int32_t rank = 0;
  bool sigmoid = false;
  bool has_conv_bias = false;

  int64_t key_cols() const { return int64_t{num_key_heads} * head_dim; }
  int64_t value_cols() const { return int64_t{num_value_heads} * head_dim; }
  int64_t channels() const { return 2 * key_cols() + value_cols(); }
  int64_t alpha_cols() const {
    return decay == DecayKind::kPerHead ? num_value_heads : value_cols();
  }
  // Columns of the input product: q | k | v, then what makes gate and decay,
  // then beta.
  int64_t gate_cols() const { return rank > 0 ? rank : value_cols(); }
  int64_t decay_cols() const { return rank > 0 ? rank : alpha_cols(); }
  int64_t projected_cols() const {
    return channels() + gate_cols() + decay_cols() + num_value_heads;
  }
  int64_t conv_size() const { return channels() * (kernel_size - 1); }
  int64_t state_size() const { return value_cols() * head_dim; }
  std::string name() const {
    return std::string(decay == DecayKind::kPerHead ? "gdn " : "kda ") +
           std::to_string(num_key_heads) + "/" +
           std::to_string(num_value_heads) + " heads of " +
           std::to_string(head_dim) + ", rank " + std::to_string(rank);
  }
};

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

class GatedDeltaTest : public OpTest {
 protected:
  void Configure(const Config& config, int32_t num_seqs) {
    config_ = config;
    num_seqs_ = num_seqs;
    conv_weight_ = RandomVector(config.channels() * config.kernel_size, 0.5f);
    conv_bias_ = RandomVector(config.channels(), 0.2f);
    a_log_ = RandomVector(config.num_value_heads, 0.5f);
    dt_bias_ = RandomVector(config.alpha_cols());
    norm_weight_ = RandomVector(config.head_dim);
    if (config.rank > 0) {
      const float scale = 1 / std::sqrt(static_cast<float>(config.rank));
      decay_b_ =
          RandomMatrix(config.value_cols(), config.rank, activation(), scale);
      gate_b_ =
          RandomMatrix(config.value_cols(), config.rank, activation(), scale);
    }
    // A slot: the convolution's state, then the delta rule's.
    conv_bytes_ = (config.conv_size() * 4 + 15) / 16 * 16;
    slot_units_ =
        (conv_bytes_ + config.state_size() * 4 + kCacheUnitBytes - 1) /
        kCacheUnitBytes;
    initial_.clear();
    for (int32_t s = 0; s < num_seqs; ++s) {
      initial_.push_back(
          RandomVector(config.conv_size() + config.state_size(), 0.3f));
    }
    arena_ = PoisonedBytes(num_seqs * slot_units_ * kCacheUnitBytes);
    ResetStates();
  }

  void ResetStates() {
    for (int32_t s = 0; s < num_seqs_; ++s) {
      SY_EXPECT_OK(device()->CopyToDevice(ConvState(s), initial_[s].data(),
                                          config_.conv_size() * 4));
      SY_EXPECT_OK(device()->CopyToDevice(
          RuleState(s), initial_[s].data() + config_.conv_size(),
          config_.state_size() * 4));
    }
    SY_EXPECT_OK(device()->Synchronize());
  }

  // The states of all sequences, each convolution's first.
  HostMatrix States() {
    HostMatrix states{
        num_seqs_, config_.conv_size() + config_.state_size(), DType::kF32, {}};
    for (int32_t s = 0; s < num_seqs_; ++s) {
      for (const auto& part :
           {DownloadArray(ConvState(s), config_.conv_size()),
            DownloadArray(RuleState(s), config_.state_size())}) {
        states.values.insert(states.values.end(), part.begin(), part.end());
      }
    }
    return states;
  }

  // One call; sequence s has new_tokens[s] new tokens. In `parts`, the five ops
  // one by one instead.
  HostMatrix Run(const OpContext& context, const HostMatrix& projected,
                 const std::vector<int32_t>& new_tokens, bool parts = false) {
    const int64_t rows = projected.rows;
    const DType type = activation();
    // Rows in whole 16-byte units, as the mixers allocate them.
    const MatrixView in = Upload(projected, (projected.cols + 15) / 8 * 8);
    const MatrixView qkv = in.Columns(0, config_.channels());
    const MatrixView gate_in =
        in.Columns(config_.channels(), config_.gate_cols());
    const MatrixView decay_in = in.Columns(
        config_.channels() + config_.gate_cols(), config_.decay_cols());
    std::vector<std::pair<int32_t, int32_t>> lengths;
    std::vector<uint32_t> ids;
    for (int32_t s = 0; s < num_seqs_; ++s) {
      lengths.emplace_back(5, new_tokens[s]);
      ids.push_back(static_cast<uint32_t>(s * slot_units_));
    }
    const uint32_t* device_ids = UploadArray(ids);
    const VarlenBatch batch = MakeBatch(lengths);
    const WeightMatrix decay_b = Weight(decay_b_), gate_b = Weight(gate_b_);

    GatedDeltaArgs args;
    args.conv.batch = args.rule.batch = batch;
    args.conv.state = {arena_, device_ids, 0};
    args.conv.x = args.conv.out = qkv;
    args.conv.weight = UploadArray(conv_weight_);
    args.conv.bias = config_.has_conv_bias ? UploadArray(conv_bias_) : nullptr;
    args.conv.kernel_size = config_.kernel_size;
    args.rule.state = {arena_, device_ids, conv_bytes_};
    args.rule.decay = config_.decay;
    args.rule.num_key_heads = config_.num_key_heads;
    args.rule.num_value_heads = config_.num_value_heads;
    args.rule.key_dim = args.rule.value_dim = config_.head_dim;
    args.rule.q = qkv.Columns(0, config_.key_cols());
    args.rule.k = qkv.Columns(config_.key_cols(), config_.key_cols());
    args.rule.v = qkv.Columns(2 * config_.key_cols(), config_.value_cols());
    args.rule.beta = in.Columns(projected.cols - config_.num_value_heads,
                                config_.num_value_heads);
    args.rule.alpha = decay_in;
    args.rule.a_log = UploadArray(a_log_);
    args.rule.dt_bias = UploadArray(dt_bias_);
    args.rule.out = Poisoned(rows, config_.value_cols(), DType::kF32);
    args.norm.x = args.rule.out;
    args.norm.gate = gate_in;
    args.norm.weight = UploadArray(norm_weight_);
    args.norm.epsilon = 1e-5f;
    args.norm.activation =
        config_.sigmoid ? GateActivation::kSigmoid : GateActivation::kSilu;
    args.norm.head_dim = config_.head_dim;
    args.norm.out = Poisoned(rows, config_.value_cols(), type);
    if (config_.rank > 0) {
      args.rule.alpha = Poisoned(rows, config_.value_cols(), DType::kF32);
      args.norm.gate = Poisoned(rows, config_.value_cols(), type);
      args.decay = {decay_in, &decay_b, nullptr, args.rule.alpha};
      args.gate = {gate_in, &gate_b, nullptr, args.norm.gate};
    }
    if (parts) {
      if (config_.rank > 0) {
        SY_EXPECT_OK(Matmul(context, args.decay));
        SY_EXPECT_OK(Matmul(context, args.gate));
      }
      SY_EXPECT_OK(CausalConv(context, args.conv));
      SY_EXPECT_OK(DeltaRule(context, args.rule));
      SY_EXPECT_OK(GatedRmsNorm(context, args.norm));
    } else {
      SY_EXPECT_OK(GatedDelta(context, args));
    }
    return Download(args.norm.out);
  }

  // The definition, in double. `states` goes in and out, as of States().
  std::vector<double> Expected(const HostMatrix& projected,
                               const std::vector<int32_t>& new_tokens,
                               std::vector<double>* states) const {
    std::vector<double> out;
    const int64_t per_seq = config_.conv_size() + config_.state_size();
    int64_t row = 0;
    for (int32_t s = 0; s < num_seqs_; ++s) {
      for (int32_t t = 0; t < new_tokens[s]; ++t)
        ExpectedToken(&projected.values[row++ * projected.cols],
                      states->data() + s * per_seq, &out);
    }
    return out;
  }

  std::vector<double> InitialStates() const {
    std::vector<double> states;
    for (const std::vector<float>& state : initial_)
      states.insert(states.end(), state.begin(), state.end());
    return states;
  }

  HostMatrix Projected(const std::vector<int32_t>& new_tokens) {
    return RandomMatrix(
        std::accumulate(new_tokens.begin(), new_tokens.end(), 0),
        config_.projected_cols(), activation());
  }

  Config config_;

 private:
  float* ConvState(int32_t seq) {
    return reinterpret_cast<float*>(arena_ +
                                    seq * slot_units_ * kCacheUnitBytes);
  }
  float* RuleState(int32_t seq) {
    return ConvState(seq) + conv_bytes_ / static_cast<int64_t>(sizeof(float));
  }

  WeightMatrix Weight(const HostMatrix& host) {
    if (config_.rank == 0) return {};
    const MatrixView view{const_cast<float*>(host.values.data()), DType::kF32,
                          host.rows, host.cols, host.cols};
    auto weight = WeightMatrix::Create(device(), view, activation());
    EXPECT_TRUE(weight.ok()) << weight.status();
    return *std::move(weight);
  }

  // x W^T, or x itself where there is no weight.
  std::vector<double> Project(const float* x, const HostMatrix& w,
                              int64_t cols) const {
    std::vector<double> y(x, x + cols);
    if (config_.rank == 0) return y;
    y.assign(w.rows, 0);
    for (int64_t r = 0; r < w.rows; ++r)
      for (int64_t c = 0; c < w.cols; ++c) y[r] += double{w.at(r, c)} * x[c];
    return y;
  }

  void ExpectedToken(const float* x, double* state,
                     std::vector<double>* out) const {
    const int64_t dim = config_.head_dim, taps = config_.kernel_size;
    std::vector<double> qkv(config_.channels());
    for (int64_t c = 0; c < config_.channels(); ++c) {
      double* past = state + c * (taps - 1);
      double y = config_.has_conv_bias ? conv_bias_[c] : 0;
      for (int64_t j = 0; j < taps; ++j)
        y += conv_weight_[c * taps + j] * (j < taps - 1 ? past[j] : x[c]);
      std::copy(past + 1, past + taps - 1, past);
      past[taps - 2] = x[c];
      qkv[c] = y * Sigmoid(y);
    }
    const float* gate_x = x + config_.channels();
    const std::vector<double> gate =
        Project(gate_x, gate_b_, config_.gate_cols());
    const std::vector<double> alpha =
        Project(gate_x + config_.gate_cols(), decay_b_, config_.decay_cols());
    const float* beta = gate_x + config_.gate_cols() + config_.decay_cols();
    for (int32_t h = 0; h < config_.num_value_heads; ++h) {
      double* s = state + config_.conv_size() + h * dim * dim;
      const int64_t key_head =
          h / (config_.num_value_heads / config_.num_key_heads);
      const double* q = &qkv[key_head * dim];
      const double* k = q + config_.key_cols();
      const double* v = &qkv[2 * config_.key_cols() + h * dim];
      double qq = 1e-6, kk = 1e-6;
      for (int64_t c = 0; c < dim; ++c) {
        qq += q[c] * q[c];
        kk += k[c] * k[c];
      }
      std::vector<double> along(dim), y(dim);
      for (int64_t c = 0; c < dim; ++c) {
        const int64_t channel =
            config_.decay == DecayKind::kPerHead ? h : h * dim + c;
        const double decay =
            std::exp(-std::exp(double{a_log_[h]}) *
                     std::log1p(std::exp(alpha[channel] + dt_bias_[channel])));
        for (int64_t i = 0; i < dim; ++i) {
          s[c * dim + i] *= decay;
          along[i] += k[c] / std::sqrt(kk) * s[c * dim + i];
        }
      }
      double square = 0;
      for (int64_t i = 0; i < dim; ++i) {
        const double u = Sigmoid(beta[h]) * (v[i] - along[i]);
        for (int64_t c = 0; c < dim; ++c) {
          s[c * dim + i] += k[c] / std::sqrt(kk) * u;
          y[i] += q[c] / std::sqrt(qq * dim) * s[c * dim + i];
        }
        square += y[i] * y[i];
      }
      for (int64_t i = 0; i < dim; ++i) {
        const double g = gate[h * dim + i];
        out->push_back(y[i] / std::sqrt(square / dim + 1e-5) * norm_weight_[i] *
                       Sigmoid(g) * (config_.sigmoid ? 1 : g));
      }
    }
  }

  int32_t num_seqs_ = 0;
  std::vector<float> conv_weight_, conv_bias_, a_log_, dt_bias_, norm_weight_;
  HostMatrix decay_b_, gate_b_;
  std::vector<std::vector<float>> initial_;
  std::byte* arena_ = nullptr;
  int64_t conv_bytes_ = 0, slot_units_ = 0;
};

constexpr Config kGdn = {DecayKind::kPerHead, 2, 8};
constexpr Config kGdnConvBias = {
    DecayKind::kPerHead, 1, 2, 128, 4, 0, false, true};
constexpr Config kKda = {DecayKind::kPerChannel, 2, 2, 128, 4, 128};
constexpr Config kKdaSigmoid = {
    DecayKind::kPerChannel, 1, 1, 128, 4, 128, true, true};
constexpr Config kKdaDirect = {DecayKind::kPerChannel, 2, 2};
constexpr Config kSmallGdn = {DecayKind::kPerHead, 2, 4, 32};
constexpr Config kSmallKda = {DecayKind::kPerChannel, 2, 2, 64, 3, 24};

// A step at a time, from states that are not zero, each from the last one's.
TEST_P(GatedDeltaTest, DecodesByTheDefinition) {
  for (const Config& config : {kGdn, kGdnConvBias, kSmallGdn, kKda, kKdaSigmoid,
                               kKdaDirect, kSmallKda}) {
    // Few sequences, whose heads CUDA cuts into slices, and more than that.
    for (const int32_t num_seqs : {1, 3, 160 / config.num_value_heads}) {
      Configure(config, num_seqs);
      const std::vector<int32_t> new_tokens(num_seqs, 1);
      std::vector<double> states = InitialStates();
      // Of bf16, what is rounded on the way: the convolution's results where
      // there is no kernel for all, the gate where it is a product's result.
      const bool bf16 = activation() == DType::kBF16;
      const bool in_parts = config.decay == DecayKind::kPerHead ||
                            config.head_dim != 128 || config.kernel_size != 4;
      const double state_tolerance = bf16 && in_parts ? 3e-2 : 1e-4;
      const double tolerance = bf16 && config.rank > 0
                                   ? std::max(1e-2, state_tolerance)
                                   : state_tolerance;
      for (int step = 0; step < (num_seqs == 1 ? 6 : 2); ++step) {
        const std::string what = config.name() + ", " +
                                 std::to_string(num_seqs) +
                                 " sequences, step " + std::to_string(step);
        const HostMatrix projected = Projected(new_tokens);
        const HostMatrix out = Run(context(), projected, new_tokens);
        ExpectNear(out, Expected(projected, new_tokens, &states), tolerance,
                   what, 4);
        ExpectNear(States(), states, state_tolerance, what + ", states");
      }
    }
  }
}

TEST_P(GatedDeltaTest, PromptsAreItsParts) {
  for (const Config& config : {kGdn, kKda, kSmallGdn, kSmallKda}) {
    const std::vector<int32_t> new_tokens = {1, 1, 7, 70};
    Configure(config, static_cast<int32_t>(new_tokens.size()));
    const HostMatrix projected = Projected(new_tokens);
    const HostMatrix parts = Run(context(), projected, new_tokens, true);
    const HostMatrix states = States();
    ResetStates();
    EXPECT_EQ(Run(context(), projected, new_tokens).values, parts.values)
        << config.name();
    EXPECT_EQ(States().values, states.values) << config.name();
  }
}

// Bit for bit: a decoded token's results are those it would have in a prompt.
TEST_P(GatedDeltaTest, BatchInvariantDecodingIsItsParts) {
  OpContext context = this->context();
  context.batch_invariant = true;
  for (const Config& config : {kGdn, kKda}) {
    const std::vector<int32_t> new_tokens = {1, 1, 1};
    Configure(config, 3);
    const HostMatrix projected = Projected(new_tokens);
    const HostMatrix parts = Run(context, projected, new_tokens, true);
    const HostMatrix states = States();
    ResetStates();
    EXPECT_EQ(Run(context, projected, new_tokens).values, parts.values)
        << config.name();
    EXPECT_EQ(States().values, states.values) << config.name();
  }
}

SY_INSTANTIATE_OP_TEST(GatedDeltaTest);

}  // namespace
}  // namespace switchyard
