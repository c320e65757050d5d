// Decode attention: bound by reading the KV cache once (Dao et al. 2023,
// "Flash-Decoding", for the split along the sequence).
//
// A fixed grid of blocks shares the cached positions out
// (paged_attention_shares_cuda.h). Within a block each warp takes 16 positions
// of every unit, with its own ring of shared-memory stages. All query heads of
// a KV head are the rows of one 16-row tensor-core tile.
//
// A (sequence, head) that falls to one block is finished there; otherwise every
// block leaves a partial (maximum, sum, output), and the last to arrive merges
// them in block order, so that bits do not depend on who was last.
//
// Before GridWait a block finds its share and fills its stages: the lengths and
// tables were uploaded, and cached positions written, before this step (see
// cuda_common.h). What this kernel itself appends is never read as cached: a
// new token goes to position `context`, past the positions read; in a ring its
// place was that of a position at least a whole window before it, which it no
// longer sees. Sequences of the same step that are not decoding write blocks of
// their own.
#include <algorithm>

#include "kernels/backends.h"
#include "kernels/cuda_common.h"
#include "kernels/cuda_paging.h"
#include "kernels/cuda_ptx.h"
#include "kernels/paged_attention_cuda.h"
#include "kernels/paged_attention_shares_cuda.h"

namespace switchyard::internal {
namespace {

using namespace switchyard::cuda;
using namespace switchyard::internal::decode;

constexpr int kMaxGroup = 16;
constexpr int kMaxGrid = 1024;
constexpr int kMaxSeqs = 4096;

template <int D, bool Big>
constexpr int NumStages() {
  if (D == 256) return Big ? 2 : 3;
  return D == 128 ? 3 : 6;
}
template <int D>
constexpr int TileBytes() {  // keys, then values
  return 2 * kTileKeys * D * 2;
}

// Where 16-byte chunk j of row r lies in its row, so that eight rows of one
// chunk meet different banks.
template <int D>
__device__ __forceinline__ int Swizzle(int r, int j) {
  if constexpr (D >= 64) return j ^ (r & 7);
  if constexpr (D == 32) return j ^ ((r >> 1) & 3);
  return j ^ ((r >> 2) & 1);
}

// One warp's running softmax over its keys: rows g = lane / 4 and, in BIG
// groups, g + 8 of the 16 query heads; see Mma for the columns.
template <int D, bool Big>
struct State {
  static constexpr int kRows = Big ? 2 : 1;
  uint32_t q[D / 8][kRows];  // A fragments: chunk j, row half
  float out[D / 8][4];
  float top[kRows];  // running maximum, in units of log2
  float sum[kRows];  // of this lane's columns only
};

// Rotates a pair of adjacent elements, at columns i and i + D / 2 of a head.
__device__ __forceinline__ void RotatePair(uint32_t& first, uint32_t& second,
                                           float2 cosine, float2 sine) {
  const float2 a = UnpackBf16(first), b = UnpackBf16(second);
  first =
      PackBf16(a.x * cosine.x - b.x * sine.x, a.y * cosine.y - b.y * sine.y);
  second =
      PackBf16(b.x * cosine.x + a.x * sine.x, b.y * cosine.y + a.y * sine.y);
}

// Loads and rotates the queries. With `with_new` the softmax starts with the
// new token, whose rotated key and value are appended to the cache; else with
// nothing.
template <int D, bool Big>
__device__ __forceinline__ void StartSegment(const DecodeParams& p,
                                             const UnitCursor& at,
                                             bool with_new,
                                             State<D, Big>& state) {
  constexpr int kRows = State<D, Big>::kRows;
  const int lane = threadIdx.x % kWarpSize, column = lane % 4 * 2;
  const int32_t position = at.span.context;
  // Every load before the first use or store, as far as registers go: one
  // latency instead of three.
  constexpr bool kValueEarly = D <= 128;
  uint32_t key[D / 8], value[D / 8];
  const auto load_value = [&] {
    const bf16* v = p.v + at.seq * p.v_stride + int64_t{at.head} * D + column;
#pragma unroll
    for (int j = 0; j < D / 8; ++j)
      value[j] = *reinterpret_cast<const uint32_t*>(v + j * 8);
  };
  if (with_new) {
    const bf16* k = p.k + at.seq * p.k_stride + int64_t{at.head} * D + column;
#pragma unroll
    for (int j = 0; j < D / 8; ++j)
      key[j] = *reinterpret_cast<const uint32_t*>(k + j * 8);
    if constexpr (kValueEarly) load_value();
  }
#pragma unroll
  for (int half = 0; half < kRows; ++half) {
    const int row = lane / 4 + half * 8;
    const bf16* q = p.q + at.seq * p.q_stride +
                    int64_t{at.head * p.group + row} * D + column;
#pragma unroll
    for (int j = 0; j < D / 8; ++j)
      state.q[j][half] =
          row < p.group ? *reinterpret_cast<const uint32_t*>(q + j * 8) : 0;
  }
  const float* angles = p.rope_table + int64_t{position} * D + column;
#pragma unroll
  for (int j = 0; j < D / 16; ++j) {
    const float2 cosine = *reinterpret_cast<const float2*>(angles + j * 8);
    const float2 sine =
        *reinterpret_cast<const float2*>(angles + D / 2 + j * 8);
#pragma unroll
    for (int half = 0; half < kRows; ++half)
      RotatePair(state.q[j][half], state.q[j + D / 16][half], cosine, sine);
    if (with_new) RotatePair(key[j], key[j + D / 16], cosine, sine);
  }
  if (!with_new) {
#pragma unroll
    for (int half = 0; half < kRows; ++half) {
      state.top[half] = -INFINITY;
      state.sum[half] = 0;
    }
#pragma unroll
    for (int j = 0; j < D / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) state.out[j][e] = 0;
    }
    return;
  }

  if constexpr (!kValueEarly) load_value();
  std::byte* to =
      p.paging.Key(p.paging.Id(at.seq, position), at.head, position);
  bf16* key_out = reinterpret_cast<bf16*>(to) + column;
  bf16* value_out =
      reinterpret_cast<bf16*>(to + p.paging.ValueOffset()) + column;
  float score[kRows] = {};
#pragma unroll
  for (int j = 0; j < D / 8; ++j) {
    if (lane < 4) {
      *reinterpret_cast<uint32_t*>(key_out + j * 8) = key[j];
      *reinterpret_cast<uint32_t*>(value_out + j * 8) = value[j];
    }
    const float2 a = UnpackBf16(key[j]), b = UnpackBf16(value[j]);
#pragma unroll
    for (int half = 0; half < kRows; ++half) {
      const float2 x = UnpackBf16(state.q[j][half]);
      score[half] += x.x * a.x + x.y * a.y;
    }
#pragma unroll
    for (int e = 0; e < 4; ++e)
      state.out[j][e] = e >= 2 && !Big ? 0.0f : e % 2 == 0 ? b.x : b.y;
  }
#pragma unroll
  for (int half = 0; half < kRows; ++half) {
    score[half] += __shfl_xor_sync(kFullWarp, score[half], 1);
    score[half] += __shfl_xor_sync(kFullWarp, score[half], 2);
    state.top[half] = score[half] * p.scale;
    state.sum[half] = lane % 4 == 0 ? 1.0f : 0.0f;
  }
}

__device__ __forceinline__ void PrefetchL2(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

// Starts the copy of one warp's 16 keys and values; positions the token does
// not see become zeros.
template <int D>
__device__ __forceinline__ void CopyTile(const DecodeParams& p,
                                         const UnitCursor& at, int32_t begin,
                                         uint32_t id, uint32_t shared) {
  constexpr int kChunks = D / 8;
  const int lane = threadIdx.x % kWarpSize;
  const std::byte* keys = p.paging.Key(id, at.head, begin);
  const std::byte* values = keys + p.paging.ValueOffset();
#pragma unroll
  for (int i = 0; i < kTileKeys * kChunks / kWarpSize; ++i) {
    const int chunk = i * kWarpSize + lane;
    const int row = chunk / kChunks, j = chunk % kChunks;
    const bool valid =
        begin + row >= at.span.begin && begin + row < at.span.context;
    const uint32_t to = shared + (row * kChunks + Swizzle<D>(row, j)) * 16;
    CopyAsync16(to, keys + chunk * 16, valid);
    CopyAsync16(to + kTileKeys * D * 2, values + chunk * 16, valid);
  }
}

template <int D, bool Big>
__device__ __forceinline__ void AttendTile(const DecodeParams& p,
                                           const SeqSpan& span, int32_t begin,
                                           uint32_t shared,
                                           State<D, Big>& state) {
  constexpr int kChunks = D / 8, kRows = State<D, Big>::kRows;
  const int lane = threadIdx.x % kWarpSize;
  const int matrix = lane / 8, matrix_row = lane % 8;
  float score[2][4] = {};  // keys 0-7 and 8-15 of the tile
  {
    const int row = matrix / 2 * 8 + matrix_row;
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      uint32_t key[4];
      const int chunk = Swizzle<D>(row, step * 2 + matrix % 2);
      LoadMatrix4(key, shared + (row * kChunks + chunk) * 16);
      const uint32_t a1 = Big ? state.q[2 * step][kRows - 1] : 0;
      const uint32_t a3 = Big ? state.q[2 * step + 1][kRows - 1] : 0;
#pragma unroll
      for (int n = 0; n < 2; ++n)
        Mma(score[n], state.q[2 * step][0], a1, state.q[2 * step + 1][0], a3,
            key[2 * n], key[2 * n + 1]);
    }
  }
  const bool partial = begin < span.begin || begin + kTileKeys > span.context;
  float top[kRows];
#pragma unroll
  for (int half = 0; half < kRows; ++half) {
    top[half] = state.top[half];
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& x = score[n][half * 2 + e];
        x *= p.scale;
        if (partial) {
          const int32_t position = begin + n * 8 + lane % 4 * 2 + e;
          if (position < span.begin || position >= span.context) x = -INFINITY;
        }
        top[half] = fmaxf(top[half], x);
      }
    }
    top[half] = fmaxf(top[half], __shfl_xor_sync(kFullWarp, top[half], 1));
    top[half] = fmaxf(top[half], __shfl_xor_sync(kFullWarp, top[half], 2));
  }
  bool grew = false;
#pragma unroll
  for (int half = 0; half < kRows; ++half)
    grew = grew || top[half] > state.top[half];
  if (__any_sync(kFullWarp, grew)) {
#pragma unroll
    for (int half = 0; half < kRows; ++half) {
      const float shrink = exp2f(state.top[half] - top[half]);
      state.top[half] = top[half];
      state.sum[half] *= shrink;
#pragma unroll
      for (int j = 0; j < kChunks; ++j) {
        state.out[j][half * 2] *= shrink;
        state.out[j][half * 2 + 1] *= shrink;
      }
    }
  }
  uint32_t weight[2][2] = {};  // keys half, row half
#pragma unroll
  for (int half = 0; half < kRows; ++half) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const float low = exp2f(score[n][half * 2] - state.top[half]);
      const float high = exp2f(score[n][half * 2 + 1] - state.top[half]);
      state.sum[half] += low + high;
      weight[n][half] = PackBf16(low, high);
    }
  }
  const uint32_t values = shared + kTileKeys * D * 2;
  const int row = matrix % 2 * 8 + matrix_row;
#pragma unroll
  for (int j = 0; j < kChunks; j += 2) {
    uint32_t value[4];
    const int chunk = Swizzle<D>(row, j + matrix / 2);
    LoadMatrix4Transposed(value, values + (row * kChunks + chunk) * 16);
    Mma(state.out[j], weight[0][0], weight[0][1], weight[1][0], weight[1][1],
        value[0], value[1]);
    Mma(state.out[j + 1], weight[0][0], weight[0][1], weight[1][0],
        weight[1][1], value[2], value[3]);
  }
}

__device__ __forceinline__ int32_t AddReleaseAcquire(int32_t* counter,
                                                     int32_t x) {
  int32_t before;
  asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(counter), "r"(x)
               : "memory");
  return before;
}

// Joins the warps' states; then writes the output, or a partial and, as the
// last block of this (sequence, head), the merged output.
// shared: [kWarps][group][D] floats, then [kWarps][group] (maximum, sum).
template <int D, bool Big>
__device__ void Finish(const DecodeParams& p, const UnitCursor& at,
                       State<D, Big>& state, float* shared,
                       const Parts& parts) {
  constexpr int kPartsAtOnce = D <= 128 ? 16 : 8;  // whose loads overlap
  __shared__ bool is_last;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  float2* shared_sum = reinterpret_cast<float2*>(shared + kWarps * p.group * D);
#pragma unroll
  for (int half = 0; half < State<D, Big>::kRows; ++half) {
    float sum = state.sum[half];
    sum += __shfl_xor_sync(kFullWarp, sum, 1);
    sum += __shfl_xor_sync(kFullWarp, sum, 2);
    const int row = lane / 4 + half * 8;
    if (row >= p.group) continue;
    const int slot = warp * p.group + row;
    if (lane % 4 == 0) shared_sum[slot] = make_float2(state.top[half], sum);
#pragma unroll
    for (int j = 0; j < D / 8; ++j)
      *reinterpret_cast<float2*>(shared + slot * D + j * 8 + lane % 4 * 2) =
          make_float2(state.out[j][half * 2], state.out[j][half * 2 + 1]);
  }
  __syncthreads();

  const auto part_of = [&](int32_t index) {
    const int32_t slot = index == 0 ? parts.first_slot : 0;
    return (int64_t{parts.first_block + index} * 2 + slot) * p.group;
  };
  const int64_t part =
      part_of(static_cast<int32_t>(blockIdx.x) - parts.first_block);
  bf16* out = p.out + at.seq * p.out_stride + int64_t{at.head} * p.group * D;
  for (int i = threadIdx.x; i < p.group * (D / 4); i += kThreads) {
    const int row = i / (D / 4), column = i % (D / 4) * 4;
    float top = -INFINITY;
#pragma unroll
    for (int w = 0; w < kWarps; ++w)
      top = fmaxf(top, shared_sum[w * p.group + row].x);
    float sum = 0, x[4] = {};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float2 s = shared_sum[w * p.group + row];
      if (s.x == -INFINITY) continue;
      const float weight = exp2f(s.x - top);
      sum += s.y * weight;
      float y[4];
      Load<4>(shared + (w * p.group + row) * D + column, y);
#pragma unroll
      for (int e = 0; e < 4; ++e) x[e] += y[e] * weight;
    }
    if (parts.count == 1) {
#pragma unroll
      for (int e = 0; e < 4; ++e) x[e] /= sum;
      Store<4>(out + row * D + column, x);
    } else {
      Store<4>(p.partial_out + (part + row) * D + column, x);
      if (column == 0) p.partial_sum[part + row] = make_float2(top, sum);
    }
  }
  if (parts.count > 1) {
    __syncthreads();
    int32_t* counter = p.counters + at.seq * p.num_kv_heads + at.head;
    if (threadIdx.x == 0) {
      is_last = AddReleaseAcquire(counter, 1) == parts.count - 1;
      if (is_last) *counter = 0;
    }
    __syncthreads();
    if (is_last) {
      for (int i = threadIdx.x; i < p.group * (D / 4); i += kThreads) {
        const int row = i / (D / 4), column = i % (D / 4) * 4;
        float top = -INFINITY, sum = 0, x[4] = {};
        for (int32_t first = 0; first < parts.count; first += kPartsAtOnce) {
          float2 s[kPartsAtOnce];
          float4 y[kPartsAtOnce];
#pragma unroll
          for (int b = 0; b < kPartsAtOnce; ++b) {
            s[b] = make_float2(-INFINITY, 0);
            y[b] = make_float4(0, 0, 0, 0);
            if (first + b >= parts.count) continue;
            const int64_t from = part_of(first + b) + row;
            s[b] = __ldcg(&p.partial_sum[from]);
            y[b] = __ldcg(reinterpret_cast<const float4*>(p.partial_out +
                                                          from * D + column));
          }
          float new_top = top;
#pragma unroll
          for (int b = 0; b < kPartsAtOnce; ++b)
            new_top = fmaxf(new_top, s[b].x);
          const float shrink = exp2f(top - new_top);
          top = new_top;
          sum *= shrink;
#pragma unroll
          for (int e = 0; e < 4; ++e) x[e] *= shrink;
#pragma unroll
          for (int b = 0; b < kPartsAtOnce; ++b) {
            const float weight = exp2f(s[b].x - top);
            sum += s[b].y * weight;
            x[0] += y[b].x * weight;
            x[1] += y[b].y * weight;
            x[2] += y[b].z * weight;
            x[3] += y[b].w * weight;
          }
        }
#pragma unroll
        for (int e = 0; e < 4; ++e) x[e] /= sum;
        Store<4>(out + row * D + column, x);
      }
    }
  }
  __syncthreads();  // `shared` may be written again
}

// Dynamic shared memory: the warps' stages, Finish's buffer, units_before.
template <int D, bool Big>
__global__ void __launch_bounds__(kThreads, D <= 128 ? 2 : 1)
    DecodeKernel(const DecodeParams p) {
  constexpr int kStages = NumStages<D, Big>();
  extern __shared__ __align__(128) uint8_t shared[];
  const int warp = threadIdx.x / kWarpSize;
  const uint32_t stages =
      SharedAddress(shared) + warp * kStages * TileBytes<D>();
  float* merge =
      reinterpret_cast<float*>(shared + kWarps * kStages * TileBytes<D>());
  int32_t* units_before =
      reinterpret_cast<int32_t*>(merge + kWarps * p.group * (D + 2));
  GridTrigger();
  CountUnits(p, units_before);

  const Shares shares(p, units_before[p.num_seqs] * p.num_kv_heads);
  int32_t begin, end;
  Parts parts;
  shares.Find(p, units_before, &begin, &end, &parts);
  // Block 0 always has work and waits, so the kernel ends after the one before.
  if (begin == end) return;

  UnitCursor load(p, units_before, begin), at = load;
  int32_t to_load = end - begin;
  int load_stage = 0;
  uint32_t id = 0;
  const auto look_up = [&] {
    const int32_t tile = load.TileBegin(warp);
    if (to_load > 0 && tile < load.span.context)
      id = p.paging.Id(load.seq, tile);
  };
  const auto start_copy = [&] {
    if (to_load > 0) {
      const int32_t tile = load.TileBegin(warp);
      if (tile < load.span.context)
        CopyTile<D>(p, load, tile, id, stages + load_stage * TileBytes<D>());
      load_stage = load_stage + 1 == kStages ? 0 : load_stage + 1;
      --to_load;
      load.Advance(p);
      look_up();
    }
    CommitCopies();
  };
  look_up();
  for (int s = 0; s < kStages; ++s) start_copy();
  if (threadIdx.x < D / 8)
    PrefetchL2(p.rope_table + int64_t{at.span.context} * D + threadIdx.x * 8);
  GridWait();

  int stage = 0;
  for (int32_t index = begin; index < end;) {
    const int32_t first_unit = index - at.unit;
    const int32_t segment_end = min(end, first_unit + at.span.units);
    State<D, Big> state;
    StartSegment(p, at, warp == 0 && segment_end == first_unit + at.span.units,
                 state);
    for (; index < segment_end; ++index, ++at.unit) {
      WaitCopies<kStages - 2>();
      __syncwarp();
      if (index > begin) start_copy();  // where the unit before this one was
      const int32_t tile = at.TileBegin(warp);
      if (tile < at.span.context)
        AttendTile<D, Big>(p, at.span, tile, stages + stage * TileBytes<D>(),
                           state);
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }
    if (!shares.whole)
      parts = shares.PartsOf(first_unit, first_unit + at.span.units - 1);
    Finish<D, Big>(p, at, state, merge, parts);
    at.NextHead(p);
  }
}

template <int D, bool Big>
absl::Status LaunchDecode(const OpContext& context, DecodeParams params) {
  const int64_t shared_bytes = kWarps * NumStages<D, Big>() * TileBytes<D>() +
                               kWarps * params.group * (D + 2) * sizeof(float) +
                               (params.num_seqs + 1) * sizeof(int32_t);
  // Two blocks on an SM where shared memory allows; a constant grid, whatever
  // the lengths.
  const int num_sms = AsCuda(context.device)->num_sms();
  const int grid = num_sms * (D <= 128 ? 2 : 1);
  const int64_t mark = context.workspace->used();
  params.partial_out = reinterpret_cast<float*>(context.workspace->Allocate(
      int64_t{grid} * 2 * params.group * D * sizeof(float)));
  params.partial_sum = reinterpret_cast<float2*>(context.workspace->Allocate(
      int64_t{grid} * 2 * params.group * sizeof(float2)));
  context.workspace->Rewind(mark);
  return Launch(context, "PagedAttention (decode)", DecodeKernel<D, Big>,
                {dim3(grid), dim3(kThreads), shared_bytes}, params);
}

}  // namespace

bool CanDecode(const PagedAttentionArgs& args) {
  const int32_t d = args.head_size;
  // The kernel counts units in 32 bits.
  const int64_t max_units =
      int64_t{args.batch.max_total_tokens} / kUnitKeys + 2;
  return args.q.dtype == DType::kBF16 && args.kv_dtype == DType::kBF16 &&
         args.out.dtype == DType::kBF16 &&
         (d == 16 || d == 32 || d == 64 || d == 128 || d == 256) &&
         args.num_heads / args.num_kv_heads <= kMaxGroup &&
         args.blocks.block_size % kTileKeys == 0 &&
         args.batch.num_decodes <= (d == 256 ? kMaxSeqs / 8 : kMaxSeqs) &&
         int64_t{args.batch.num_decodes} * args.num_kv_heads <=
             CudaDevice::kNumCounters &&
         max_units < INT32_MAX / kMaxGrid &&
         max_units * args.batch.num_decodes * args.num_kv_heads < INT32_MAX &&
         AlignedTo(args.q, 4) && AlignedTo(args.k, 4) && AlignedTo(args.v, 4) &&
         AlignedTo(args.out, 8);
}

absl::Status AttentionDecode(const OpContext& context,
                             const PagedAttentionArgs& args) {
  DecodeParams params = {};
  params.paging = MakePaging(args.blocks, args.num_kv_heads,
                             args.head_size * DTypeBytes(args.kv_dtype));
  params.context_lens = args.batch.context_lens;
  params.num_seqs = args.batch.num_decodes;
  params.num_kv_heads = args.num_kv_heads;
  params.group = args.num_heads / args.num_kv_heads;
  params.window = args.window;
  params.scale = args.scale * kLog2e;
  params.q = static_cast<const bf16*>(args.q.data);
  params.k = static_cast<const bf16*>(args.k.data);
  params.v = static_cast<const bf16*>(args.v.data);
  params.q_stride = args.q.row_stride;
  params.k_stride = args.k.row_stride;
  params.v_stride = args.v.row_stride;
  params.rope_table = args.rope_table;
  params.out = static_cast<bf16*>(args.out.data);
  params.out_stride = args.out.row_stride;
  params.counters = AsCuda(context.device)->counters();
  const bool big = params.group > 8;
  switch (args.head_size) {
    case 16:
      return big ? LaunchDecode<16, true>(context, params)
                 : LaunchDecode<16, false>(context, params);
    case 32:
      return big ? LaunchDecode<32, true>(context, params)
                 : LaunchDecode<32, false>(context, params);
    case 64:
      return big ? LaunchDecode<64, true>(context, params)
                 : LaunchDecode<64, false>(context, params);
    case 128:
      return big ? LaunchDecode<128, true>(context, params)
                 : LaunchDecode<128, false>(context, params);
    default:
      return big ? LaunchDecode<256, true>(context, params)
                 : LaunchDecode<256, false>(context, params);
  }
}

}  // namespace switchyard::internal
