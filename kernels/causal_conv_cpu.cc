#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/backends.h"
#include "kernels/cpu_math.h"
#include "kernels/cpu_parallel.h"

namespace switchyard::internal {
namespace {

// Channels that are convolved together, with taps and inputs side by side.
constexpr int64_t kChannels = 64;

// One sequence, channels [begin, begin + count).
void ConvolveChannels(const CausalConvArgs& args, int32_t seq, int64_t begin,
                      int64_t count) {
  const int64_t history = args.kernel_size - 1;
  float* state =
      reinterpret_cast<float*>(args.state.arena +
                               int64_t{args.state.ids[seq]} * kCacheUnitBytes +
                               args.state.offset) +
      begin * history;
  // Transposed: [kernel_size, kChannels] and [kernel_size - 1, kChannels],
  // oldest input first.
  std::vector<float> taps(args.kernel_size * kChannels);
  std::vector<float> inputs(history * kChannels);
  float bias[kChannels] = {};
  for (int64_t c = 0; c < count; ++c) {
    if (args.bias != nullptr) bias[c] = args.bias[begin + c];
    for (int64_t j = 0; j < args.kernel_size; ++j) {
      taps[j * kChannels + c] = args.weight[(begin + c) * args.kernel_size + j];
    }
    for (int64_t j = 0; j < history; ++j) {
      inputs[j * kChannels + c] = state[c * history + j];
    }
  }

  for (int32_t t = args.batch.token_offsets[seq];
       t < args.batch.token_offsets[seq + 1]; ++t) {
    const float* x = args.x.Row<const float>(t) + begin;
    float current[kChannels] = {};  // out may be x
    std::copy_n(x, count, current);
    float sums[kChannels];
    std::copy_n(bias, kChannels, sums);
    for (int64_t j = 0; j < history; ++j) {
      const float* tap = &taps[j * kChannels];
      const float* input = &inputs[j * kChannels];
      for (int64_t c = 0; c < kChannels; ++c) {
        sums[c] = std::fma(tap[c], input[c], sums[c]);
      }
    }
    const float* tap = &taps[history * kChannels];
    for (int64_t c = 0; c < kChannels; ++c) {
      sums[c] = std::fma(tap[c], current[c], sums[c]);
    }
    if (args.silu) {
      for (int64_t c = 0; c < kChannels; ++c) sums[c] = Silu(sums[c]);
    }
    std::copy_n(sums, count, args.out.Row<float>(t) + begin);
    std::memmove(inputs.data(), inputs.data() + kChannels,
                 (history - 1) * kChannels * sizeof(float));
    std::copy_n(current, kChannels, &inputs[(history - 1) * kChannels]);
  }

  for (int64_t c = 0; c < count; ++c) {
    for (int64_t j = 0; j < history; ++j) {
      state[c * history + j] = inputs[j * kChannels + c];
    }
  }
}

}  // namespace

absl::Status CausalConvCpu(const OpContext& context,
                           const CausalConvArgs& args) {
  const int64_t num_channels = args.x.cols;
  const int64_t num_groups = (num_channels + kChannels - 1) / kChannels;
  const int64_t work = kChannels * (args.kernel_size + 8) *
                       (args.batch.num_tokens / args.batch.num_seqs + 2);
  ParallelForUneven(args.batch.num_seqs * num_groups, work, [&](int64_t item) {
    const int64_t begin = item % num_groups * kChannels;
    ConvolveChannels(args, static_cast<int32_t>(item / num_groups), begin,
                     std::min(kChannels, num_channels - begin));
  });
  return absl::OkStatus();
}

}  // namespace switchyard::internal
