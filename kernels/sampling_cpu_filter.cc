#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "kernels/cpu_math.h"
#include "kernels/sampling_cpu.h"

namespace switchyard::internal {
namespace {

// Cuts `kept` to the smallest set of largest ones whose probability reaches
// top_p. Buckets of nearly equal logits are taken whole from the top; only the
// one where the sum is reached has to be put in order.
void KeepTopP(float top_p, std::vector<Candidate>* kept) {
  constexpr int kBuckets = 1024;
  constexpr float kBucketsPerUnit = 32;  // the last bucket: e^-32 and less
  const auto bucket_of = [](float logit) {
    return static_cast<int>(
        std::min<float>(-logit * kBucketsPerUnit, kBuckets - 1));
  };
  std::vector<double> mass(kBuckets);
  for (const Candidate& c : *kept) mass[bucket_of(c.logit)] += Exp(c.logit);
  const double wanted = top_p * std::accumulate(mass.begin(), mass.end(), 0.0);
  double reached = 0;
  int last = 0;
  while (last < kBuckets - 1 && reached + mass[last] < wanted) {
    reached += mass[last++];
  }
  const auto rest = std::partition(
      kept->begin(), kept->end(),
      [&](const Candidate& c) { return bucket_of(c.logit) < last; });
  const auto end = std::partition(rest, kept->end(), [&](const Candidate& c) {
    return bucket_of(c.logit) == last;
  });
  std::sort(rest, end);
  auto next = rest;
  while (next != end && reached < wanted) reached += Exp((next++)->logit);
  kept->erase(next, kept->end());
}

}  // namespace

std::vector<Candidate> KeepTop(const SamplingRow& row, const float* logits,
                               int64_t vocab) {
  std::vector<Candidate> kept(vocab);
  for (int64_t t = 0; t < vocab; ++t) {
    kept[t] = {logits[t], static_cast<int32_t>(t)};
  }
  if (row.top_k > 0 && row.top_k < vocab) {
    std::nth_element(kept.begin(), kept.begin() + row.top_k, kept.end());
    kept.resize(row.top_k);
  }
  if (row.top_p < 1) KeepTopP(row.top_p, &kept);
  return kept;
}

}  // namespace switchyard::internal
