// Timings of attention: decode and prefill, the latter also without the passes
// around its kernel.
#include <algorithm>
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/backends.h"
#include "kernels/paged_attention_cuda.h"
#include "tests/bench/kernels/harness.h"
#include "tests/bench/kernels/rope_table.h"
#include "tests/bench/kernels/timings.h"

namespace switchyard::bench {
namespace {

// Caches of `batch` sequences of `context` positions, num_sets of them.
class TimedAttention {
 public:
  TimedAttention(Harness* h, int32_t batch, int32_t context, int32_t num_new,
                 int32_t window)
      : h_(h), batch_(batch), context_(context), num_new_(num_new) {
    const int64_t set_bytes =
        int64_t{batch} * context * kKvHeads * kHeadSize * 4;
    num_sets_ = static_cast<int>(
        std::max<int64_t>(1, 300'000'000 / std::max<int64_t>(set_bytes, 1)));
    num_sets_ = std::min(num_sets_, 40);
    const int32_t stride = (context + num_new + kBlock - 1) / kBlock;
    const int64_t block_elements = 2 * kKvHeads * kBlock * kHeadSize;
    const int64_t num_blocks = int64_t{num_sets_} * batch * stride;
    arena_ = h->Large(num_blocks, block_elements, DType::kBF16);
    std::vector<uint32_t> ids(num_blocks);
    for (int64_t i = 0; i < num_blocks; ++i)
      ids[i] = static_cast<uint32_t>(i * block_elements * 2 / kCacheUnitBytes);
    // Scattered, as in a server that has run for a while.
    std::shuffle(ids.begin(), ids.end(), h->random());
    ids_ = h->Upload(ids);
    std::vector<int32_t> offsets, contexts(batch, context), positions, begins;
    for (int32_t s = 0; s <= batch; ++s) offsets.push_back(s * num_new);
    // Of every set, one after another.
    for (int32_t s = 0; s <= num_sets_ * batch; ++s)
      begins.push_back(s * stride);
    begins_ = h->Upload(begins);
    for (int32_t i = 0; i < batch * num_new; ++i)
      positions.push_back(context + i % num_new);
    offsets_ = h->Upload(offsets);
    contexts_ = h->Upload(contexts);
    positions_ = h->Upload(positions);
    table_ = h->Upload(RopeTable(context + num_new, kHeadSize));
    qkv_ = h->Large(batch * num_new, 6144, DType::kBF16);
    out_ = h->Large(batch * num_new, 4096, DType::kBF16);
    args_.batch.num_seqs = batch;
    args_.batch.num_decodes = num_new == 1 ? batch : 0;
    args_.batch.num_tokens = batch * num_new;
    args_.batch.token_offsets = reinterpret_cast<int32_t*>(offsets_.get());
    args_.batch.context_lens = reinterpret_cast<int32_t*>(contexts_.get());
    args_.batch.positions = reinterpret_cast<int32_t*>(positions_.get());
    args_.batch.max_total_tokens = context + num_new;
    args_.blocks.arena = arena_.buffer.get();
    args_.blocks.ids = reinterpret_cast<uint32_t*>(ids_.get());
    args_.blocks.begins = reinterpret_cast<int32_t*>(begins_.get());
    args_.blocks.block_size = kBlock;
    args_.kv_dtype = DType::kBF16;
    args_.num_heads = 32;
    args_.num_kv_heads = kKvHeads;
    args_.head_size = kHeadSize;
    args_.window = window;
    args_.scale = 0.0883883f;
    args_.q = qkv_.view.Columns(0, 4096);
    args_.k = qkv_.view.Columns(4096, 1024);
    args_.v = qkv_.view.Columns(5120, 1024);
    args_.rope_table = reinterpret_cast<float*>(table_.get());
    args_.rope_positions = context + num_new;
    args_.out = out_.view;
  }

  int num_sets() const { return num_sets_; }
  // Scores and values alone, without the passes around them.
  void RunPrefill() {
    args_.blocks.begins = reinterpret_cast<int32_t*>(begins_.get());
    Ok(internal::AttentionPrefillWgmma(h_->context(), args_, 0));
  }
  void Run(int set) {
    args_.blocks.begins =
        reinterpret_cast<int32_t*>(begins_.get()) + set * batch_;
    Ok(internal::PagedAttentionCuda(h_->context(), args_));
  }

 private:
  static constexpr int32_t kKvHeads = 8, kHeadSize = 128, kBlock = 16;
  Harness* const h_;
  const int32_t batch_, context_, num_new_;
  int num_sets_ = 1;
  Tensor arena_, qkv_, out_;
  DeviceBuffer ids_, begins_, offsets_, contexts_, positions_, table_;
  PagedAttentionArgs args_;
};

}  // namespace

void TimeAttention(Harness* h) {
  for (const auto& [batch, context] :
       {std::pair(1, 2048), std::pair(16, 2048), std::pair(1, 32768),
        std::pair(8, 32768), std::pair(16, 32768), std::pair(64, 4096),
        std::pair(64, 512)}) {
    TimedAttention timed(h, batch, context, 1, 0);
    h->Time(absl::StrCat("attention decode ", batch, " x ", context),
            timed.num_sets(), double{4096} * batch * context, Roof::kRead,
            [&](int s) { timed.Run(s); });
  }
  for (const auto& [context, num_new, window] :
       {std::tuple(0, 2048, 0), std::tuple(0, 8192, 0), std::tuple(0, 32768, 0),
        std::tuple(24576, 8192, 0), std::tuple(0, 32768, 4096)}) {
    TimedAttention timed(h, 1, context, num_new, window);
    const double keys = window > 0
                            ? static_cast<double>(window)
                            : context + num_new / 2.0;  // that a query sees
    h->Time(absl::StrCat("attention prefill ", num_new, " after ", context,
                         window > 0 ? " window 4096" : ""),
            1, 4.0 * 32 * 128 * num_new * keys, Roof::kGemm,
            [&](int s) { timed.Run(s); });
    h->Time(absl::StrCat("the same, the kernel alone, ", num_new, " after ",
                         context, window > 0 ? " window 4096" : ""),
            1, 4.0 * 32 * 128 * num_new * keys, Roof::kGemm,
            [&](int) { timed.RunPrefill(); });
  }
}

}  // namespace switchyard::bench
