#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/cpu_math.h"
#include "kernels/sampling_cpu.h"

namespace switchyard::internal {
namespace {

// Cuts `kept` to the smallest set of largest ones whose probability reaches
// top_p. Most of a distribution sits in few tokens: only as many are put in
// order as are needed, four times more whenever they do not suffice.
void KeepTopP(float top_p, std::vector<Candidate>* kept) {
  double total = 0;
  for (const Candidate& c : *kept) total += Exp(c.logit);
  const double wanted = top_p * total;

  const auto begin = kept->begin();
  const int64_t size = kept->size();
  double reached = 0;
  int64_t sorted = 0;
  for (int64_t next = std::min<int64_t>(64, size); sorted < size;
       next = std::min(4 * next, size)) {
    if (next < size) {
      std::nth_element(begin + sorted, begin + next, kept->end());
    }
    std::sort(begin + sorted, begin + next);
    for (; sorted < next; ++sorted) {
      reached += Exp((*kept)[sorted].logit);
      if (reached >= wanted) {
        kept->resize(sorted + 1);
        return;
      }
    }
  }
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
