// The WY form (Yang et al. 2024, "Parallelizing Linear Transformers with the
// Delta Rule over Sequence Length"), with decays. In a chunk, G_i = g_1 + ... +
// g_i, and
//   A_ij = beta_i sum_c k_i[c] k_j[c] exp(G_i[c] - G_j[c])   j < i
//   P_ij = sum_c q_i[c] k_j[c] exp(G_i[c] - G_j[c])          j <= i
//   (I + A) N = beta (V - (exp(G) K) S)      by forward substitution
//   O  = (exp(G) Q) S + P N
//   S' = exp(G_C) S + (exp(G_C - G) K)^T N
// G falls, so every exponent here is at most 0. exp(G_i - G_j) must not be
// taken apart into exp(G_i) exp(-G_j), which overflows: across sub-chunks of 16
// tokens it is taken apart at R, the G just before i's sub-chunk, into exp(G_i
// - R) exp(R - G_j), both at most 1.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/cpu_math.h"
#include "kernels/delta_rule_cpu.h"

namespace switchyard::internal {
namespace {

constexpr int64_t kChunk = 64;
constexpr int64_t kSubChunk = 16;

// out[c] = x[c] * exp(to[c] - from[c]); `from` null: 0.
void Decay(const float* x, const float* to, const float* from, int64_t n,
           float* out) {
  if (from == nullptr) {
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) out[c] = x[c] * Exp(to[c]);
  } else {
#pragma omp simd
    for (int64_t c = 0; c < n; ++c) out[c] = x[c] * Exp(to[c] - from[c]);
  }
}

class Chunk {
 public:
  explicit Chunk(const DeltaHead& head)
      : head_(head),
        key_dim_(head.key_dim()),
        value_dim_(head.value_dim()),
        q_(kChunk * key_dim_),
        k_(kChunk * key_dim_),
        g_(kChunk * key_dim_),
        n_(kChunk * value_dim_),
        scratch_(kChunk * key_dim_) {}

  // Rows [begin, begin + count) of the batch.
  void Run(int32_t begin, int64_t count) {
    Read(begin, count);
    ComputeProducts(k_.data(), count, a_);
    ComputeProducts(q_.data(), count, p_);
    SolveForN(begin, count);
    WriteOutputs(begin, count);
    UpdateState(count);
  }

 private:
  void Read(int32_t begin, int64_t count) {
    for (int64_t t = 0; t < count; ++t) {
      head_.ReadQuery(begin + t, q(t));
      head_.ReadKey(begin + t, k(t));
      head_.ReadLogDecay(begin + t, g(t));
      beta_[t] = head_.Beta(begin + t);
      if (t == 0) continue;
      for (int64_t c = 0; c < key_dim_; ++c) g(t)[c] += g(t - 1)[c];
    }
  }

  // out[i][j] = sum_c x_i[c] k_j[c] exp(G_i[c] - G_j[c]) for j <= i.
  void ComputeProducts(const float* x, int64_t count,
                       float out[kChunk][kChunk]) {
    std::vector<float> decayed(key_dim_);
    for (int64_t sub = 0; sub < count; sub += kSubChunk) {
      const float* reference = sub == 0 ? nullptr : g(sub - 1);
      for (int64_t j = 0; j < sub; ++j) {
        Decay(k(j), reference, g(j), key_dim_, &scratch_[j * key_dim_]);
      }
      for (int64_t i = sub; i < std::min(sub + kSubChunk, count); ++i) {
        const float* row = x + i * key_dim_;
        Decay(row, g(i), reference, key_dim_, decayed.data());
        for (int64_t j = 0; j < sub; ++j) {
          out[i][j] = Dot(decayed.data(), &scratch_[j * key_dim_], key_dim_);
        }
        for (int64_t j = sub; j <= i; ++j) {
          Decay(row, g(i), g(j), key_dim_, decayed.data());
          out[i][j] = Dot(decayed.data(), k(j), key_dim_);
        }
      }
    }
  }

  // sum_c x[c] S[c], added to acc * scale.
  void AddStateProduct(const float* x, float scale, float* acc) const {
    const float* state = head_.state();
    AddWeightedRows([&](int64_t c) { return state + c * value_dim_; }, x,
                    key_dim_, scale, value_dim_, acc);
  }

  void SolveForN(int32_t begin, int64_t count) {
    std::vector<float> weights(std::max(key_dim_, kChunk));
    const auto row_of_n = [&](int64_t j) { return n(j); };
    for (int64_t i = 0; i < count; ++i) {
      std::copy_n(head_.Value(begin + i), value_dim_, n(i));
      Decay(k(i), g(i), nullptr, key_dim_, weights.data());
      for (int64_t c = 0; c < key_dim_; ++c) weights[c] = -weights[c];
      AddStateProduct(weights.data(), 1.0f, n(i));
      // beta multiplies both the right-hand side and A's row.
      for (int64_t j = 0; j < i; ++j) weights[j] = -beta_[i] * a_[i][j];
      AddWeightedRows(row_of_n, weights.data(), i, beta_[i], value_dim_, n(i));
    }
  }

  void WriteOutputs(int32_t begin, int64_t count) {
    std::vector<float> decayed(key_dim_);
    const auto row_of_n = [&](int64_t j) { return n(j); };
    for (int64_t i = 0; i < count; ++i) {
      float* out = head_.Out(begin + i);
      std::fill_n(out, value_dim_, 0.0f);
      Decay(q(i), g(i), nullptr, key_dim_, decayed.data());
      AddStateProduct(decayed.data(), 1.0f, out);
      AddWeightedRows(row_of_n, p_[i], i + 1, 1.0f, value_dim_, out);
    }
  }

  void UpdateState(int64_t count) {
    const float* last = g(count - 1);
    for (int64_t j = 0; j < count; ++j) {
      Decay(k(j), last, g(j), key_dim_, &scratch_[j * key_dim_]);
    }
    const auto row_of_n = [&](int64_t j) { return n(j); };
    float weights[kChunk];
    for (int64_t c = 0; c < key_dim_; ++c) {
      for (int64_t j = 0; j < count; ++j) {
        weights[j] = scratch_[j * key_dim_ + c];
      }
      AddWeightedRows(row_of_n, weights, count, Exp(last[c]), value_dim_,
                      head_.state() + c * value_dim_);
    }
  }

  float* q(int64_t i) { return &q_[i * key_dim_]; }
  float* k(int64_t i) { return &k_[i * key_dim_]; }
  float* g(int64_t i) { return &g_[i * key_dim_]; }
  float* n(int64_t i) { return &n_[i * value_dim_]; }

  const DeltaHead& head_;
  const int64_t key_dim_;
  const int64_t value_dim_;
  std::vector<float> q_, k_, g_;  // [kChunk, key_dim]; g_ is G
  std::vector<float> n_;          // [kChunk, value_dim]
  std::vector<float> scratch_;    // [kChunk, key_dim]
  float a_[kChunk][kChunk];       // without beta
  float p_[kChunk][kChunk];
  float beta_[kChunk];
};

}  // namespace

void RunChunked(const DeltaHead& head) {
  Chunk chunk(head);
  for (int32_t begin = head.begin(); begin < head.end(); begin += kChunk) {
    chunk.Run(begin, std::min<int64_t>(kChunk, head.end() - begin));
  }
}

}  // namespace switchyard::internal
