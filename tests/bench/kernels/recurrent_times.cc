// Timings of the delta rule and of the causal convolution.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/backends.h"
#include "tests/bench/kernels/harness.h"
#include "tests/bench/kernels/timings.h"

namespace switchyard::bench {
namespace {

// num_seqs sequences of num_new tokens, 32 value heads of 128 x 128.
void TimeDelta(Harness* h, DecayKind decay, int32_t num_seqs, int32_t num_new,
               DeltaRuleAlgorithm algorithm = DeltaRuleAlgorithm::kAuto) {
  const bool gdn = decay == DecayKind::kPerHead;
  const int64_t state_bytes = int64_t{32} * 128 * 128 * 4;
  const int sets = static_cast<int>(
      std::max<int64_t>(1, 400'000'000 / (state_bytes * num_seqs)));
  // Each state once in a graph: a kernel may read it before the one before
  // ends.
  const int num_sets = num_new > 1 ? Harness::kGraphCalls
                                   : std::clamp(sets, Harness::kGraphCalls, 64);
  const Tensor arena =
      h->Large(int64_t{num_sets} * num_seqs, state_bytes / 4, DType::kF32);
  std::vector<uint32_t> ids;
  for (int64_t i = 0; i < int64_t{num_sets} * num_seqs; ++i)
    ids.push_back(static_cast<uint32_t>(i * state_bytes / kCacheUnitBytes));
  const DeviceBuffer device_ids = h->Upload(ids);
  std::vector<int32_t> offsets;
  for (int32_t s = 0; s <= num_seqs; ++s) offsets.push_back(s * num_new);
  const DeviceBuffer device_offsets = h->Upload(offsets);
  const int64_t tokens = int64_t{num_seqs} * num_new;
  const int32_t key_heads = gdn ? 8 : 32;
  const Tensor qkv = h->Large(tokens, 128 * (2 * key_heads + 32), DType::kBF16);
  const Tensor beta = h->Large(tokens, 32, DType::kBF16);
  const Tensor alpha = h->Large(tokens, gdn ? 32 : 4096, DType::kBF16);
  const Tensor a_log = h->Large(1, 32, DType::kF32);
  const Tensor dt_bias = h->Large(1, 4096, DType::kF32);
  const Tensor out = h->Large(tokens, 4096, DType::kBF16);
  DeltaRuleArgs args;
  args.batch.num_seqs = num_seqs;
  args.batch.num_decodes = num_new == 1 ? num_seqs : 0;
  args.batch.num_tokens = static_cast<int32_t>(tokens);
  args.batch.max_new_tokens = num_new;
  args.batch.host_token_offsets = offsets.data();
  args.algorithm = algorithm;
  args.batch.token_offsets = reinterpret_cast<int32_t*>(device_offsets.get());
  args.state.arena = arena.buffer.get();
  args.decay = decay;
  args.num_key_heads = key_heads;
  args.num_value_heads = 32;
  args.key_dim = 128;
  args.value_dim = 128;
  args.q = qkv.view.Columns(0, 128 * key_heads);
  args.k = qkv.view.Columns(128 * key_heads, 128 * key_heads);
  args.v = qkv.view.Columns(256 * key_heads, 4096);
  args.beta = beta.view;
  args.alpha = alpha.view;
  args.a_log = static_cast<const float*>(a_log.view.data);
  args.dt_bias = static_cast<const float*>(dt_bias.view.data);
  args.out = out.view;
  const auto run = [&](int s) {
    args.state.ids =
        reinterpret_cast<uint32_t*>(device_ids.get()) + int64_t{s} * num_seqs;
    Ok(internal::DeltaRuleCuda(h->context(), args));
  };
  if (num_new == 1) {
    h->Time(absl::StrCat(gdn ? "gdn" : "kda", " decode batch ", num_seqs),
            num_sets, 2.0 * state_bytes * num_seqs, Roof::kCopy, run);
  } else {
    // Inputs and output once; the ceiling is not the point here, the time is.
    h->Time(
        absl::StrCat(gdn ? "gdn" : "kda", " prefill ", num_seqs, " x ", num_new,
                     algorithm == DeltaRuleAlgorithm::kRecurrent ? " recurrent"
                     : algorithm == DeltaRuleAlgorithm::kChunked ? " chunked"
                                                                 : ""),
        num_sets,
        2.0 * tokens *
            (128 * (2 * key_heads + 32) + 4096 + (gdn ? 64 : 4096 + 32)),
        Roof::kCopy, run);
  }
}

void TimeConv(Harness* h, int32_t num_seqs, int32_t num_new) {
  const int64_t channels = 6144, tokens = int64_t{num_seqs} * num_new;
  const int64_t slot_bytes = channels * 3 * 4;
  constexpr int kSets = Harness::kGraphCalls;
  const Tensor arena = h->Large(kSets * num_seqs, slot_bytes / 4, DType::kF32);
  std::vector<uint32_t> ids;
  std::vector<int32_t> offsets = {0};
  for (int32_t i = 0; i < kSets * num_seqs; ++i)
    ids.push_back(static_cast<uint32_t>(i * slot_bytes / kCacheUnitBytes));
  for (int32_t s = 0; s < num_seqs; ++s)
    offsets.push_back(offsets.back() + num_new);
  const DeviceBuffer device_ids = h->Upload(ids),
                     device_offsets = h->Upload(offsets);
  const Tensor x = h->Large(tokens, channels, DType::kBF16);
  const Tensor weight = h->Large(channels, 4, DType::kF32);
  // Not in place: the values would wander off from one replay to the next.
  const Tensor out = h->Large(tokens, channels, DType::kBF16);
  CausalConvArgs args;
  args.batch.num_seqs = num_seqs;
  args.batch.num_decodes = num_new == 1 ? num_seqs : 0;
  args.batch.num_tokens = static_cast<int32_t>(tokens);
  args.batch.token_offsets = reinterpret_cast<int32_t*>(device_offsets.get());
  args.state = {arena.buffer.get(),
                reinterpret_cast<uint32_t*>(device_ids.get()), 0};
  args.x = x.view;
  args.weight = static_cast<const float*>(weight.view.data);
  args.kernel_size = 4;
  args.out = out.view;
  h->Time(absl::StrCat("conv ", num_seqs, " x ", num_new, " x 6144"), kSets,
          4.0 * tokens * channels + 2.0 * num_seqs * slot_bytes, Roof::kCopy,
          [&](int s) {
            args.state.ids = reinterpret_cast<uint32_t*>(device_ids.get()) +
                             int64_t{s} * num_seqs;
            Ok(internal::CausalConvCuda(h->context(), args));
          });
}

}  // namespace

void TimeRecurrent(Harness* h) {
  for (const DecayKind decay : {DecayKind::kPerHead, DecayKind::kPerChannel}) {
    for (const int32_t batch : {1, 4, 8, 16, 32, 64, 256})
      TimeDelta(h, decay, batch, 1);
    for (const int32_t tokens : {8192, 32768}) TimeDelta(h, decay, 1, tokens);
    TimeDelta(h, decay, 16, 2048);
    for (const int32_t tokens : {4, 8, 16, 32, 64}) {
      for (const DeltaRuleAlgorithm algorithm :
           {DeltaRuleAlgorithm::kRecurrent, DeltaRuleAlgorithm::kChunked})
        TimeDelta(h, decay, 1, tokens, algorithm);
    }
  }
  for (const int32_t batch : {1, 64, 256}) TimeConv(h, batch, 1);
  TimeConv(h, 1, 8192);
}

}  // namespace switchyard::bench
