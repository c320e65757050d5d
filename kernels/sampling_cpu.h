// The two halves of a random draw on the CPU: which tokens may be drawn, and
// which one is.
#ifndef SWITCHYARD_KERNELS_SAMPLING_CPU_H_
#define SWITCHYARD_KERNELS_SAMPLING_CPU_H_

#include <cstdint>
#include <vector>

#include "kernels/sampling.h"

namespace switchyard::internal {

struct Candidate {
  float logit;
  int32_t token;

  // The order of "largest": equal logits go by id.
  bool operator<(const Candidate& other) const {
    return logit != other.logit ? logit > other.logit : token < other.token;
  }
};

// What top_k and top_p of the row keep, in any order. Logits are already
// divided by the temperature, and at most 0.
std::vector<Candidate> KeepTop(const SamplingRow& row, const float* logits,
                               int64_t vocab);

// The argmax of logit + Gumbel noise over the candidates whose logit is at
// least `min_logit`. REQUIRES: there is one.
int32_t DrawFrom(const SamplingRow& row, const std::vector<Candidate>& kept,
                 float min_logit);
// The same over the whole vocabulary.
int32_t DrawFromAll(const SamplingRow& row, const float* logits, int64_t vocab,
                    float min_logit);

}  // namespace switchyard::internal

#endif  // SWITCHYARD_KERNELS_SAMPLING_CPU_H_
