#include "kernels/delta_rule_cpu.h"

#include <cmath>
#include <cstdint>

#include "kernels/backends.h"
#include "kernels/cpu_math.h"
#include "kernels/cpu_parallel.h"

namespace switchyard::internal {
namespace {

// out = x * scale / |x|.
void Normalise(const float* x, int64_t n, float scale, float* out) {
  constexpr float kEpsilon = 1e-6f;
  const float factor = scale / std::sqrt(Dot(x, x, n) + kEpsilon);
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] * factor;
}

}  // namespace

DeltaHead::DeltaHead(const DeltaRuleArgs& args, int32_t seq, int32_t head)
    : args_(args),
      seq_(seq),
      head_(head),
      key_head_(head / (args.num_value_heads / args.num_key_heads)) {}

float* DeltaHead::state() const {
  return reinterpret_cast<float*>(args_.state.arena +
                                  int64_t{args_.state.ids[seq_]} *
                                      kCacheUnitBytes +
                                  args_.state.offset) +
         head_ * key_dim() * value_dim();
}

void DeltaHead::ReadQuery(int32_t row, float* q) const {
  Normalise(args_.q.Row<const float>(row) + key_head_ * key_dim(), key_dim(),
            1.0f / std::sqrt(static_cast<float>(key_dim())), q);
}

void DeltaHead::ReadKey(int32_t row, float* k) const {
  Normalise(args_.k.Row<const float>(row) + key_head_ * key_dim(), key_dim(),
            1.0f, k);
}

void DeltaHead::ReadLogDecay(int32_t row, float* g) const {
  const float rate = -std::exp(args_.a_log[head_]);
  const float* alpha = args_.alpha.Row<const float>(row);
  const int64_t n = key_dim();
  if (!per_channel()) {
    const float decay = rate * Softplus(alpha[head_] + args_.dt_bias[head_]);
    for (int64_t c = 0; c < n; ++c) g[c] = decay;
    return;
  }
  const float* bias = args_.dt_bias + head_ * n;
  alpha += head_ * n;
#pragma omp simd
  for (int64_t c = 0; c < n; ++c) g[c] = rate * Softplus(alpha[c] + bias[c]);
}

float DeltaHead::Beta(int32_t row) const {
  return Sigmoid(args_.beta.Row<const float>(row)[head_]);
}

const float* DeltaHead::Value(int32_t row) const {
  return args_.v.Row<const float>(row) + head_ * value_dim();
}

float* DeltaHead::Out(int32_t row) const {
  return args_.out.Row<float>(row) + head_ * value_dim();
}

absl::Status DeltaRuleCpu(const OpContext& context, const DeltaRuleArgs& args) {
  const VarlenBatch& batch = args.batch;
  const int64_t work = int64_t{3} * args.key_dim * args.value_dim *
                       (batch.num_tokens / batch.num_seqs + 1);
  const bool chunked = args.algorithm == DeltaRuleAlgorithm::kChunked;
  // Longest last in a batch (decodes come first): they start first.
  const int64_t num_items = int64_t{batch.num_seqs} * args.num_value_heads;
  ParallelForUneven(num_items, work, [&](int64_t i) {
    const int64_t item = num_items - 1 - i;
    const DeltaHead head(args,
                         static_cast<int32_t>(item / args.num_value_heads),
                         static_cast<int32_t>(item % args.num_value_heads));
    if (chunked) {
      RunChunked(head);
    } else {
      RunRecurrent(head);
    }
  });
  return absl::OkStatus();
}

}  // namespace switchyard::internal
