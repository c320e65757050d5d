#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/philox.h"
#include "kernels/sampling_cpu.h"

namespace switchyard::internal {
namespace {

// -log(-log u) with u = (word + 1/2) / 2^32.
double Gumbel(uint32_t word) {
  const double u = (word + 0.5) * 0x1p-32;
  return -std::log(-std::log(u));
}

// log x for normal x > 0, to about 1e-4: enough to tell which few tokens can
// win a draw.
float RoughLog(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const float exponent =
      static_cast<float>(static_cast<int32_t>(bits >> 23) - 127);
  bits = (bits & 0x007fffffu) | 0x3f800000u;
  float m;  // in [1, 2)
  std::memcpy(&m, &bits, sizeof(m));
  // log m = 2 atanh((m - 1) / (m + 1)), three terms: 1.5e-4 at m = 2.
  const float s = (m - 1.0f) / (m + 1.0f);
  const float s2 = s * s;
  return exponent * 0.69314718f +
         2.0f * s * (1.0f + s2 * (0.33333333f + s2 * 0.2f));
}

// (word + 1/2) / 2^32, relatively precise where that is small.
float SmallUniform(uint32_t word) {
  const float high = static_cast<float>(static_cast<int32_t>(word >> 1));
  const float low = static_cast<float>(static_cast<int32_t>(word & 1));
  return (high + (0.5f * low + 0.25f)) * 0x1p-31f;
}

// Gumbel(word) to about 1e-3.
float RoughGumbel(uint32_t word) {
  const float u = SmallUniform(word);
  const float v = SmallUniform(~word);  // 1 - u, precise where u is near 1
  const float exponential = v < 0.02f ? v + 0.5f * v * v : -RoughLog(u);
  return -RoughLog(exponential);
}
constexpr float kRoughMargin = 0.01f;

class Winner {
 public:
  void Offer(double score, int32_t token) {
    if (token_ < 0 || score > score_ || (score == score_ && token < token_)) {
      score_ = score;
      token_ = token;
    }
  }
  int32_t token() const { return token_; }

 private:
  double score_ = 0;
  int32_t token_ = -1;
};

uint32_t WordOf(const SamplingRow& row, int32_t token) {
  return SamplingWords(row.seed, row.draw, token / 4).word[token % 4];
}

}  // namespace

int32_t DrawFrom(const SamplingRow& row, const std::vector<Candidate>& kept,
                 float min_logit) {
  Winner winner;
  for (const Candidate& c : kept) {
    if (c.logit >= min_logit) {
      winner.Offer(c.logit + Gumbel(WordOf(row, c.token)), c.token);
    }
  }
  return winner.token();
}

int32_t DrawFromAll(const SamplingRow& row, const float* logits, int64_t vocab,
                    float min_logit) {
  // Two logarithms in double per token of the vocabulary would dominate a step
  // of a small model: a rough score first, the exact one for those in reach.
  const int64_t num_groups = (vocab + 3) / 4;
  std::vector<uint32_t> words(4 * num_groups);
  for (int64_t g = 0; g < num_groups; ++g) {
    const PhiloxBlock block =
        SamplingWords(row.seed, row.draw, static_cast<uint32_t>(g));
    std::memcpy(&words[4 * g], block.word, sizeof(block.word));
  }
  std::vector<float> rough(vocab);
  for (int64_t t = 0; t < vocab; ++t) {
    rough[t] =
        logits[t] >= min_logit ? logits[t] + RoughGumbel(words[t]) : -HUGE_VALF;
  }
  const float threshold =
      *std::max_element(rough.begin(), rough.end()) - 2 * kRoughMargin;
  Winner winner;
  for (int64_t t = 0; t < vocab; ++t) {
    if (rough[t] < threshold || logits[t] < min_logit) continue;
    winner.Offer(logits[t] + Gumbel(words[t]), static_cast<int32_t>(t));
  }
  return winner.token();
}

}  // namespace switchyard::internal
