// Matmul by the warpgroup instruction with the weight in the place of its 64
// rows and x in the place of its columns: out^T = W x^T. For up to 64 rows it
// is bound by reading W once. A block computes `tile_rows` rows of W times all
// of its columns, or a share of them where rows alone would not fill the SMs:
// then the blocks of a cluster add up through their shared memory, in a fixed
// order. Nothing of that depends on the rows of x, so neither do a row's bits.
//
// A producer warp keeps W ahead of two consumer warpgroups through the bulk
// tensor copy. It asks for the first of it before the preceding kernel has
// ended, if that leaves room on the SM.
#include <algorithm>
#include <limits>

#include "kernels/backends.h"
#include "kernels/cuda_activation.h"
#include "kernels/cuda_common.h"
#include "kernels/cuda_ptx.h"
#include "kernels/cuda_tensor_map.h"
#include "kernels/cuda_wgmma.h"
#include "kernels/matmul_cuda.h"
#include "kernels/status.h"

namespace switchyard::internal {

namespace {

using namespace switchyard::cuda;

constexpr int kChunk = 64;  // columns of W and x in a stage: a swizzle row
constexpr int kWarpgroups = 2;
constexpr int kConsumerThreads = kWarpgroups * 128;
constexpr int kThreads = kConsumerThreads + kWarpSize;
constexpr int kMaxStages = 16;
constexpr int kBarrierBytes = 2 * kMaxStages * sizeof(uint64_t);
// One block on an SM: two would share what it can take in from the L2 (about 26
// bytes a cycle), while other SMs had none.
constexpr int kPipelineBytes = 200 * 1024;
// Where blocks come in several waves two fit, so that one loads while the other
// stores.
constexpr int kPipelineBytesOfTwo = 112 * 1024;
// Of W, before the preceding kernel has ended: more only lengthens the queue
// behind which that kernel's own loads stand.
constexpr int kEarlyBytes = 128 * 1024;
constexpr int kMinTileRows = 64, kMaxTileRows = 256;
constexpr int kMaxTileRowsOfTwo = 224;
constexpr int kTileStep = 16;       // parts are whole groups of eight rows
constexpr int kManyTileRows = 256;  // where there are several tiles of x
constexpr int kMaxSplit = 4;
constexpr int kMinChunks = 8;  // of a block, where columns are split
// Where this kernel is faster than cuBLASLt, up to kMaxWideRows rows of x.
constexpr int64_t kMinElements = 70'000'000;
constexpr int kFrom = kMaxStreamingRows + 1;
constexpr int kFromSplit = 33;  // by kMaxSplit
// Tiles of x that blocks which run at the same time share, for the L2.
constexpr int kRowTileGroup = 8;

struct WideShape {
  int32_t num_rows;      // of x
  int32_t out_features;  // rows of W
  int32_t num_chunks;
  int32_t tile_rows;  // of W
  int32_t split;      // blocks of a cluster, which share a tile's columns
  int32_t num_items;  // tiles of W
  int32_t row_tiles;  // tiles of x
  int32_t num_stages;
  int32_t early_stages;       // asked for before the preceding kernel has ended
  int32_t barriers_at;        // in shared memory
  bool aligned_out;           // four outputs are one aligned store
  ActivationKind activation;  // of a gated product
};

// N: rows of x in a tile. Shared memory per stage: a box of W [tile_rows, 64],
// then one of x [N, 64], 128-byte swizzled.
//
// A box consists of Tiles parts of equal height, up to 128 rows, each computed
// by both warpgroups, 64 rows by each; the second's rows overlap with the
// first's where a part has less than 128. Gated: W is gate rows, then as many
// up rows; w_map has the dimensions (column, row of the half, half), so that
// the parts of a box are gate rows and their up rows. Sums are rounded to bf16
// like x before the activation: the bits of a product stored and an activation
// after it.
template <int N, int Tiles, bool Gated, typename O>
__global__ void __launch_bounds__(kThreads, N <= 64 ? 2 : 1)
    WideKernel(const __grid_constant__ CUtensorMap w_map,
               const __grid_constant__ CUtensorMap x_map, const WideShape shape,
               const float* bias, O* out, int64_t out_stride) {
  static_assert(!Gated || Tiles == 2);
  extern __shared__ __align__(1024) uint8_t shared[];
  uint64_t* full = reinterpret_cast<uint64_t*>(shared + shape.barriers_at);
  uint64_t* empty = full + kMaxStages;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int w_bytes = shape.tile_rows * 128;
  const int stage_bytes = w_bytes + N * 128;

  if (threadIdx.x == 0) {
    for (int s = 0; s < shape.num_stages; ++s) {
      InitBarrier(&full[s], 1);
      InitBarrier(&empty[s], kConsumerThreads / kWarpSize);
    }
    FenceBarrierInit();
  }
  __syncthreads();
  GridTrigger();

  const int rank = blockIdx.x % shape.split;
  int item = blockIdx.x / shape.split, row_tile = 0;
  if (shape.row_tiles > 1) {
    const int group = item / (shape.num_items * kRowTileGroup);
    const int first = group * kRowTileGroup;
    const int size = min(kRowTileGroup, shape.row_tiles - first);
    item -= first * shape.num_items;
    row_tile = first + item % size;
    item /= size;
  }
  const int first_chunk = shape.num_chunks * rank / shape.split;
  const int total = shape.num_chunks * (rank + 1) / shape.split - first_chunk;

  if (warp == kConsumerThreads / kWarpSize) {
    if (ElectThread()) {
      PrefetchMap(&w_map);
      const uint32_t shared_at = Opaque(SharedAddress(shared));
      const uint32_t full_at = Opaque(SharedAddress(full));
      const uint64_t w_policy =
          shape.row_tiles == 1 ? EvictFirstPolicy() : EvictNormalPolicy();
      const uint64_t x_policy = EvictLastPolicy();
      const auto load_w = [&](int i, int stage) {
        const uint32_t to = shared_at + stage * stage_bytes;
        const uint32_t barrier = full_at + stage * 8;
        const int column = (first_chunk + i) * kChunk;
        ArriveExpect(barrier, stage_bytes);
        if constexpr (Gated) {
          CopyBox(to, &w_map, column, item * (shape.tile_rows / 2), 0, barrier,
                  w_policy);
        } else {
          CopyBox(to, &w_map, column, item * shape.tile_rows, barrier,
                  w_policy);
        }
      };
      const auto load_x = [&](int i, int stage) {
        CopyBox(shared_at + stage * stage_bytes + w_bytes, &x_map,
                (first_chunk + i) * kChunk, row_tile * N, full_at + stage * 8,
                x_policy);
      };
      const int early = min(total, shape.early_stages);
      for (int i = 0; i < early; ++i) load_w(i, i);
      GridWait();
      for (int i = 0; i < early; ++i) load_x(i, i);
      int stage = early, phase = 0;
      for (int i = early; i < total; ++i) {
        if (stage == shape.num_stages) {
          stage = 0;
          phase ^= 1;
        }
        if (i >= shape.num_stages) WaitBarrier(&empty[stage], phase ^ 1);
        load_w(i, stage);
        load_x(i, stage);
        ++stage;
      }
    }
    __syncwarp();
    SyncCluster();
    SyncCluster();
    return;
  }

  GridWait();
  const int warpgroup = warp / 4;
  const int part_rows = shape.tile_rows / Tiles;
  // The first of this warpgroup's 64 rows of a part.
  const int first_row = min(warpgroup * 64, part_rows - 64);
  float acc[Tiles][N / 2];
#pragma unroll
  for (int t = 0; t < Tiles; ++t) {
#pragma unroll
    for (int i = 0; i < N / 2; ++i) acc[t][i] = 0;
  }
  int stage = 0, phase = 0;
  for (int i = 0; i < total; ++i) {
    WaitBarrier(&full[stage], phase);
    const uint32_t base = SharedAddress(shared) + stage * stage_bytes;
    const uint64_t w = KMajor(base + first_row * 128, 1024);
    const uint64_t x = KMajor(base + w_bytes, 1024);
    WgmmaFence();
#pragma unroll
    for (int step = 0; step < kChunk / 16; ++step) {
#pragma unroll
      for (int t = 0; t < Tiles; ++t) {
        WgmmaShared<N>(acc[t], w + t * (part_rows * 128 >> 4) + step * kNextK,
                       x + step * kNextK, true);
      }
    }
    WgmmaCommit();
    WgmmaWait<0>();
    if (lane == 0) Arrive(&empty[stage]);
    if (++stage == shape.num_stages) {
      stage = 0;
      phase ^= 1;
    }
  }
#pragma unroll
  for (int t = 0; t < Tiles; ++t) PinRegisters(acc[t]);

  // Sums to shared memory, transposed: [N, tile_rows], rows `pitch` apart,
  // which keeps a warp's stores in different banks. The stages are read to
  // their end.
  float* sums = reinterpret_cast<float*>(shared);
  const int pitch = shape.tile_rows + 4;
  asm volatile("bar.sync 1, %0;" ::"n"(kConsumerThreads) : "memory");
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first_row + warp % 4 * 16 + half * 8 + lane / 4;
    if (row < warpgroup * 64) continue;  // the first warpgroup's
#pragma unroll
    for (int t = 0; t < Tiles; ++t) {
#pragma unroll
      for (int i = 0; i < N / 4; ++i) {
        const int column = i / 2 * 8 + lane % 4 * 2 + i % 2;
        sums[column * pitch + t * part_rows + row] =
            acc[t][i / 2 * 4 + half * 2 + i % 2];
      }
    }
  }
  SyncCluster();

  // This block's share of the tile's outputs, four at a time.
  const int width = Gated ? shape.out_features / 2 : shape.out_features;
  const int item_width = Gated ? part_rows : shape.tile_rows;
  const int share = item_width / shape.split, groups = share / 4;
  const int rows = min(N, shape.num_rows - row_tile * N);
  for (int i = threadIdx.x; i < groups * rows; i += kConsumerThreads) {
    const int row = i / groups;
    const int in_tile = rank * share + i % groups * 4;
    const int n = item * item_width + in_tile;
    if (n >= width) continue;
    float value[1 + Gated][4];
#pragma unroll
    for (int g = 0; g <= Gated; ++g) {
      const uint32_t address =
          SharedAddress(sums + row * pitch + g * part_rows + in_tile);
      float4 term[kMaxSplit];
#pragma unroll
      for (int r = 0; r < kMaxSplit; ++r) {
        if (r < shape.split) term[r] = LoadShared4(address, r);
      }
      float4 sum = term[0];
#pragma unroll
      for (int r = 1; r < kMaxSplit; ++r) {
        if (r >= shape.split) break;
        sum.x += term[r].x;
        sum.y += term[r].y;
        sum.z += term[r].z;
        sum.w += term[r].w;
      }
      value[g][0] = sum.x;
      value[g][1] = sum.y;
      value[g][2] = sum.z;
      value[g][3] = sum.w;
      if (bias != nullptr) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (n + e < width) value[g][e] += bias[g * width + n + e];
        }
      }
    }
    if constexpr (Gated) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        value[0][e] =
            Activate(shape.activation, ToFloat(FromFloat<bf16>(value[0][e]))) *
            ToFloat(FromFloat<bf16>(value[1][e]));
      }
    }
    O* to = out + (int64_t{row_tile} * N + row) * out_stride + n;
    if (shape.aligned_out && n + 4 <= width) {
      Store<4>(to, value[0]);
    } else {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (n + e < width) to[e] = FromFloat<O>(value[0][e]);
      }
    }
  }
  SyncCluster();  // nobody leaves while others read its sums
}

// Clusters of this size that run at the same time, a block on an SM.
absl::StatusOr<int> ActiveClusters(int split) {
  const auto kernel = WideKernel<64, 2, false, bf16>;
  constexpr int kSharedBytes = kPipelineBytes;
  SY_RETURN_IF_CUDA_ERROR(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(split), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(split);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kSharedBytes;
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  SY_RETURN_IF_CUDA_ERROR(
      cudaOccupancyMaxActiveClusters(&clusters, kernel, &config));
  return clusters;
}

absl::Status EncodeWeight(const void* data, int64_t out_features,
                          int64_t in_features, int32_t tile_rows,
                          CUtensorMap* map) {
  return EncodeSwizzledMap<2>(data, {in_features, out_features}, {in_features},
                              {kChunk, tile_rows}, map);
}

template <int N, int Tiles, bool Gated>
absl::Status LaunchWide(const OpContext& context, const MatrixView& x,
                        const WeightMatrix& matrix, const float* bias,
                        ActivationKind activation, const MatrixView& out) {
  const CudaWeight& weight = AsCuda(matrix);
  CUtensorMap w_map = weight.wide_map, x_map;
  SY_RETURN_IF_ERROR(EncodeSwizzledMap<2>(x.data, {x.cols, x.rows},
                                          {x.row_stride}, {kChunk, N}, &x_map));
  WideShape shape;
  shape.num_rows = static_cast<int32_t>(x.rows);
  shape.out_features = static_cast<int32_t>(matrix.out_features());
  shape.num_chunks = static_cast<int32_t>(CeilDiv(x.cols, kChunk));
  shape.tile_rows = weight.wide_rows;
  shape.split = weight.wide_split;
  shape.row_tiles = static_cast<int32_t>(CeilDiv(x.rows, N));
  if (shape.row_tiles > 1)
    shape.tile_rows = kManyTileRows;
  else if (Gated)
    shape.tile_rows = std::max<int32_t>(
        2 * kMinTileRows,
        CeilDiv(shape.tile_rows, 8 * shape.split) * 8 * shape.split);
  if constexpr (Gated) {
    const int64_t width = matrix.out_features() / 2;
    SY_RETURN_IF_ERROR(EncodeSwizzledMap<3>(
        weight.data.get(), {x.cols, width, 2}, {x.cols, width * x.cols},
        {kChunk, shape.tile_rows / 2, 2}, &w_map));
  } else if (shape.tile_rows != weight.wide_rows) {
    SY_RETURN_IF_ERROR(EncodeWeight(weight.data.get(), matrix.out_features(),
                                    x.cols, shape.tile_rows, &w_map));
  }
  shape.num_items =
      static_cast<int32_t>(CeilDiv(shape.out_features, shape.tile_rows));
  const int w_bytes = shape.tile_rows * 128, stage_bytes = w_bytes + N * 128;
  const int64_t num_blocks =
      int64_t{shape.num_items} * shape.row_tiles * shape.split;
  const bool alone = N > 64 || num_blocks <= AsCuda(context.device)->num_sms();
  const int pipeline_bytes = alone ? kPipelineBytes : kPipelineBytesOfTwo;
  shape.num_stages = std::min(kMaxStages, pipeline_bytes / stage_bytes);
  shape.early_stages = std::clamp(kEarlyBytes / w_bytes, 1, shape.num_stages);
  shape.barriers_at = std::max<int>(shape.num_stages * stage_bytes,
                                    N * (shape.tile_rows + 4) * sizeof(float));
  shape.aligned_out = AlignedTo(out, 4 * DTypeBytes(out.dtype));
  shape.activation = activation;
  const LaunchShape launch{dim3(static_cast<unsigned>(num_blocks)),
                           dim3(kThreads), shape.barriers_at + kBarrierBytes,
                           shape.split};
  const auto start = [&](auto tag) {
    using O = typename decltype(tag)::type;
    return Launch(context, Gated ? "GatedMatmul (wide)" : "Matmul (wide)",
                  WideKernel<N, Tiles, Gated, O>, launch, w_map, x_map, shape,
                  bias, static_cast<O*>(out.data), out.row_stride);
  };
  if constexpr (Gated) {
    return start(TypeTag<bf16>());
  } else {
    return DispatchActivation(out.dtype, "Matmul", start);
  }
}

// Calls f(std::integral_constant<int, N>) for the lowest tile that holds `rows`
// rows of x, or for the highest.
template <typename F>
absl::Status DispatchRows(int64_t rows, F&& f) {
  if (rows <= 16) return f(std::integral_constant<int, 16>());
  if (rows <= 32) return f(std::integral_constant<int, 32>());
  if (rows <= 64) return f(std::integral_constant<int, 64>());
  return f(std::integral_constant<int, 128>());
}

}  // namespace

absl::Status PlanWide(int num_sms, int64_t out_features, int64_t in_features,
                      CudaWeight* weight) {
  const int64_t chunks = CeilDiv(in_features, kChunk);
  // The largest split with which the tiles are low enough and run all at once:
  // high tiles read x less often.
  int split = kMaxSplit;
  int64_t rows = 0;
  for (; split >= 1; split /= 2) {
    if (split > 1 && chunks < kMinChunks * split) continue;
    int clusters = num_sms / split;
    if (split > 2) {
      SY_ASSIGN_OR_RETURN(clusters, ActiveClusters(split));
      if (clusters == 0) continue;
    }
    rows = std::max<int64_t>(
        kMinTileRows,
        CeilDiv(CeilDiv(out_features, clusters), kTileStep) * kTileStep);
    if (rows <= kMaxTileRows) break;
  }
  if (rows > kMaxTileRows) {
    // The height that leaves the fewest SMs idle in the last wave; of about
    // equal ones the highest.
    split = 1;
    double best = 0;
    for (int candidate = 2 * kMinTileRows; candidate <= kMaxTileRowsOfTwo;
         candidate += kTileStep) {
      const int64_t waves = CeilDiv(CeilDiv(out_features, candidate), num_sms);
      const double efficiency =
          static_cast<double>(out_features) / (waves * num_sms * candidate);
      if (efficiency >= best - 5e-3) {
        best = std::max(best, efficiency);
        rows = candidate;
      }
    }
  }
  // Smaller weights leave too little to hide the start and the end behind, and
  // later waves start where others have only just ended.
  const bool large = out_features * in_features >= kMinElements &&
                     CeilDiv(out_features, rows) * split <= num_sms;
  weight->wide_from = !large              ? std::numeric_limits<int32_t>::max()
                      : split < kMaxSplit ? kFrom
                                          : kFromSplit;
  weight->wide_rows = static_cast<int32_t>(rows);
  weight->wide_split = split;
  return EncodeSwizzledMap<2>(weight->data.get(), {in_features, out_features},
                              {in_features}, {kChunk, weight->wide_rows},
                              &weight->wide_map);
}

bool CanMultiplyWide(const MatrixView& x, const WeightMatrix& weight) {
  return x.dtype == DType::kBF16 && AsCuda(weight).wide_rows > 0 &&
         AlignedTo(x, 16);
}

absl::Status MatmulWide(const OpContext& context, const MatmulArgs& args) {
  return DispatchRows(args.x.rows, [&](auto n) {
    constexpr int N = decltype(n)::value;
    const bool low =
        args.x.rows <= N && AsCuda(*args.weight).wide_rows <= 2 * kMinTileRows;
    const auto launch = low ? LaunchWide<N, 1, false> : LaunchWide<N, 2, false>;
    return launch(context, args.x, *args.weight, args.bias,
                  ActivationKind::kIdentity, args.out);
  });
}

absl::Status GatedMatmulWide(const OpContext& context,
                             const GatedMatmulArgs& args) {
  return DispatchRows(args.x.rows, [&](auto n) {
    return LaunchWide<decltype(n)::value, 2, true>(
        context, args.x, *args.weight, args.bias, args.kind, args.out);
  });
}

}  // namespace switchyard::internal
