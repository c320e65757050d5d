#include "kernels/delta_rule.h"

#include <algorithm>
#include <cmath>

#include "tests/kernels/device_fixture.h"

namespace switchyard {
namespace {

constexpr int64_t kSlotOffset = 256;

struct Config {
  DecayKind decay = DecayKind::kPerHead;
  int32_t num_key_heads = 2;
  int32_t num_value_heads = 4;
  int32_t key_dim = 64;
  int32_t value_dim = 64;

  std::string name() const {
    return std::string(decay == DecayKind::kPerHead ? "gdn " : "kda ") +
           std::to_string(num_key_heads) + "/" +
           std::to_string(num_value_heads) + " heads, " +
           std::to_string(key_dim) + " x " + std::to_string(value_dim);
  }
  int64_t key_cols() const { return int64_t{num_key_heads} * key_dim; }
  int64_t value_cols() const { return int64_t{num_value_heads} * value_dim; }
  int64_t alpha_cols() const {
    return int64_t{num_value_heads} *
           (decay == DecayKind::kPerHead ? 1 : key_dim);
  }
  int64_t state_size() const {
    return int64_t{num_value_heads} * key_dim * value_dim;
  }
};

constexpr Config kConfigs[] = {
    {DecayKind::kPerHead, 2, 4, 64, 64},
    {DecayKind::kPerChannel, 4, 4, 64, 64},
    {DecayKind::kPerHead, 4, 8, 16, 32},
    {DecayKind::kPerChannel, 2, 2, 32, 32},
    {DecayKind::kPerHead, 1, 2, 128, 128},
    {DecayKind::kPerChannel, 1, 1, 128, 128},
};

// Everything a sequence feeds the op.
struct Sequence {
  HostMatrix q, k, v, beta, alpha;

  int64_t length() const { return q.rows; }
};

HostMatrix SliceRows(const HostMatrix& m, int64_t begin, int64_t count) {
  return {count,
          m.cols,
          m.dtype,
          {m.values.begin() + begin * m.cols,
           m.values.begin() + (begin + count) * m.cols}};
}

void Append(const HostMatrix& from, HostMatrix* to) {
  to->cols = from.cols;
  to->dtype = from.dtype;
  to->rows += from.rows;
  to->values.insert(to->values.end(), from.values.begin(), from.values.end());
}

class DeltaRuleTest : public OpTest {
 protected:
  void Configure(const Config& config, int32_t num_seqs,
                 float decay_scale = 1.0f) {
    config_ = config;
    num_seqs_ = num_seqs;
    a_log_ = RandomVector(config.num_value_heads, 0.5f);
    // softplus(alpha + dt_bias) exp(a_log): the size of the decays.
    for (float& a : a_log_) a += std::log(decay_scale);
    dt_bias_ = RandomVector(config.alpha_cols());
    slot_units_ = static_cast<uint32_t>(
        (kSlotOffset + config.state_size() * 4 + kCacheUnitBytes - 1) /
        kCacheUnitBytes);
    device_a_log_ = UploadArray(a_log_);
    device_dt_bias_ = UploadArray(dt_bias_);
    // Not zero: every sequence goes on from somewhere.
    initial_.clear();
    for (int32_t s = 0; s < num_seqs; ++s) {
      initial_.push_back(RandomVector(config.state_size(), 0.3f));
    }
    ResetStates();
  }

  void ResetStates() {
    const int64_t slot_bytes = slot_units_ * kCacheUnitBytes;
    arena_ = PoisonedBytes(num_seqs_ * slot_bytes);
    for (int32_t s = 0; s < num_seqs_; ++s) {
      SY_EXPECT_OK(device()->CopyToDevice(arena_ + s * slot_bytes + kSlotOffset,
                                          initial_[s].data(),
                                          initial_[s].size() * sizeof(float)));
    }
    SY_EXPECT_OK(device()->Synchronize());
  }

  HostMatrix State(int32_t seq) {
    const auto* data = reinterpret_cast<const float*>(
        arena_ + seq * slot_units_ * kCacheUnitBytes + kSlotOffset);
    return {config_.key_dim, config_.value_dim * config_.num_value_heads,
            DType::kF32, DownloadArray(data, config_.state_size())};
  }

  Sequence MakeSequence(int64_t length) {
    return {RandomMatrix(length, config_.key_cols(), activation()),
            RandomMatrix(length, config_.key_cols(), activation()),
            RandomMatrix(length, config_.value_cols(), activation()),
            RandomMatrix(length, config_.num_value_heads, activation()),
            RandomMatrix(length, config_.alpha_cols(), activation())};
  }

  // Rows [done[i], done[i] + counts[i]) of sequences which[i], in one call.
  HostMatrix Run(const std::vector<Sequence>& seqs, std::vector<int> which,
                 std::vector<int32_t> done, std::vector<int32_t> counts,
                 DeltaRuleAlgorithm algorithm) {
    HostMatrix q, k, v, beta, alpha;
    std::vector<std::pair<int32_t, int32_t>> lengths;
    std::vector<uint32_t> ids;
    for (size_t i = 0; i < which.size(); ++i) {
      const Sequence& seq = seqs[which[i]];
      Append(SliceRows(seq.q, done[i], counts[i]), &q);
      Append(SliceRows(seq.k, done[i], counts[i]), &k);
      Append(SliceRows(seq.v, done[i], counts[i]), &v);
      Append(SliceRows(seq.beta, done[i], counts[i]), &beta);
      Append(SliceRows(seq.alpha, done[i], counts[i]), &alpha);
      lengths.emplace_back(done[i], counts[i]);
      ids.push_back(which[i] * slot_units_);
    }
    DeltaRuleArgs args;
    args.batch = MakeBatch(lengths);
    args.state = {arena_, UploadArray(ids), kSlotOffset};
    args.decay = config_.decay;
    args.algorithm = algorithm;
    args.num_key_heads = config_.num_key_heads;
    args.num_value_heads = config_.num_value_heads;
    args.key_dim = config_.key_dim;
    args.value_dim = config_.value_dim;
    args.q = Upload(q, q.cols + 16);
    args.k = Upload(k, k.cols + 8);
    args.v = Upload(v, v.cols + 8);
    args.beta = Upload(beta, beta.cols + 3);
    args.alpha = Upload(alpha);
    args.a_log = device_a_log_;
    args.dt_bias = device_dt_bias_;
    args.out = Poisoned(q.rows, config_.value_cols(), DType::kF32);
    SY_EXPECT_OK(DeltaRule(context(), args));
    return Download(args.out);
  }

  // The definition, in double; `state` goes in and out.
  std::vector<double> Expected(const Sequence& seq,
                               std::vector<double>* state) const {
    const int32_t kd = config_.key_dim, vd = config_.value_dim;
    const int32_t ratio = config_.num_value_heads / config_.num_key_heads;
    std::vector<double> out(seq.length() * config_.value_cols());
    for (int64_t t = 0; t < seq.length(); ++t) {
      for (int32_t h = 0; h < config_.num_value_heads; ++h) {
        double* s = state->data() + int64_t{h} * kd * vd;
        std::vector<double> q(kd), k(kd), u(vd);
        double qq = 1e-6, kk = 1e-6;
        for (int32_t c = 0; c < kd; ++c) {
          q[c] = seq.q.at(t, h / ratio * kd + c);
          k[c] = seq.k.at(t, h / ratio * kd + c);
          qq += q[c] * q[c];
          kk += k[c] * k[c];
        }
        for (int32_t c = 0; c < kd; ++c) {
          q[c] /= std::sqrt(qq) * std::sqrt(static_cast<double>(kd));
          k[c] /= std::sqrt(kk);
          const int64_t channel =
              config_.decay == DecayKind::kPerHead ? h : int64_t{h} * kd + c;
          const double g =
              -std::exp(double{a_log_[h]}) *
              std::log1p(std::exp(double{seq.alpha.at(t, channel)} +
                                  dt_bias_[channel]));
          for (int32_t i = 0; i < vd; ++i) {
            s[c * vd + i] *= std::exp(g);
            u[i] += k[c] * s[c * vd + i];
          }
        }
        const double beta = 1 / (1 + std::exp(-double{seq.beta.at(t, h)}));
        for (int32_t c = 0; c < kd; ++c) {
          for (int32_t i = 0; i < vd; ++i) {
            s[c * vd + i] += k[c] * beta * (seq.v.at(t, h * vd + i) - u[i]);
            out[(t * config_.num_value_heads + h) * vd + i] +=
                q[c] * s[c * vd + i];
          }
        }
      }
    }
    return out;
  }

  // On CUDA the products of the chunked form take bf16 operands.
  double Tolerance() const { return cuda() ? 2e-2 : 2e-5; }

  Config config_;
  int32_t num_seqs_ = 0;
  std::vector<float> a_log_, dt_bias_;
  const float* device_a_log_ = nullptr;
  const float* device_dt_bias_ = nullptr;
  std::vector<std::vector<float>> initial_;
  std::byte* arena_ = nullptr;
  int64_t slot_units_ = 0;
};

constexpr DeltaRuleAlgorithm kAlgorithms[] = {DeltaRuleAlgorithm::kAuto,
                                              DeltaRuleAlgorithm::kRecurrent,
                                              DeltaRuleAlgorithm::kChunked};

// Lengths around the chunk of 64 and the sub-chunk of 16, all in one call,
// decodes first, from states that are not zero.
TEST_P(DeltaRuleTest, MatchesTheRecurrenceInDouble) {
  for (const Config& config : kConfigs) {
    const std::vector<int32_t> lengths = {1, 1, 15, 16, 17, 64, 65, 150};
    Configure(config, static_cast<int32_t>(lengths.size()));
    std::vector<Sequence> seqs;
    std::vector<int> which;
    std::vector<double> expected, expected_states;
    for (size_t s = 0; s < lengths.size(); ++s) {
      seqs.push_back(MakeSequence(lengths[s]));
      which.push_back(static_cast<int>(s));
      std::vector<double> state(initial_[s].begin(), initial_[s].end());
      const std::vector<double> out = Expected(seqs[s], &state);
      expected.insert(expected.end(), out.begin(), out.end());
      expected_states.insert(expected_states.end(), state.begin(), state.end());
    }
    for (DeltaRuleAlgorithm algorithm : kAlgorithms) {
      ResetStates();
      const std::string what = config.name() + ", algorithm " +
                               std::to_string(static_cast<int>(algorithm));
      ExpectNear(Run(seqs, which, std::vector<int32_t>(seqs.size()), lengths,
                     algorithm),
                 expected, Tolerance(), what);
      HostMatrix states;
      for (size_t s = 0; s < seqs.size(); ++s) {
        Append(State(static_cast<int32_t>(s)), &states);
      }
      ExpectNear(states, expected_states, Tolerance(), what + ", states");
    }
  }
}

// Log-decays down to -50 a token: exp(-G) of the chunk would be infinite.
TEST_P(DeltaRuleTest, StrongDecaysStayFinite) {
  for (const Config& config : kConfigs) {
    Configure(config, 1, 20.0f);
    std::vector<Sequence> seqs = {MakeSequence(200)};
    // Weak and strong decays side by side.
    for (size_t i = 0; i < seqs[0].alpha.values.size(); ++i) {
      seqs[0].alpha.values[i] = RoundTo(i % 3 == 0   ? 2.0f
                                        : i % 3 == 1 ? -8.0f
                                                     : 0.0f,
                                        activation());
    }
    std::vector<double> state(initial_[0].begin(), initial_[0].end());
    const std::vector<double> expected = Expected(seqs[0], &state);
    for (DeltaRuleAlgorithm algorithm : kAlgorithms) {
      ResetStates();
      const std::string what = config.name() + ", algorithm " +
                               std::to_string(static_cast<int>(algorithm));
      ExpectNear(Run(seqs, {0}, {0}, {200}, algorithm), expected, Tolerance(),
                 what);
      ExpectNear(State(0), state, Tolerance(), what + ", state");
    }
  }
}

TEST_P(DeltaRuleTest, ChunkingDoesNotMatter) {
  for (const Config& config : {kConfigs[0], kConfigs[1], kConfigs[2]}) {
    constexpr int32_t kLength = 170;
    Configure(config, 1);
    const std::vector<Sequence> seqs = {MakeSequence(kLength)};
    const HostMatrix whole =
        Run(seqs, {0}, {0}, {kLength}, DeltaRuleAlgorithm::kAuto);
    const HostMatrix last_state = State(0);
    for (int32_t most : {1, 3, 40, 100}) {
      ResetStates();
      HostMatrix parts;
      for (int32_t done = 0; done < kLength;) {
        const int32_t n = std::min(RandomInt(1, most), kLength - done);
        Append(Run(seqs, {0}, {done}, {n}, DeltaRuleAlgorithm::kAuto), &parts);
        done += n;
      }
      const std::string what =
          config.name() + ", chunks of up to " + std::to_string(most);
      ExpectSame(parts, whole, what, Tolerance());
      ExpectSame(State(0), last_state, what + ", state", Tolerance());
    }
  }
}

TEST_P(DeltaRuleTest, TheBatchAroundDoesNotMatter) {
  Configure(kConfigs[1], 3);
  const std::vector<Sequence> seqs = {MakeSequence(1), MakeSequence(30),
                                      MakeSequence(80)};
  HostMatrix alone;
  for (int s : {0, 1, 2}) {
    Append(Run(seqs, {s}, {0}, {static_cast<int32_t>(seqs[s].length())},
               DeltaRuleAlgorithm::kAuto),
           &alone);
  }
  ResetStates();
  ExpectSame(
      Run(seqs, {0, 1, 2}, {0, 0, 0}, {1, 30, 80}, DeltaRuleAlgorithm::kAuto),
      alone, "together", Tolerance());
}

TEST_P(DeltaRuleTest, RejectsBadArguments) {
  Configure(kConfigs[0], 1);
  DeltaRuleArgs args;
  args.batch = MakeBatch({{0, 2}});
  args.state = {arena_, UploadArray(std::vector<uint32_t>{0}), kSlotOffset};
  args.num_key_heads = 3;
  args.num_value_heads = 4;
  args.key_dim = args.value_dim = 64;
  EXPECT_EQ(DeltaRule(context(), args).message(),
            "DeltaRule: num_key_heads 3 does not divide num_value_heads 4");
}

SY_INSTANTIATE_OP_TEST(DeltaRuleTest);

}  // namespace
}  // namespace switchyard
