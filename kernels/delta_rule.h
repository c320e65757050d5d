// The gated delta rule (Yang et al. 2024, "Gated Delta Networks") with one
// decay per head, and its form with one decay per key channel (Kimi Delta
// Attention, 2025).
#ifndef SWITCHYARD_KERNELS_DELTA_RULE_H_
#define SWITCHYARD_KERNELS_DELTA_RULE_H_

#include "absl/status/status.h"
#include "kernels/op_context.h"
#include "kernels/tensor.h"
#include "kernels/varlen.h"

namespace switchyard {

enum class DecayKind : uint8_t {
  kPerHead,     // gdn: one log-decay per value head
  kPerChannel,  // kda: one per value head and key channel
};

enum class DeltaRuleAlgorithm : uint8_t {
  kAuto,       // the device's choice; on the CPU kRecurrent, always
  kRecurrent,  // token by token
  kChunked,    // chunks of 64 tokens in WY form
};

struct DeltaRuleArgs {
  VarlenBatch batch;
  SlotTable state;  // [num_value_heads, key_dim, value_dim] fp32 per sequence,
                    // read and updated
  DecayKind decay = DecayKind::kPerHead;
  DeltaRuleAlgorithm algorithm = DeltaRuleAlgorithm::kAuto;
  int32_t num_key_heads = 0;  // divides num_value_heads; value head h uses key
                              // head h / (value heads / key heads)
  int32_t num_value_heads = 0;
  int32_t key_dim = 0;    // per head
  int32_t value_dim = 0;  // per head

  // After the convolution, before any normalisation; activation type.
  MatrixView q;      // [num_tokens, num_key_heads * key_dim]
  MatrixView k;      // [num_tokens, num_key_heads * key_dim]
  MatrixView v;      // [num_tokens, num_value_heads * value_dim]
  MatrixView beta;   // [num_tokens, num_value_heads], before the sigmoid; fp32
                     // or activation type
  MatrixView alpha;  // decay input: [num_tokens, num_value_heads] or, per
                     // channel, [.., num_value_heads * key_dim]
  const float* a_log = nullptr;    // [num_value_heads]
  const float* dt_bias = nullptr;  // the shape of a row of alpha

  MatrixView
      out;  // [num_tokens, num_value_heads * value_dim] fp32 or activation type
};

// q and k are L2-normalised per head (x * rsqrt(sum x^2 + 1e-6)), q scaled by
// key_dim^-1/2; b = sigmoid(beta), g = -exp(a_log) * softplus(alpha + dt_bias).
// Then per value head and token, in order:
//   S <- exp(g) S;  S <- S + k (b (v - S^T k))^T;  out = S^T q
// from the sequence's stored S, which is replaced by the last one. Gates and S
// in fp32. kRecurrent gives a token the same bits wherever its prompt is cut
// into chunks; kChunked agrees with it up to rounding.
absl::Status DeltaRule(const OpContext& context, const DeltaRuleArgs& args);

}  // namespace switchyard

#endif  // SWITCHYARD_KERNELS_DELTA_RULE_H_
