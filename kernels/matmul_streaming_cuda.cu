// Matmul for at most 16 rows of x: bound by reading W once. One producer thread
// per SM keeps up to 128 KB of W in flight through the bulk tensor copy, and up
// to 200 KB ahead of the consumers; it starts before the preceding kernel has
// ended, since W does not depend on it. On an H200 a stage of W arrives every
// 300 to 500 ns, so the producer's loop has to be short.
#include <algorithm>

#include "kernels/backends.h"
#include "kernels/cuda_activation.h"
#include "kernels/cuda_common.h"
#include "kernels/cuda_ptx.h"
#include "kernels/cuda_tensor_map.h"
#include "kernels/matmul_cuda.h"
#include "kernels/status.h"

namespace switchyard::internal {
namespace {

using namespace switchyard::cuda;

constexpr int kPanelColumns = 64;  // one swizzle row
constexpr int kPanelBytes = kPanelColumns * 2;
// Of a stage of W, where the tile is low enough for more panels: a stage costs
// the producer and the consumers the same whatever it has.
constexpr int kMinStageBytes = 10 * 1024;
constexpr int kMaxWarps = 8;  // each computes 8 rows of W
constexpr int kMaxStages = 40;
// Fills while the kernel waits for the one before it, so that the memory does
// not idle. Only one such block fits on an SM: of smaller ones the next kernel
// would put two on the SMs that happen to be free first, and none on others.
constexpr int kPipelineBytes = 200 * 1024;
// Asked for and not yet there, while the kernel waits for x. More than the
// memory needs only lengthens the queue behind which the short loads stand that
// everything waits for: x, the residual stream.
constexpr int kEarlyPendingBytes = 64 * 1024;
constexpr int kPendingBytes = 128 * 1024;  // and afterwards
constexpr int kAlignment = 1024;           // of a swizzled panel

struct StreamingShape {
  int32_t num_rows;  // of x
  int32_t out_features;
  int32_t in_features;
  int32_t num_warps;  // row tiles of 8 per item
  int32_t num_items;  // groups of 8 * num_warps rows of W
  int32_t num_stages;
  int32_t early_pending;  // stages asked for and not yet there
  int32_t max_pending;
  ActivationKind activation;  // of a gated product
  uint32_t zero;              // 0, which the compiler does not know
};

// XRows (8 or 16): rows of x, padded. The maps have the dimensions (column of a
// panel, row, panel), so that one copy brings a stage of W, another one of x.
// Shared memory per stage: Panels (2 or 4) panels of W [8 * num_warps, 64],
// then as many of x [XRows, 64], 128-byte swizzled: the 16-byte chunk j of row
// r lies at chunk j ^ (r % 8). The bits of a result do not depend on Panels.
//
// Gated: W is gate rows, then as many up rows, and w_map has the dimensions
// (column of a panel, half, row of the half, panel), so that gate and up rows
// alternate and a thread holds both sums of a column of out [rows, out_features
// / 2].
// They are rounded to bf16 like x before the activation: the bits of a product
// stored and an activation after it.
template <int XRows, int Panels, bool Gated, typename O>
__global__ void __launch_bounds__((kMaxWarps + 1) * kWarpSize)
    StreamingKernel(const __grid_constant__ CUtensorMap w_map,
                    const __grid_constant__ CUtensorMap x_map,
                    const StreamingShape shape, const float* bias, O* out,
                    int64_t out_stride) {
  extern __shared__ uint8_t shared_raw[];
  __shared__ uint64_t full[kMaxStages], empty[kMaxStages], first_x[kMaxStages];
  uint8_t* shared = reinterpret_cast<uint8_t*>(
      (reinterpret_cast<uintptr_t>(shared_raw) + kAlignment - 1) / kAlignment *
      kAlignment);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int w_panel = shape.num_warps * 1024, x_panel = XRows * 128;  // bytes
  const int stage_bytes = Panels * (w_panel + x_panel);
  constexpr int kStageColumns = Panels * kPanelColumns;
  const int num_chunks =
      (shape.in_features + kStageColumns - 1) / kStageColumns;

  if (threadIdx.x == 0) {
    for (int s = 0; s < shape.num_stages; ++s) {
      InitBarrier(&full[s], 1);
      InitBarrier(&empty[s], shape.num_warps);
      InitBarrier(&first_x[s], 1);
    }
    FenceBarrierInit();
  }
  __syncthreads();
  GridTrigger();

  const int my_items =
      (shape.num_items - static_cast<int>(blockIdx.x) + gridDim.x - 1) /
      gridDim.x;
  const int total = my_items * num_chunks;
  // The first fill of the pipeline, possibly across items: its W is counted by
  // `full` and may come before the predecessor has ended; its x by `first_x`,
  // stage by stage.
  // From then on both are counted by `full`.
  const int first = min(total, shape.num_stages);
  // Addresses in shared memory.
  const uint32_t stages = Opaque(SharedAddress(shared));
  const uint32_t full_at = Opaque(SharedAddress(full));
  const uint64_t x_policy = EvictLastPolicy();
  const auto load_x = [&](int stage, int chunk, uint32_t barrier) {
    const uint32_t to = stages + stage * stage_bytes + Panels * w_panel;
    CopyBox(to, &x_map, 0, 0, chunk * Panels, barrier, x_policy);
  };

  if (warp == shape.num_warps) {
    if (!ElectThread()) return;
    PrefetchMap(&w_map);
    const uint32_t empty_at = Opaque(SharedAddress(empty));
    const uint64_t policy = EvictFirstPolicy();
    int stage = 0, item = blockIdx.x, chunk = 0;
    int waiting_stage = 0, waiting_phase = 0;  // of the oldest pending copy
    const auto wait_for_oldest = [&] {
      WaitBarrier(full_at + waiting_stage * 8, waiting_phase);
      if (++waiting_stage == shape.num_stages) {
        waiting_stage = 0;
        waiting_phase ^= 1;
      }
    };
    const auto load_w = [&](int bytes) {
      const uint32_t barrier = full_at + stage * 8;
      const uint32_t to = stages + stage * stage_bytes;
      const int row = item * shape.num_warps * 8;
      ArriveExpect(barrier, bytes);
      const int panel = chunk * Panels;
      if constexpr (Gated) {
        CopyBox(to, &w_map, 0, 0, row / 2, panel, barrier, policy);
      } else {
        CopyBox(to, &w_map, 0, row, panel, barrier, policy);
      }
    };
    const auto next = [&] {
      if (++stage == shape.num_stages) stage = 0;
      if (++chunk == num_chunks) {
        chunk = 0;
        item += gridDim.x;
      }
    };
    for (int i = 0; i < first; ++i) {
      if (i >= shape.early_pending) wait_for_oldest();
      load_w(Panels * w_panel);
      next();
    }
    GridWait();
    int phase = 0, allowed = shape.max_pending - shape.early_pending;
    for (int i = first; i < total; ++i) {
      WaitBarrier(empty_at + stage * 8, phase);
      if (allowed > 0) {
        --allowed;
      } else {
        wait_for_oldest();
      }
      load_w(stage_bytes);
      load_x(stage, chunk, full_at + stage * 8);
      next();
      if (stage == 0) phase ^= 1;
    }
    return;
  }

  GridWait();
  if (ElectThread()) {  // shared out, as each takes a while to ask for
    for (int i = warp; i < first; i += shape.num_warps) {
      ArriveExpect(&first_x[i], Panels * x_panel);
      load_x(i, i % num_chunks, SharedAddress(&first_x[i]));
    }
  }
  __syncwarp();
  // ldmatrix: lane l names row l % 8 of matrix l / 8.
  const int matrix = lane / 8, matrix_row = lane % 8;
  // Where the lane's rows are in the first panel of W and of x of stage 0, by
  // halves of a panel.
  uint32_t w_at[2], x_at[2][XRows / 8];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const auto at = [&](int panel_row, int column) {
      return Opaque(SharedAddress(shared) + panel_row * 128 +
                    (((half * 4 + column) ^ matrix_row) << 4));
    };
    w_at[half] = at(warp * 8 + matrix_row, matrix);
#pragma unroll
    for (int i = 0; i < XRows / 8; ++i) {
      // Eight rows: four steps of 8 columns. Sixteen: two of 16.
      x_at[half][i] =
          Panels * w_panel +
          (XRows == 8 ? at(matrix_row, matrix)
                      : at(matrix % 2 * 8 + matrix_row, i * 2 + matrix / 2));
    }
  }
  int stage = 0, phase = 0, first_left = first;
  for (int item = blockIdx.x; item < shape.num_items; item += gridDim.x) {
    // A sum for every quarter of two panels: what the pipeline holds when x
    // comes is to be done with faster than the memory brings more, and a
    // product that waits for the one before it would not be.
    float sums[4][4] = {};
    for (int chunk = 0; chunk < num_chunks; ++chunk) {
      WaitBarrier(&full[stage], phase);
      if (first_left > 0) {
        --first_left;
        WaitBarrier(&first_x[stage], 0);
      }
      // All loads of a stage before its products, for which the next stage's
      // need not wait.
      constexpr int kParts = 2 * Panels;  // of 32 columns
      uint32_t w[kParts][4], x[kParts][XRows / 8][4];
      uint32_t loaded = 0;  // bits of every fragment
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const int panel = part / 2, half = part % 2;
        const uint32_t base = stage * stage_bytes;
        LoadMatrix4(w[part], w_at[half] + base + panel * w_panel);
        loaded |= w[part][3];
#pragma unroll
        for (int i = 0; i < XRows / 8; ++i) {
          LoadMatrix4(x[part][i], x_at[half][i] + base + panel * x_panel);
          loaded |= x[part][i][3];
        }
      }
      __syncwarp();
      // The address depends on the fragments: else the compiler frees the stage
      // while their loads are under way, and the copy engine overwrites it.
      if (lane == 0) Arrive(&empty[stage] + (loaded & shape.zero));
        // Two panels after two, 16 columns of each part after 16, whatever
        // Panels.
#pragma unroll
      for (int i = 0; i < 2 * kParts; ++i) {
        const int part = i / 8 * 4 + i % 4, step = i / 4 % 2;
        if constexpr (XRows == 8) {
          Mma(sums[i % 4], x[part][0][2 * step], 0, x[part][0][2 * step + 1], 0,
              w[part][2 * step], w[part][2 * step + 1]);
        } else {
          const auto& rows = x[part][step];
          Mma(sums[i % 4], rows[0], rows[1], rows[2], rows[3],
              w[part][2 * step], w[part][2 * step + 1]);
        }
      }
      if (++stage == shape.num_stages) {
        stage = 0;
        phase ^= 1;
      }
    }
    float acc[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      acc[i] = (sums[0][i] + sums[1][i]) + (sums[2][i] + sums[3][i]);
    const int tile = item * shape.num_warps + warp;
    const auto biased = [&](int i, int n) {
      return acc[i] + (bias == nullptr ? 0.0f : bias[n]);
    };
    if constexpr (Gated) {
      const int width = shape.out_features / 2, n = tile * 4 + lane % 4;
#pragma unroll
      for (int i = 0; i < XRows / 4; i += 2) {
        const int row = lane / 4 + i / 2 * 8;
        if (row < shape.num_rows && n < width) {
          const float gate = ToFloat(FromFloat<bf16>(biased(i, n)));
          const float up = ToFloat(FromFloat<bf16>(biased(i + 1, width + n)));
          out[row * out_stride + n] =
              FromFloat<O>(Activate(shape.activation, gate) * up);
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < XRows / 4; ++i) {
        const int row = lane / 4 + i / 2 * 8,
                  n = tile * 8 + lane % 4 * 2 + i % 2;
        if (row < shape.num_rows && n < shape.out_features)
          out[row * out_stride + n] = FromFloat<O>(biased(i, n));
      }
    }
  }
}

// Of a stage of W in tiles of this height: two panels, or four where those are
// less than kMinStageBytes.
int StagePanels(int rows_per_tile) {
  return 2 * rows_per_tile * kPanelBytes < kMinStageBytes ? 4 : 2;
}

// A bf16 matrix [rows, cols] read in boxes of box_rows rows and `panels`
// panels.
absl::Status EncodeMap(const void* data, int64_t rows, int64_t cols,
                       int64_t row_stride, int box_rows, int panels,
                       CUtensorMap* map) {
  return EncodeSwizzledMap<3>(data, {kPanelColumns, rows, cols / kPanelColumns},
                              {row_stride, kPanelColumns},
                              {kPanelColumns, box_rows, panels}, map);
}

template <int XRows, int Panels, bool Gated>
absl::Status LaunchStreaming(const OpContext& context, const MatrixView& x,
                             const WeightMatrix& matrix, const float* bias,
                             ActivationKind activation, const MatrixView& out) {
  const CudaWeight& weight = AsCuda(matrix);
  const int num_sms = AsCuda(context.device)->num_sms();
  CUtensorMap x_map;
  SY_RETURN_IF_ERROR(
      EncodeMap(x.data, x.rows, x.cols, x.row_stride, XRows, Panels, &x_map));
  CUtensorMap w_map = weight.map;
  if constexpr (Gated) {
    const int64_t width = matrix.out_features() / 2, cols = x.cols;
    SY_RETURN_IF_ERROR(EncodeSwizzledMap<4>(
        weight.data.get(), {kPanelColumns, 2, width, cols / kPanelColumns},
        {width * cols, cols, kPanelColumns},
        {kPanelColumns, 2, weight.rows_per_tile / 2, Panels}, &w_map));
  }
  StreamingShape shape;
  shape.zero = 0;
  shape.num_rows = static_cast<int32_t>(x.rows);
  shape.out_features = static_cast<int32_t>(matrix.out_features());
  shape.in_features = static_cast<int32_t>(matrix.in_features());
  shape.num_warps = weight.rows_per_tile / 8;
  shape.num_items =
      static_cast<int32_t>(CeilDiv(shape.out_features, weight.rows_per_tile));
  const int stage_bytes = Panels * (weight.rows_per_tile + XRows) * kPanelBytes;
  const int64_t stages_of_a_block =
      CeilDiv(shape.num_items, num_sms) *
      CeilDiv(shape.in_features, Panels * kPanelColumns);
  shape.num_stages = static_cast<int32_t>(std::min<int64_t>(
      {kMaxStages, kPipelineBytes / stage_bytes, stages_of_a_block}));
  shape.early_pending =
      std::clamp(kEarlyPendingBytes / stage_bytes, 1, shape.num_stages);
  shape.max_pending =
      std::clamp(kPendingBytes / stage_bytes, 1, shape.num_stages);
  shape.activation = activation;
  const LaunchShape launch{dim3(std::min(shape.num_items, num_sms)),
                           dim3((shape.num_warps + 1) * kWarpSize),
                           shape.num_stages * stage_bytes + kAlignment};
  return DispatchActivation(out.dtype, "Matmul", [&](auto tag) {
    using O = typename decltype(tag)::type;
    return Launch(context, Gated ? "GatedMatmul" : "Matmul (streaming)",
                  StreamingKernel<XRows, Panels, Gated, O>, launch, w_map,
                  x_map, shape, bias, static_cast<O*>(out.data),
                  out.row_stride);
  });
}

template <bool Gated>
absl::Status ChooseStreaming(const OpContext& context, const MatrixView& x,
                             const WeightMatrix& matrix, const float* bias,
                             ActivationKind activation, const MatrixView& out) {
  const bool few = x.rows <= 8;
  const auto launch =
      StagePanels(AsCuda(matrix).rows_per_tile) == 2
          ? few ? LaunchStreaming<8, 2, Gated> : LaunchStreaming<16, 2, Gated>
      : few ? LaunchStreaming<8, 4, Gated>
            : LaunchStreaming<16, 4, Gated>;
  return launch(context, x, matrix, bias, activation, out);
}

}  // namespace

absl::Status PlanStreaming(int num_sms, int64_t out_features,
                           int64_t in_features, CudaWeight* weight) {
  if (in_features % kPanelColumns != 0) return absl::OkStatus();
  // The tile height that leaves the fewest SMs idle in the last wave; of equal
  // ones the highest, which reads x least often.
  const int64_t tiles = CeilDiv(out_features, 8);
  double best = 0;
  int warps = 1;
  for (int candidate = 1; candidate <= kMaxWarps; ++candidate) {
    const int64_t waves = CeilDiv(CeilDiv(tiles, candidate), num_sms);
    const double efficiency =
        static_cast<double>(tiles) / (waves * num_sms * candidate);
    if (efficiency >= best - 1e-3) {
      best = std::max(best, efficiency);
      warps = candidate;
    }
  }
  weight->rows_per_tile = warps * 8;
  return EncodeMap(weight->data.get(), out_features, in_features, in_features,
                   weight->rows_per_tile, StagePanels(weight->rows_per_tile),
                   &weight->map);
}

bool CanStream(const MatrixView& x, const WeightMatrix& weight) {
  return x.rows <= kMaxStreamingRows && x.dtype == DType::kBF16 &&
         AsCuda(weight).rows_per_tile > 0 && AlignedTo(x, 16);
}

absl::Status MatmulStreaming(const OpContext& context, const MatmulArgs& args) {
  return ChooseStreaming<false>(context, args.x, *args.weight, args.bias,
                                ActivationKind::kIdentity, args.out);
}

absl::Status GatedMatmulStreaming(const OpContext& context,
                                  const GatedMatmulArgs& args) {
  return ChooseStreaming<true>(context, args.x, *args.weight, args.bias,
                               args.kind, args.out);
}

}  // namespace switchyard::internal
