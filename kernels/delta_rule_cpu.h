// The two algorithms of the delta rule on the CPU, and what both read.
#ifndef SWITCHYARD_KERNELS_DELTA_RULE_CPU_H_
#define SWITCHYARD_KERNELS_DELTA_RULE_CPU_H_

#include <cstdint>

#include "kernels/delta_rule.h"

namespace switchyard::internal {

// One value head of one sequence.
class DeltaHead {
 public:
  DeltaHead(const DeltaRuleArgs& args, int32_t seq, int32_t head);

  int64_t key_dim() const { return args_.key_dim; }
  int64_t value_dim() const { return args_.value_dim; }
  bool per_channel() const { return args_.decay == DecayKind::kPerChannel; }
  int32_t begin() const { return args_.batch.token_offsets[seq_]; }
  int32_t end() const { return args_.batch.token_offsets[seq_ + 1]; }

  float* state() const;                         // [key_dim, value_dim]
  void ReadQuery(int32_t row, float* q) const;  // normalised and scaled
  void ReadKey(int32_t row, float* k) const;    // normalised
  // The log-decay, in all key_dim channels.
  void ReadLogDecay(int32_t row, float* g) const;
  float Beta(int32_t row) const;  // in (0, 1)
  const float* Value(int32_t row) const;
  float* Out(int32_t row) const;

 private:
  const DeltaRuleArgs& args_;
  const int32_t seq_;
  const int32_t head_;
  const int32_t key_head_;
};

// Token by token: the state is read and written once a token.
void RunRecurrent(const DeltaHead& head);

// Chunks of 64 tokens: products of small matrices.
void RunChunked(const DeltaHead& head);

}  // namespace switchyard::internal

#endif  // SWITCHYARD_KERNELS_DELTA_RULE_CPU_H_
