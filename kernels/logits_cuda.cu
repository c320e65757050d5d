#include "kernels/backends.h"
#include "kernels/cuda_common.h"
#include "kernels/cuda_vocab.h"

namespace switchyard::internal {
namespace {

using namespace switchyard::cuda;

// Block (chunk of columns, row).
template <int Width>
__global__ void __launch_bounds__(256)
    JoinKernel(const float* shards, int64_t shard_cols, int64_t rows,
               int64_t cols, float* out, int64_t out_stride) {
  GridTrigger();
  GridWait();
  const int64_t column = (int64_t{blockIdx.x} * 256 + threadIdx.x) * Width;
  if (column >= cols) return;
  const int64_t row = blockIdx.y, shard = column / shard_cols;
  float x[Width];
  Load<Width>(shards + (shard * rows + row) * shard_cols + column % shard_cols,
              x);
  Store<Width>(out + row * out_stride + column, x);
}

__global__ void __cluster_dims__(kVocabBlocks, 1, 1)
    __launch_bounds__(kVocabThreads, 1)
        LogprobsKernel(const LogprobsArgs args) {
  extern __shared__ __align__(16) uint8_t raw[];
  VocabShared* shared = reinterpret_cast<VocabShared*>(raw);
  __shared__ uint64_t found[kMaxTopLogprobs];
  __shared__ int num_found;
  GridTrigger();
  GridWait();
  const int64_t row = blockIdx.x / kVocabBlocks;
  const int32_t num_logits = static_cast<int32_t>(args.logits.cols);
  const float* logits = RowOf<float>(args.logits, row);
  VocabRow vocab(shared, num_logits);
  uint64_t best = 0;
  for (int i = threadIdx.x; i < vocab.size(); i += kVocabThreads) {
    const float l = logits[vocab.begin() + i];
    shared->logits[i] = l;
    best = max(best, RankKey(l, vocab.begin() + i));
  }
  const float top = LogitOfKey(vocab.MaxKey(best));
  float sum = 0;
  for (int i = threadIdx.x; i < vocab.size(); i += kVocabThreads)
    sum += expf(shared->logits[i] - top);
  const float log_sum = top + logf(vocab.Sum(sum));
  if (vocab.is_first_block() && threadIdx.x == 0) {
    const int32_t target = args.targets[row];
    args.target_logprobs[row] =
        target >= 0 && target < num_logits ? logits[target] - log_sum : NAN;
  }
  if (args.num_top > 0) {
    const uint64_t floor = vocab.Select(0, args.num_top, 0);
    // Every block lists its own; the first puts them all in order.
    if (threadIdx.x == 0) num_found = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < vocab.size(); i += kVocabThreads) {
      const uint64_t key = RankKey(shared->logits[i], vocab.begin() + i);
      if (key >= floor) {
        const int at = atomicAdd(&num_found, 1);
        if (at < kMaxTopLogprobs) found[at] = key;
      }
    }
    vocab.Sync();
    if (vocab.is_first_block()) {
      const auto cluster = cooperative_groups::this_cluster();
      for (int b = threadIdx.x; b < kVocabBlocks; b += kVocabThreads) {
        const int count = *cluster.map_shared_rank(&num_found, b);
        for (int i = 0; i < count && i < args.num_top; ++i) {
          const uint64_t key = *cluster.map_shared_rank(&found[i], b);
          int place = 0;
          for (int other = 0; other < kVocabBlocks; ++other) {
            const int others = *cluster.map_shared_rank(&num_found, other);
            for (int j = 0; j < others && j < args.num_top; ++j)
              place += *cluster.map_shared_rank(&found[j], other) > key;
          }
          if (place < args.num_top) {
            const int64_t to = row * args.num_top + place;
            args.top_ids[to] = static_cast<int32_t>(IdOfKey(key));
            args.top_logprobs[to] = LogitOfKey(key) - log_sum;
          }
        }
      }
    }
  }
  vocab.Sync();  // no block leaves while another reads its shared memory
}

}  // namespace

absl::Status JoinShardsCuda(const OpContext& context,
                            const JoinShardsArgs& args) {
  const bool aligned = args.shard_cols % 4 == 0 && args.out.cols % 4 == 0 &&
                       AlignedTo(args.out, 16) &&
                       reinterpret_cast<uintptr_t>(args.shards) % 16 == 0;
  return DispatchWidth<4>(aligned, [&](auto width) {
    constexpr int kWidth = decltype(width)::value;
    return Launch(
        context, "JoinShards", JoinKernel<kWidth>,
        {dim3(CeilDiv(args.out.cols, 256 * kWidth), args.out.rows), dim3(256)},
        args.shards, args.shard_cols, args.out.rows, args.out.cols,
        static_cast<float*>(args.out.data), args.out.row_stride);
  });
}

absl::Status LogprobsCuda(const OpContext& context, const LogprobsArgs& args) {
  const int64_t shared_bytes =
      VocabRow::SharedBytes(static_cast<int32_t>(args.logits.cols));
  if (shared_bytes > AsCuda(context.device)->max_shared_bytes()) {
    return absl::UnimplementedError(
        absl::StrCat("Logprobs: a vocabulary of ", args.logits.cols,
                     " on CUDA; it must fit in the shared memory of ",
                     kVocabBlocks, " SMs"));
  }
  return Launch(context, "Logprobs", LogprobsKernel,
                {dim3(args.logits.rows * kVocabBlocks), dim3(kVocabThreads),
                 shared_bytes},
                args);
}

}  // namespace switchyard::internal
