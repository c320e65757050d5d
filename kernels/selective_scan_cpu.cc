#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/backends.h"
#include "kernels/cpu_math.h"
#include "kernels/cpu_parallel.h"

namespace switchyard::internal {
namespace {

// Channels of one work item.
constexpr int64_t kChannels = 32;

// s <- exp(dt a) s + (dt x) b; returns <s, c>. `n` is a whole number of lanes:
// what pads it is zero in b and c.
float Step(const float* a, const float* b, const float* c, float dt, float x,
           int64_t n, float* s) {
  F8 y = {};
  const float dt_x = dt * x;
  for (int64_t i = 0; i < n; i += kLanes) {
    float decay[kLanes];
    for (int64_t l = 0; l < kLanes; ++l) decay[l] = Exp(dt * a[i + l]);
    const F8 state = Load8(decay) * Load8(s + i) + Load8(b + i) * dt_x;
    Store8(s + i, state);
    y += state * Load8(c + i);
  }
  return Sum8(y);
}

// One sequence, channels [begin, end).
void ScanChannels(const SelectiveScanArgs& args, int32_t seq, int64_t begin,
                  int64_t end) {
  const int64_t state_size = args.state_size;
  const int64_t padded = (state_size + kLanes - 1) / kLanes * kLanes;
  const int64_t head_width = args.dt.cols / args.num_heads;
  const int64_t heads_per_b = args.num_heads / args.num_b_heads;
  const int64_t heads_per_x = args.num_heads / args.num_x_heads;
  float* state = reinterpret_cast<float*>(
      args.state.arena + int64_t{args.state.ids[seq]} * kCacheUnitBytes +
      args.state.offset);

  std::vector<float> a((end - begin) * padded), s((end - begin) * padded);
  for (int64_t i = begin; i < end; ++i) {
    float* a_row = &a[(i - begin) * padded];
    for (int64_t n = 0; n < state_size; ++n) {
      a_row[n] = -std::exp(args.a_log[i * state_size + n]);
    }
    std::copy_n(state + i * state_size, state_size, &s[(i - begin) * padded]);
  }
  std::vector<float> b(padded), c(padded);
  for (int32_t t = args.batch.token_offsets[seq];
       t < args.batch.token_offsets[seq + 1]; ++t) {
    const float* x = args.x.Row<const float>(t);
    const float* dt = args.dt.Row<const float>(t);
    const float* z = args.z.Row<const float>(t);
    float* out = args.out.Row<float>(t);
    float steps[kChannels];
    const int64_t count = end - begin;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) steps[i] = Softplus(dt[begin + i]);
    int64_t loaded_head = -1;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / head_width;
      if (head != loaded_head) {
        std::copy_n(
            args.b.Row<const float>(t) + head / heads_per_b * state_size,
            state_size, b.data());
        std::copy_n(args.c.Row<const float>(t) + head * state_size, state_size,
                    c.data());
        loaded_head = head;
      }
      const float input = x[head / heads_per_x * head_width + i % head_width];
      const float y =
          Step(&a[(i - begin) * padded], b.data(), c.data(), steps[i - begin],
               input, padded, &s[(i - begin) * padded]);
      out[i] = std::fma(args.d[i], input, y);
    }
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) out[i] *= Silu(z[i]);
  }
  for (int64_t i = begin; i < end; ++i) {
    std::copy_n(&s[(i - begin) * padded], state_size, state + i * state_size);
  }
}

}  // namespace

absl::Status SelectiveScanCpu(const OpContext& context,
                              const SelectiveScanArgs& args) {
  const int64_t d_inner = args.dt.cols;
  const int64_t num_groups = (d_inner + kChannels - 1) / kChannels;
  const int64_t work = kChannels * args.state_size * 16 *
                       (args.batch.num_tokens / args.batch.num_seqs + 1);
  ParallelForUneven(args.batch.num_seqs * num_groups, work, [&](int64_t item) {
    const int64_t begin = item % num_groups * kChannels;
    ScanChannels(args, static_cast<int32_t>(item / num_groups), begin,
                 std::min(begin + kChannels, d_inner));
  });
  return absl::OkStatus();
}

}  // namespace switchyard::internal
