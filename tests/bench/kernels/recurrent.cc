// Checks of causal convolution, delta rule and selective scan; their timings
// are in recurrent_times.cc.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <thread>

#include "absl/strings/str_cat.h"
#include "kernels/backends.h"
#include "tests/bench/kernels/harness.h"
#include "tests/bench/kernels/timings.h"

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
    batch.max_new_tokens = *std::max_element(lengths_.begin(), lengths_.end());
    batch.host_token_offsets = offsets_.data();
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
  DType dtype = DType::kBF16, out_dtype = DType::kF32;
  float decay_scale = 1, decay_shift = 0;  // of alpha
  float common_key = 0;  // what all keys of a head have in common
};

struct DeltaInputs {
  Tensor q, k, v, beta, alpha, a_log, dt_bias;
};

// The recurrence in double, for one head of one sequence.
void DeltaReferenceHead(const DeltaShape& s, const DeltaInputs& in,
                        int32_t head, int32_t begin, int32_t end, double* state,
                        std::vector<double>* out) {
  const int32_t kd = s.key_dim, vd = s.value_dim;
  const int32_t key = head / (s.value_heads / s.key_heads) * kd;
  std::vector<double> along(vd), ki(kd), qi(kd);
  for (int32_t t = begin; t < end; ++t) {
    double q_norm = 1e-6, k_norm = 1e-6;
    for (int32_t i = 0; i < kd; ++i) {
      q_norm += in.q.at(t, key + i) * in.q.at(t, key + i);
      k_norm += in.k.at(t, key + i) * in.k.at(t, key + i);
    }
    const double b = Sigmoid(in.beta.at(t, head));
    const double a = -std::exp(in.a_log.at(0, head));
    std::fill(along.begin(), along.end(), 0.0);
    double decay = 0;
    for (int32_t i = 0; i < kd; ++i) {
      ki[i] = in.k.at(t, key + i) / std::sqrt(k_norm);
      qi[i] = in.q.at(t, key + i) / std::sqrt(q_norm * kd);
      if (i == 0 || s.decay == DecayKind::kPerChannel) {
        const int32_t gate =
            s.decay == DecayKind::kPerHead ? head : head * kd + i;
        decay = std::exp(
            a * Softplus(in.alpha.at(t, gate) + in.dt_bias.at(0, gate)));
      }
      double* row = state + int64_t{i} * vd;
      for (int32_t j = 0; j < vd; ++j) {
        row[j] *= decay;
        along[j] += row[j] * ki[i];
      }
    }
    for (int32_t j = 0; j < vd; ++j)
      along[j] = b * (in.v.at(t, head * vd + j) - along[j]);
    double* to = &(*out)[(int64_t{t} * s.value_heads + head) * vd];
    for (int32_t i = 0; i < kd; ++i) {
      double* row = state + int64_t{i} * vd;
      for (int32_t j = 0; j < vd; ++j) {
        row[j] += ki[i] * along[j];
        to[j] += row[j] * qi[i];
      }
    }
  }
}

std::vector<double> DeltaReference(const DeltaShape& s, const DeltaInputs& in,
                                   Batch* batch) {
  std::vector<double> out(batch->num_tokens() * s.value_heads * s.value_dim);
  const int32_t num_threads =
      std::clamp<int32_t>(std::thread::hardware_concurrency(), 1, 16);
  const int32_t jobs = static_cast<int32_t>(s.lengths.size()) * s.value_heads;
  std::vector<std::thread> threads;
  for (int32_t thread = 0; thread < num_threads; ++thread) {
    threads.emplace_back([&, thread] {
      for (int32_t job = thread; job < jobs; job += num_threads) {
        const int32_t seq = job / s.value_heads, head = job % s.value_heads;
        DeltaReferenceHead(
            s, in, head, batch->offsets()[seq], batch->offsets()[seq + 1],
            &batch->state(seq)[int64_t{head} * s.key_dim * s.value_dim], &out);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return out;
}

// Checks the sequence with the largest error: short ones must not hide among
// long ones.
void CheckWorst(Harness* h, const std::string& name, const Batch& batch,
                const std::vector<float>& out,
                const std::vector<double>& reference, double tolerance) {
  const auto& offsets = batch.offsets();
  const int64_t cols = out.size() / batch.num_tokens();
  double worst = -1;
  size_t worst_seq = 0;
  for (size_t s = 0; s + 1 < offsets.size(); ++s) {
    double error = 0, norm = 1e-30;
    for (int64_t i = offsets[s] * cols; i < offsets[s + 1] * cols; ++i) {
      error += (out[i] - reference[i]) * (out[i] - reference[i]);
      norm += reference[i] * reference[i];
    }
    if (!(error / norm <= worst)) worst = error / norm, worst_seq = s;
    if (std::isnan(error)) break;
  }
  const int64_t begin = offsets[worst_seq] * cols,
                end = offsets[worst_seq + 1] * cols;
  h->Check(absl::StrCat(
               name, ", worst: ", offsets[worst_seq + 1] - offsets[worst_seq]),
           {out.begin() + begin, out.begin() + end},
           {reference.begin() + begin, reference.begin() + end}, tolerance);
}

void CheckDelta(Harness* h, const DeltaShape& s) {
  Batch batch(h, s.lengths, int64_t{s.value_heads} * s.key_dim * s.value_dim);
  const int64_t tokens = batch.num_tokens();
  const int64_t key_cols = s.key_heads * s.key_dim,
                value_cols = s.value_heads * s.value_dim;
  const int64_t gates = s.decay == DecayKind::kPerHead
                            ? s.value_heads
                            : s.value_heads * s.key_dim;
  std::normal_distribution<float> normal;
  std::vector<float> keys(tokens * key_cols), alphas(tokens * gates);
  std::vector<float> common(key_cols);
  for (float& x : common) x = s.common_key * normal(h->random());
  for (size_t i = 0; i < keys.size(); ++i)
    keys[i] = normal(h->random()) + common[i % key_cols];
  for (float& x : alphas)
    x = s.decay_scale * normal(h->random()) + s.decay_shift;
  DeltaInputs in;
  in.q = h->Random(tokens, key_cols, s.dtype);
  in.k = h->FromHost(std::move(keys), tokens, key_cols, s.dtype);
  in.v = h->Random(tokens, value_cols, s.dtype);
  in.beta = h->Random(tokens, s.value_heads, DType::kF32);
  in.alpha = h->FromHost(std::move(alphas), tokens, gates, s.dtype);
  in.a_log = h->Random(1, s.value_heads, DType::kF32);
  in.dt_bias = h->Random(1, gates, DType::kF32);
  Tensor out = h->Poisoned(tokens, value_cols, s.out_dtype);
  DeltaRuleArgs args;
  args.batch = batch.varlen();
  args.state = batch.slots();
  args.decay = s.decay;
  args.algorithm = s.algorithm;
  args.num_key_heads = s.key_heads;
  args.num_value_heads = s.value_heads;
  args.key_dim = s.key_dim;
  args.value_dim = s.value_dim;
  args.q = in.q.view;
  args.k = in.k.view;
  args.v = in.v.view;
  args.beta = in.beta.view;
  args.alpha = in.alpha.view;
  args.a_log = static_cast<const float*>(in.a_log.view.data);
  args.dt_bias = static_cast<const float*>(in.dt_bias.view.data);
  args.out = out.view;
  Ok(internal::DeltaRuleCuda(h->context(), args));
  std::string name = absl::StrCat(
      s.decay == DecayKind::kPerHead ? "gdn " : "kda ", DTypeName(s.dtype), " ",
      s.key_heads, "/", s.value_heads, " heads ", s.key_dim, " x ", s.value_dim,
      ", ", s.lengths.size(), " sequences, ", tokens, " tokens");
  if (s.algorithm == DeltaRuleAlgorithm::kRecurrent) name += " recurrent";
  if (s.algorithm == DeltaRuleAlgorithm::kChunked) name += " chunked";
  if (s.decay_scale != 1 || s.decay_shift != 0)
    absl::StrAppend(&name, " alpha ", s.decay_shift, "+-", s.decay_scale);
  if (s.common_key != 0) name += " similar keys";
  // The recurrence is fp32. The chunked products have bf16 operands, each
  // 2^-9 / sqrt(3) = 0.0011 off: W, U, S, N, P and K or Q in a row, and what
  // is rounded in an output of bf16. Similar keys make T's entries grow.
  const bool exact = s.dtype == DType::kF32 ||
                     s.algorithm == DeltaRuleAlgorithm::kRecurrent ||
                     tokens == static_cast<int64_t>(s.lengths.size());
  const double tolerance = exact ? 2e-5 : s.common_key != 0 ? 2e-2 : 6e-3;
  const std::vector<double> reference = DeltaReference(s, in, &batch);
  CheckWorst(h, name, batch, h->Download(out.view), reference,
             tolerance + (s.out_dtype == DType::kBF16 ? 2e-3 : 0));
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

// The chunked form: every length up to five chunks, whole chunks, prompts that
// take several launches; decays from none to e^-100 a token.
void CheckChunked(Harness* h, DecayKind decay) {
  DeltaShape shape;
  shape.decay = decay;
  shape.algorithm = DeltaRuleAlgorithm::kChunked;
  shape.value_heads = 2;
  shape.key_heads = decay == DecayKind::kPerHead ? 1 : 2;
  shape.lengths.resize(300);
  std::iota(shape.lengths.begin(), shape.lengths.end(), 1);
  std::shuffle(shape.lengths.begin(), shape.lengths.end(), h->random());
  CheckDelta(h, shape);
  shape.decay_scale = 30;
  CheckDelta(h, shape);
  shape.decay_scale = 1;
  shape.lengths = {64, 128, 640, 1, 1000, 65};
  for (const float shift : {-20.0f, -8.0f, 0.0f, 4.0f, 20.0f}) {
    shape.decay_shift = shift;
    CheckDelta(h, shape);
  }
  shape.decay_shift = -4;
  shape.common_key = 1;
  CheckDelta(h, shape);
  shape.common_key = 0;
  shape.decay_shift = 0;
  shape.out_dtype = DType::kBF16;
  shape.value_heads = 32;
  shape.key_heads = decay == DecayKind::kPerHead ? 8 : 32;
  shape.lengths = {3000, 5, 64, 2047, 33};
  CheckDelta(h, shape);
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
  for (const DecayKind decay : {DecayKind::kPerHead, DecayKind::kPerChannel})
    CheckChunked(h, decay);
  if (h->times_wanted()) TimeRecurrent(h);
}

}  // namespace switchyard::bench
