// One cluster per row. Thresholds for top_k and top_p come from a radix
// selection on the row in shared memory; the draw is an argmax, so nothing is
// ever sorted.
#include <cmath>

#include "kernels/backends.h"
#include "kernels/cuda_common.h"
#include "kernels/cuda_vocab.h"
#include "kernels/philox.h"

namespace switchyard::internal {
namespace {

using namespace switchyard::cuda;

// -log(-log u) with u = (word + 1/2) / 2^32, in fp32 without loss at either
// end.
__device__ __forceinline__ float Gumbel(uint32_t word) {
  const float below = (static_cast<float>(word) + 0.5f) * 0x1p-32f;
  const float above = (static_cast<float>(~word) + 0.5f) * 0x1p-32f;  // 1 - u
  const float exponential = word < 0x80000000u ? -logf(below) : -log1pf(-above);
  return -logf(exponential);
}

// The row's slice with bias and penalties; the largest key.
__device__ uint64_t LoadRow(const SamplingArgs& args, const SamplingRow& row,
                            int64_t index, VocabShared* shared,
                            VocabRow& vocab) {
  const float* logits = RowOf<float>(args.logits, index) + vocab.begin();
#pragma unroll 8
  for (int i = threadIdx.x; i < vocab.size(); i += kVocabThreads)
    shared->logits[i] = logits[i];
  __syncthreads();
  for (int i = row.bias_begin + threadIdx.x; i < row.bias_end;
       i += kVocabThreads) {
    const int32_t at = args.bias_ids[i] - vocab.begin();
    if (at >= 0 && at < vocab.size())
      atomicAdd(&shared->logits[at], args.bias_values[i]);
  }
  __syncthreads();
  const uint16_t* counts =
      row.counts_row < 0
          ? nullptr
          : args.counts + row.counts_row * args.logits.cols + vocab.begin();
  uint64_t best = 0;
  for (int i = threadIdx.x; i < vocab.size(); i += kVocabThreads) {
    float l = shared->logits[i];
    if (counts != nullptr && counts[i] != 0) {
      const int generated = counts[i] & ~kCountsPromptBit;
      l = l > 0 ? l / row.repetition_penalty : l * row.repetition_penalty;
      l -= row.frequency_penalty * generated +
           (generated > 0 ? row.presence_penalty : 0.0f);
    }
    if (isnan(l)) l = -INFINITY;
    shared->logits[i] = l;
    best = max(best, RankKey(l, vocab.begin() + i));
  }
  return vocab.MaxKey(best);
}

// Draws among the entries that top_k, top_p and min_p leave.
__device__ uint64_t Draw(const SamplingRow& row, float top, int32_t num_logits,
                         VocabShared* shared, VocabRow& vocab) {
  for (int i = threadIdx.x; i < vocab.size(); i += kVocabThreads)
    shared->logits[i] = (shared->logits[i] - top) / row.temperature;
  __syncthreads();
  uint64_t floor = 0;
  if (row.top_k > 0 && row.top_k < num_logits)
    floor = vocab.Select(floor, row.top_k, 0);
  if (row.top_p < 1) floor = vocab.Select(floor, 0, row.top_p);
  const float min_logit = logf(row.min_p);

  uint64_t best = 0;
  for (int i = 4 * threadIdx.x; i < vocab.size(); i += 4 * kVocabThreads) {
    bool kept[4], any = false;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      kept[j] =
          i + j < vocab.size() &&
          RankKey(shared->logits[i + j], vocab.begin() + i + j) >= floor &&
          shared->logits[i + j] >= min_logit;
      any = any || kept[j];
    }
    if (!any) continue;
    const PhiloxBlock words =
        SamplingWords(row.seed, row.draw, (vocab.begin() + i) / 4);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (kept[j])
        best = max(best, RankKey(shared->logits[i + j] + Gumbel(words.word[j]),
                                 vocab.begin() + i + j));
    }
  }
  return vocab.MaxKey(best);
}

__global__ void __cluster_dims__(kVocabBlocks, 1, 1)
    __launch_bounds__(kVocabThreads, 1) SampleKernel(const SamplingArgs args) {
  extern __shared__ __align__(16) uint8_t raw[];
  VocabShared* shared = reinterpret_cast<VocabShared*>(raw);
  GridTrigger();
  GridWait();
  const int64_t index = blockIdx.x / kVocabBlocks;
  const SamplingRow row = args.rows[index];
  const int32_t num_logits = static_cast<int32_t>(args.logits.cols);
  VocabRow vocab(shared, num_logits);
  uint64_t best = LoadRow(args, row, index, shared, vocab);
  const float top = LogitOfKey(best);
  const bool has_token = isfinite(top);
  if (row.temperature > 0 && has_token)
    best = Draw(row, top, num_logits, shared, vocab);
  if (vocab.is_first_block() && threadIdx.x == 0) {
    const int32_t token =
        has_token ? static_cast<int32_t>(IdOfKey(best)) : kNoToken;
    args.token_ids[index] = token;
    if (row.counts_row >= 0 && has_token) {
      uint16_t& count = args.counts[row.counts_row * args.logits.cols + token];
      if ((count & ~kCountsPromptBit) != kCountsPromptBit - 1) ++count;
    }
  }
  vocab.Sync();  // no block leaves while another reads its shared memory
}

}  // namespace

absl::Status SampleCuda(const OpContext& context, const SamplingArgs& args) {
  const int64_t shared_bytes =
      VocabRow::SharedBytes(static_cast<int32_t>(args.logits.cols));
  if (shared_bytes > AsCuda(context.device)->max_shared_bytes()) {
    return absl::UnimplementedError(
        absl::StrCat("Sample: a vocabulary of ", args.logits.cols,
                     " on CUDA; it must fit in the shared memory of ",
                     kVocabBlocks, " SMs"));
  }
  return Launch(context, "Sample", SampleKernel,
                {dim3(args.logits.rows * kVocabBlocks), dim3(kVocabThreads),
                 shared_bytes},
                args);
}

}  // namespace switchyard::internal
