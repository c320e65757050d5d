// Sampling of the next token, on the device. Every rank holds the same logits
// and draws the same token.
#ifndef SWITCHYARD_KERNELS_SAMPLING_H_
#define SWITCHYARD_KERNELS_SAMPLING_H_

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/op_context.h"
#include "kernels/tensor.h"

namespace switchyard {

// One row's parameters; plain data, copied to the device as it is.
struct SamplingRow {
  float temperature = 1;  // 0: greedy
  float top_p = 1;        // (0, 1]
  float min_p = 0;        // [0, 1]
  int32_t top_k = 0;      // 0: off
  float frequency_penalty = 0;
  float presence_penalty = 0;
  float repetition_penalty = 1;
  int32_t counts_row = -1;  // row of `counts`, -1: no penalties
  uint64_t seed = 0;
  // Tokens generated before this one: the counter of the random stream.
  uint32_t draw = 0;
  int32_t bias_begin = 0;  // range of the row in bias_ids / bias_values
  int32_t bias_end = 0;
};

// counts[r][t]: bit 15: t appears in the prompt; bits 0-14: times generated
// (saturating).
constexpr uint16_t kCountsPromptBit = 0x8000;

// In place of a token id: the row has none. Other ops take it as an id that no
// token has: Embedding gives zeros, Logprobs NaN.
constexpr int32_t kNoToken = -1;

struct SamplingArgs {
  MatrixView logits;                  // [rows, vocab] fp32; left changed
  const SamplingRow* rows = nullptr;  // [rows] on the device
  // The same on the host (to choose kernels); null inside a captured graph.
  const SamplingRow* host_rows = nullptr;
  const int32_t* bias_ids = nullptr;  // token ids whose logits get a bias added
  const float* bias_values = nullptr;  // -infinity forbids a token (min_tokens)
  // [num_counts_rows, vocab]; the drawn token is counted.
  uint16_t* counts = nullptr;
  int32_t* token_ids = nullptr;  // [rows] out, kNoToken where there is none
};

// Per row:
//   1. l += bias; repetition penalty r on tokens of prompt or output (l > 0 ? l
//      / r : l * r); l -= frequency * count + presence * (count > 0) (generated
//      tokens only). NaN counts as -infinity. If the largest l is infinite
//      then, either way, no draw means anything: the token is kNoToken, and
//      nothing is counted.
//   2. Greedy (temperature 0): the largest l.
//   3. l = (l - max l) / temperature, then keep the top_k largest; of those the
//      smallest set of largest ones whose probability, renormalised over the
//      top_k, reaches top_p; of those the ones with p >= min_p * max p.
//   4. Draw by Gumbel-max: argmax of l_t + G_t over the kept t, with G_t =
//      -log(-log u), u = (w + 1/2) / 2^32, and w word t % 4 of Philox4x32-10
//      keyed by seed at counter (t / 4, draw, 0, 0) (philox.h). -log u of a u
//      near 1 has to keep its relative precision: in double, or by log1p.
// Wherever logits are equal, in "largest" and in the draw, the lower id wins.
// So a draw depends on nothing but its row, and no sort is needed to make it.
absl::Status Sample(const OpContext& context, const SamplingArgs& args);

}  // namespace switchyard

#endif  // SWITCHYARD_KERNELS_SAMPLING_H_
