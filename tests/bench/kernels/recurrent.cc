// Causal convolution, delta rule, selective scan.
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kernels/backends.h"
#include "tests/bench/kernels/harness.h"

namespace switchyard::bench {
namespace {

using Lengths = std::vector<int32_t>;  // new tokens of each sequence

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double Softplus(double x) { return x > 30 ? x : std::log1p(std::exp(x)); }

// A batch of sequences and their slots, poisoned around the states.
class Batch {
 public:
  Batch(Harness* h, const Lengths& lengths, int64_t state_floats)
      : h_(h), lengths_(lengths), state_floats_(state_floats) {
    constexpr int64_t kOffset = 64;  // bytes into the slot
    const int64_t slot_bytes =
        (kOffset + 4 * state_floats + kCacheUnitBytes - 1) / kCacheUnitBytes *
        kCacheUnitBytes;
    slot_floats_ = slot_bytes / 4;
    offset_floats_ = kOffset / 4;
    const int64_t num_seqs = lengths.size();
    std::vector<float> arena(num_seqs * slot_floats_, NAN);
    std::vector<uint32_t> ids;
    std::normal_distribution<float> normal(0, 0.3f);
    for (int64_t s = 0; s < num_seqs; ++s) {
      ids.push_back(static_cast<uint32_t>((num_seqs - 1 - s) * slot_bytes /
                                          kCacheUnitBytes));
      float* state = &arena[Place(s)];
      for (int64_t i = 0; i < state_floats; ++i) state[i] = normal(h->random());
      states_.emplace_back(state, state + state_floats);
    }
    std::vector<int32_t> offsets = {0};
    for (const int32_t length : lengths)
      offsets.push_back(offsets.back() + length);
    offsets_ = offsets;
    arena_ = h->Upload(arena);
    ids_ = h->Upload(ids);
    device_offsets_ = h->Upload(offsets);
    contexts_ = h->Upload(std::vector<int32_t>(num_seqs, 7));
  }

  int64_t num_tokens() const { return offsets_.back(); }
  const std::vector<int32_t>& offsets() const { return offsets_; }
  std::vector<double>& state(int64_t seq) { return states_[seq]; }

  VarlenBatch varlen() const {
    VarlenBatch batch;
    batch.num_seqs = static_cast<int32_t>(lengths_.size());
    while (batch.num_decodes < batch.num_seqs &&
           lengths_[batch.num_decodes] == 1)
      ++batch.num_decodes;
    batch.num_tokens = offsets_.back();
    batch.token_offsets =
        reinterpret_cast<const int32_t*>(device_offsets_.get());
    batch.context_lens = reinterpret_cast<const int32_t*>(contexts_.get());
    return batch;
  }
  SlotTable slots() const {
    return {arena_.get(), reinterpret_cast<const uint32_t*>(ids_.get()),
            offset_floats_ * 4};
  }
  // The states now on the device, and what they should be.
  void CheckStates(const std::string& name, double tolerance) {
    const auto arena = h_->Download<float>(
        arena_.get(), slot_floats_ * static_cast<int64_t>(lengths_.size()));
    std::vector<float> stored;
    std::vector<double> wanted;
    for (size_t s = 0; s < lengths_.size(); ++s) {
      const float* state = &arena[Place(s)];
      stored.insert(stored.end(), state, state + state_floats_);
      wanted.insert(wanted.end(), states_[s].begin(), states_[s].end());
    }
    h_->Check(name + ", state", stored, wanted, tolerance);
  }

 private:
  int64_t Place(int64_t seq) const {
    return (static_cast<int64_t>(lengths_.size()) - 1 - seq) * slot_floats_ +
           offset_floats_;
  }

  Harness* const h_;
  const Lengths lengths_;
  const int64_t state_floats_;
  int64_t slot_floats_ = 0, offset_floats_ = 0;
  std::vector<int32_t> offsets_;
  std::vector<std::vector<double>> states_;
  DeviceBuffer arena_, ids_, device_offsets_, contexts_;
};

void CheckConv(Harness* h, const Lengths& lengths, int64_t channels,
               int32_t kernel, DType dtype, bool in_place) {
  Batch batch(h, lengths, channels * (kernel - 1));
  const int64_t tokens = batch.num_tokens();
  const Tensor x = h->Random(tokens, channels, dtype);
  const Tensor weight = h->Random(channels, kernel, DType::kF32);
  const Tensor bias = h->Random(1, channels, DType::kF32);
  Tensor out = h->Poisoned(tokens, channels, dtype);
  CausalConvArgs args;
  args.batch = batch.varlen();
  args.state = batch.slots();
  args.x = x.view;
  args.weight = static_cast<const float*>(weight.view.data);
  args.bias = static_cast<const float*>(bias.view.data);
  args.kernel_size = kernel;
  args.out = in_place ? x.view : out.view;
  Ok(internal::CausalConvCuda(h->context(), args));
  std::vector<double> reference(tokens * channels);
  for (size_t s = 0; s < lengths.size(); ++s) {
    for (int64_t c = 0; c < channels; ++c) {
      double* past = &batch.state(s)[c * (kernel - 1)];
      for (int32_t t = batch.offsets()[s]; t < batch.offsets()[s + 1]; ++t) {
        double y = bias.at(0, c) + weight.at(c, kernel - 1) * x.at(t, c);
        for (int32_t j = 0; j < kernel - 1; ++j) y += weight.at(c, j) * past[j];
        std::copy(past + 1, past + kernel - 1, past);
        past[kernel - 2] = x.at(t, c);
        reference[t * channels + c] = y * Sigmoid(y);
      }
    }
  }
  const std::string name =
      absl::StrCat("conv ", DTypeName(dtype), " ", tokens, " x ", channels,
                   " kernel ", kernel, in_place ? " in place" : "");
  h->Check(name, h->Download(args.out), reference,
           dtype == DType::kF32 ? 2e-6 : 4e-3);
  batch.CheckStates(name, 1e-6);
}

struct DeltaShape {
  Lengths lengths;
  int32_t key_heads = 2, value_heads = 4, key_dim = 128, value_dim = 128;
  DecayKind decay = DecayKind::kPerHead;
  DeltaRuleAlgorithm algorithm = DeltaRuleAlgorithm::kAuto;
  DType dtype = DType::kBF16;
  float decay_scale = 1;
};

// The recurrence in double.
std::vector<double> DeltaReference(const DeltaShape& s, Batch* batch,
                                   const Tensor& q, const Tensor& k,
                                   const Tensor& v, const Tensor& beta,
                                   const Tensor& alpha, const Tensor& a_log,
                                   const Tensor& dt_bias) {
  const int32_t kd = s.key_dim, vd = s.value_dim;
  std::vector<double> out(batch->num_tokens() * s.value_heads * vd);
  for (size_t seq = 0; seq < s.lengths.size(); ++seq) {
    for (int32_t head = 0; head < s.value_heads; ++head) {
      double* state = &batch->state(seq)[int64_t{head} * kd * vd];
      const int32_t key = head / (s.value_heads / s.key_heads) * kd;
      for (int32_t t = batch->offsets()[seq]; t < batch->offsets()[seq + 1];
           ++t) {
        double q_norm = 1e-6, k_norm = 1e-6;
        for (int32_t i = 0; i < kd; ++i) {
          q_norm += q.at(t, key + i) * q.at(t, key + i);
          k_norm += k.at(t, key + i) * k.at(t, key + i);
        }
        const double b = Sigmoid(beta.at(t, head));
        std::vector<double> along(vd, 0.0);
        for (int32_t i = 0; i < kd; ++i) {
          const int32_t gate =
              s.decay == DecayKind::kPerHead ? head : head * kd + i;
          const double g =
              std::exp(-std::exp(a_log.at(0, head)) *
                       Softplus(alpha.at(t, gate) + dt_bias.at(0, gate)));
          const double ki = k.at(t, key + i) / std::sqrt(k_norm);
          for (int32_t j = 0; j < vd; ++j) {
            state[i * vd + j] *= g;
            along[j] += state[i * vd + j] * ki;
          }
        }
        double* row = &out[(int64_t{t} * s.value_heads + head) * vd];
        for (int32_t i = 0; i < kd; ++i) {
          const double ki = k.at(t, key + i) / std::sqrt(k_norm);
          const double qi =
              q.at(t, key + i) / std::sqrt(q_norm) / std::sqrt(double{1} * kd);
          for (int32_t j = 0; j < vd; ++j) {
            state[i * vd + j] += ki * b * (v.at(t, head * vd + j) - along[j]);
            row[j] += state[i * vd + j] * qi;
          }
        }
      }
    }
  }
  return out;
}

void CheckDelta(Harness* h, const DeltaShape& s) {
  Batch batch(h, s.lengths, int64_t{s.value_heads} * s.key_dim * s.value_dim);
  const int64_t tokens = batch.num_tokens();
  const int64_t key_cols = s.key_heads * s.key_dim,
                value_cols = s.value_heads * s.value_dim;
  const int64_t gates = s.decay == DecayKind::kPerHead
                            ? s.value_heads
                            : s.value_heads * s.key_dim;
  const Tensor q = h->Random(tokens, key_cols, s.dtype);
  const Tensor k = h->Random(tokens, key_cols, s.dtype);
  const Tensor v = h->Random(tokens, value_cols, s.dtype);
  const Tensor beta = h->Random(tokens, s.value_heads, DType::kF32);
  const Tensor alpha = h->Random(tokens, gates, s.dtype, s.decay_scale);
  const Tensor a_log = h->Random(1, s.value_heads, DType::kF32);
  const Tensor dt_bias = h->Random(1, gates, DType::kF32);
  Tensor out = h->Poisoned(tokens, value_cols, DType::kF32);
  DeltaRuleArgs args;
  args.batch = batch.varlen();
  args.state = batch.slots();
  args.decay = s.decay;
  args.algorithm = s.algorithm;
  args.num_key_heads = s.key_heads;
  args.num_value_heads = s.value_heads;
  args.key_dim = s.key_dim;
  args.value_dim = s.value_dim;
  args.q = q.view;
  args.k = k.view;
  args.v = v.view;
  args.beta = beta.view;
  args.alpha = alpha.view;
  args.a_log = static_cast<const float*>(a_log.view.data);
  args.dt_bias = static_cast<const float*>(dt_bias.view.data);
  args.out = out.view;
  Ok(internal::DeltaRuleCuda(h->context(), args));
  const std::string name = absl::StrCat(
      s.decay == DecayKind::kPerHead ? "gdn " : "kda ", DTypeName(s.dtype), " ",
      s.key_heads, "/", s.value_heads, " heads ", s.key_dim, " x ", s.value_dim,
      ", ", s.lengths.size(), " sequences, ", tokens, " tokens",
      s.algorithm == DeltaRuleAlgorithm::kRecurrent ? " recurrent" : "");
  // bf16 operands in the chunked products; the recurrence is fp32.
  const bool exact = s.dtype == DType::kF32 ||
                     s.algorithm == DeltaRuleAlgorithm::kRecurrent ||
                     tokens == static_cast<int64_t>(s.lengths.size());
  const double tolerance = exact ? 2e-5 : 1e-2;
  const std::vector<double> reference =
      DeltaReference(s, &batch, q, k, v, beta, alpha, a_log, dt_bias);
  h->Check(name, h->Download(out.view), reference, tolerance);
  batch.CheckStates(name, tolerance);
}

void CheckScan(Harness* h, const Lengths& lengths, int32_t state_size,
               DType dtype) {
  const int32_t heads = 6, b_heads = 2, x_heads = 2, width = 20;
  const int64_t d_inner = heads * width;
  Batch batch(h, lengths, d_inner * state_size);
  const int64_t tokens = batch.num_tokens();
  const Tensor x = h->Random(tokens, x_heads * width, dtype);
  const Tensor dt = h->Random(tokens, d_inner, DType::kF32);
  const Tensor b = h->Random(tokens, b_heads * state_size, dtype);
  const Tensor c = h->Random(tokens, heads * state_size, dtype);
  const Tensor z = h->Random(tokens, d_inner, dtype);
  const Tensor a_log = h->Random(d_inner, state_size, DType::kF32);
  const Tensor d = h->Random(1, d_inner, DType::kF32);
  Tensor out = h->Poisoned(tokens, d_inner, dtype);
  SelectiveScanArgs args;
  args.batch = batch.varlen();
  args.state = batch.slots();
  args.state_size = state_size;
  args.num_heads = heads;
  args.num_b_heads = b_heads;
  args.num_x_heads = x_heads;
  args.x = x.view;
  args.dt = dt.view;
  args.b = b.view;
  args.c = c.view;
  args.z = z.view;
  args.a_log = static_cast<const float*>(a_log.view.data);
  args.d = static_cast<const float*>(d.view.data);
  args.out = out.view;
  Ok(internal::SelectiveScanCuda(h->context(), args));
  std::vector<double> reference(tokens * d_inner);
  for (size_t s = 0; s < lengths.size(); ++s) {
    for (int64_t i = 0; i < d_inner; ++i) {
      double* state = &batch.state(s)[i * state_size];
      const int64_t head = i / width, group = head / (heads / b_heads);
      for (int32_t t = batch.offsets()[s]; t < batch.offsets()[s + 1]; ++t) {
        const double step = Softplus(dt.at(t, i));
        const double input = x.at(t, group * width + i % width);
        double y = d.at(0, i) * input;
        for (int32_t n = 0; n < state_size; ++n) {
          state[n] = std::exp(-std::exp(a_log.at(i, n)) * step) * state[n] +
                     step * input * b.at(t, group * state_size + n);
          y += state[n] * c.at(t, head * state_size + n);
        }
        reference[t * d_inner + i] = y * z.at(t, i) * Sigmoid(z.at(t, i));
      }
    }
  }
  const std::string name = absl::StrCat("scan ", DTypeName(dtype), " ", tokens,
                                        " tokens, state ", state_size);
  h->Check(name, h->Download(out.view), reference,
           dtype == DType::kF32 ? 1e-5 : 4e-3);
  batch.CheckStates(name, 1e-5);
}

// num_seqs sequences of num_new tokens, 32 value heads of 128 x 128.
void TimeDelta(Harness* h, DecayKind decay, int32_t num_seqs, int32_t num_new) {
  const bool gdn = decay == DecayKind::kPerHead;
  const int64_t state_bytes = int64_t{32} * 128 * 128 * 4;
  const int sets = static_cast<int>(
      std::max<int64_t>(1, 400'000'000 / (state_bytes * num_seqs)));
  const int num_sets = num_new > 1 ? 1 : std::min(sets, 64);
  const Tensor arena =
      h->Large(int64_t{num_sets} * num_seqs, state_bytes / 4, DType::kF32);
  std::vector<uint32_t> ids;
  for (int64_t i = 0; i < int64_t{num_sets} * num_seqs; ++i)
    ids.push_back(static_cast<uint32_t>(i * state_bytes / kCacheUnitBytes));
  const DeviceBuffer device_ids = h->Upload(ids);
  std::vector<int32_t> offsets;
  for (int32_t s = 0; s <= num_seqs; ++s) offsets.push_back(s * num_new);
  const DeviceBuffer device_offsets = h->Upload(offsets);
  const int64_t tokens = int64_t{num_seqs} * num_new;
  const int32_t key_heads = gdn ? 8 : 32;
  const Tensor qkv = h->Large(tokens, 128 * (2 * key_heads + 32), DType::kBF16);
  const Tensor beta = h->Large(tokens, 32, DType::kBF16);
  const Tensor alpha = h->Large(tokens, gdn ? 32 : 4096, DType::kBF16);
  const Tensor a_log = h->Large(1, 32, DType::kF32);
  const Tensor dt_bias = h->Large(1, 4096, DType::kF32);
  const Tensor out = h->Large(tokens, 4096, DType::kBF16);
  DeltaRuleArgs args;
  args.batch.num_seqs = num_seqs;
  args.batch.num_decodes = num_new == 1 ? num_seqs : 0;
  args.batch.num_tokens = static_cast<int32_t>(tokens);
  args.batch.max_new_tokens = num_new;
  args.batch.token_offsets = reinterpret_cast<int32_t*>(device_offsets.get());
  args.state.arena = arena.buffer.get();
  args.decay = decay;
  args.num_key_heads = key_heads;
  args.num_value_heads = 32;
  args.key_dim = 128;
  args.value_dim = 128;
  args.q = qkv.view.Columns(0, 128 * key_heads);
  args.k = qkv.view.Columns(128 * key_heads, 128 * key_heads);
  args.v = qkv.view.Columns(256 * key_heads, 4096);
  args.beta = beta.view;
  args.alpha = alpha.view;
  args.a_log = static_cast<const float*>(a_log.view.data);
  args.dt_bias = static_cast<const float*>(dt_bias.view.data);
  args.out = out.view;
  const auto run = [&](int s) {
    args.state.ids =
        reinterpret_cast<uint32_t*>(device_ids.get()) + int64_t{s} * num_seqs;
    Ok(internal::DeltaRuleCuda(h->context(), args));
  };
  if (num_new == 1) {
    h->Time(absl::StrCat(gdn ? "gdn" : "kda", " decode batch ", num_seqs),
            num_sets, 2.0 * state_bytes * num_seqs, Roof::kCopy, run);
  } else {
    // Inputs and output once; the ceiling is not the point here, the time is.
    h->Time(absl::StrCat(gdn ? "gdn" : "kda", " prefill ", num_seqs, " x ",
                         num_new),
            1,
            2.0 * tokens *
                (128 * (2 * key_heads + 32) + 4096 + (gdn ? 64 : 4096 + 32)),
            Roof::kCopy, run);
  }
}

void TimeConv(Harness* h, int32_t num_seqs, int32_t num_new) {
  const int64_t channels = 6144, tokens = int64_t{num_seqs} * num_new;
  const int64_t slot_bytes = channels * 3 * 4;
  const Tensor arena = h->Large(num_seqs, slot_bytes / 4, DType::kF32);
  std::vector<uint32_t> ids;
  std::vector<int32_t> offsets = {0};
  for (int32_t s = 0; s < num_seqs; ++s) {
    ids.push_back(static_cast<uint32_t>(s * slot_bytes / kCacheUnitBytes));
    offsets.push_back(offsets.back() + num_new);
  }
  const DeviceBuffer device_ids = h->Upload(ids),
                     device_offsets = h->Upload(offsets);
  const Tensor x = h->Large(tokens, channels, DType::kBF16);
  const Tensor weight = h->Large(channels, 4, DType::kF32);
  CausalConvArgs args;
  args.batch.num_seqs = num_seqs;
  args.batch.num_decodes = num_new == 1 ? num_seqs : 0;
  args.batch.num_tokens = static_cast<int32_t>(tokens);
  args.batch.token_offsets = reinterpret_cast<int32_t*>(device_offsets.get());
  args.state = {arena.buffer.get(),
                reinterpret_cast<uint32_t*>(device_ids.get()), 0};
  args.x = x.view;
  args.weight = static_cast<const float*>(weight.view.data);
  args.kernel_size = 4;
  args.out = x.view;
  h->Time(absl::StrCat("conv ", num_seqs, " x ", num_new, " x 6144"), 1,
          4.0 * tokens * channels + 2.0 * num_seqs * slot_bytes, Roof::kCopy,
          [&](int) { Ok(internal::CausalConvCuda(h->context(), args)); });
}

}  // namespace

void BenchRecurrent(Harness* h) {
  const Lengths decodes(9, 1), mixed = {1, 1, 2, 64, 65, 200, 3, 128, 130};
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    for (const bool in_place : {false, true}) {
      CheckConv(h, mixed, 96, 4, dtype, in_place);
      CheckConv(h, mixed, 50, 2, dtype, in_place);
      CheckConv(h, decodes, 6144, 4, dtype, in_place);
    }
    CheckScan(h, mixed, 16, dtype);
    CheckScan(h, decodes, 6, dtype);
    CheckScan(h, mixed, 64, dtype);
    for (const DecayKind decay :
         {DecayKind::kPerHead, DecayKind::kPerChannel}) {
      DeltaShape shape;
      shape.decay = decay;
      shape.dtype = dtype;
      if (decay == DecayKind::kPerChannel) shape.key_heads = 4;
      for (const Lengths& lengths : {decodes, mixed}) {
        shape.lengths = lengths;
        for (const auto& [key_dim, value_dim] :
             {std::pair(128, 128), std::pair(64, 64), std::pair(16, 32),
              std::pair(24, 20), std::pair(256, 128)}) {
          shape.key_dim = key_dim;
          shape.value_dim = value_dim;
          shape.algorithm = DeltaRuleAlgorithm::kAuto;
          CheckDelta(h, shape);
          shape.algorithm = DeltaRuleAlgorithm::kRecurrent;
          CheckDelta(h, shape);
        }
      }
      // Enough heads for the wide slices, and strong decays.
      shape.key_dim = shape.value_dim = 128;
      shape.key_heads = shape.value_heads = 8;
      shape.algorithm = DeltaRuleAlgorithm::kAuto;
      shape.decay_scale = 30;
      shape.lengths = Lengths(70, 1);
      CheckDelta(h, shape);
      shape.lengths = {1, 300};
      CheckDelta(h, shape);
    }
  }
  if (!h->times_wanted()) return;
  for (const DecayKind decay : {DecayKind::kPerHead, DecayKind::kPerChannel}) {
    for (const int32_t batch : {1, 16, 64, 256}) TimeDelta(h, decay, batch, 1);
    for (const int32_t tokens : {8192, 32768}) TimeDelta(h, decay, 1, tokens);
    TimeDelta(h, decay, 16, 2048);
  }
  for (const int32_t batch : {1, 64, 256}) TimeConv(h, batch, 1);
  TimeConv(h, 1, 8192);
}

}  // namespace switchyard::bench
