// Matmul for at most 16 rows of x: bound by reading W once. One producer warp
// per SM keeps about 100 KB of W in flight through the bulk tensor copy; it
// starts before the preceding kernel has ended, since W does not depend on it.
#include <cudaTypedefs.h>

#include <algorithm>

#include "kernels/backends.h"
#include "kernels/cuda_common.h"
#include "kernels/cuda_ptx.h"
#include "kernels/matmul_cuda.h"
#include "kernels/status.h"

namespace switchyard::internal {
namespace {

using namespace switchyard::cuda;

constexpr int kBoxColumns = 64;  // 128 bytes, one swizzle row
constexpr int kStageColumns = 2 * kBoxColumns;
constexpr int kMaxWarps = 8;  // each computes 8 rows of W
constexpr int kMaxStages = 16;
// Two such kernels fit on an SM, so that the next one's loads fill the gap.
constexpr int kPipelineBytes = 100 * 1024;
constexpr int kAlignment = 1024;  // of a swizzled box

struct StreamingShape {
  int32_t num_rows;  // of x
  int32_t out_features;
  int32_t in_features;
  int32_t num_warps;  // row tiles of 8 per item
  int32_t num_items;  // groups of 8 * num_warps rows of W
  int32_t num_stages;
};

// XRows (8 or 16): rows of x, padded. Shared memory per stage: two boxes of W
// [8 * num_warps, 64], then two boxes of x [XRows, 64], 128-byte swizzled: the
// 16-byte chunk j of row r lies at chunk j ^ (r % 8).
template <int XRows, typename O>
__global__ void __launch_bounds__((kMaxWarps + 1) * kWarpSize)
    StreamingKernel(const __grid_constant__ CUtensorMap w_map,
                    const __grid_constant__ CUtensorMap x_map,
                    const StreamingShape shape, const float* bias, O* out,
                    int64_t out_stride) {
  extern __shared__ uint8_t shared_raw[];
  __shared__ uint64_t full[kMaxStages], empty[kMaxStages];
  uint8_t* shared = reinterpret_cast<uint8_t*>(
      (reinterpret_cast<uintptr_t>(shared_raw) + kAlignment - 1) / kAlignment *
      kAlignment);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int w_box = shape.num_warps * 1024, x_box = XRows * 128;
  const int stage_bytes = 2 * (w_box + x_box);
  const int num_chunks =
      (shape.in_features + kStageColumns - 1) / kStageColumns;

  if (threadIdx.x == 0) {
    for (int s = 0; s < shape.num_stages; ++s) {
      InitBarrier(&full[s], 1);
      InitBarrier(&empty[s], shape.num_warps);
    }
    FenceBarrierInit();
  }
  __syncthreads();
  GridTrigger();

  if (warp == shape.num_warps) {
    if (lane != 0) {
      GridWait();
      return;
    }
    PrefetchMap(&w_map);
    PrefetchMap(&x_map);
    const uint64_t w_policy = EvictFirstPolicy(), x_policy = EvictLastPolicy();
    const auto load_w = [&](int stage, int item, int chunk) {
      uint8_t* base = shared + stage * stage_bytes;
      const int row = item * shape.num_warps * 8,
                column = chunk * kStageColumns;
      ArriveExpect(&full[stage], stage_bytes);
      CopyBox(base, &w_map, column, row, &full[stage], w_policy);
      CopyBox(base + w_box, &w_map, column + kBoxColumns, row, &full[stage],
              w_policy);
    };
    const auto load_x = [&](int stage, int chunk) {
      uint8_t* base = shared + stage * stage_bytes + 2 * w_box;
      const int column = chunk * kStageColumns;
      CopyBox(base, &x_map, column, 0, &full[stage], x_policy);
      CopyBox(base + x_box, &x_map, column + kBoxColumns, 0, &full[stage],
              x_policy);
    };
    // The first fill of the pipeline, possibly across items: W, then x.
    const int my_items =
        (shape.num_items - static_cast<int>(blockIdx.x) + gridDim.x - 1) /
        gridDim.x;
    const int total = my_items * num_chunks;
    const int first = min(total, shape.num_stages);
    for (int i = 0; i < first; ++i)
      load_w(i, blockIdx.x + i / num_chunks * gridDim.x, i % num_chunks);
    GridWait();
    for (int i = 0; i < first; ++i) load_x(i, i % num_chunks);
    int stage = first % shape.num_stages, phase = 0;
    int item = blockIdx.x + first / num_chunks * gridDim.x;
    int chunk = first % num_chunks;
    for (int i = first; i < total; ++i) {
      WaitBarrier(&empty[stage], phase);
      load_w(stage, item, chunk);
      load_x(stage, chunk);
      if (++stage == shape.num_stages) {
        stage = 0;
        phase ^= 1;
      }
      if (++chunk == num_chunks) {
        chunk = 0;
        item += gridDim.x;
      }
    }
    return;
  }

  GridWait();
  // ldmatrix: lane l names row l % 8 of matrix l / 8.
  const int matrix = lane / 8, matrix_row = lane % 8;
  int stage = 0, phase = 0;
  for (int item = blockIdx.x; item < shape.num_items; item += gridDim.x) {
    float acc[4] = {};
    for (int chunk = 0; chunk < num_chunks; ++chunk) {
      WaitBarrier(&full[stage], phase);
      const uint32_t base = SharedAddress(shared) + stage * stage_bytes;
#pragma unroll
      for (int box = 0; box < 2; ++box) {
        const uint32_t w_row =
            base + box * w_box + warp * 1024 + matrix_row * 128;
        const uint32_t x_base = base + 2 * w_box + box * x_box;
#pragma unroll
        for (int half = 0; half < 2; ++half) {  // 32 columns
          uint32_t w[4];
          LoadMatrix4(w, w_row + (((half * 4 + matrix) ^ matrix_row) << 4));
          if constexpr (XRows == 8) {
            uint32_t x[4];
            LoadMatrix4(x, x_base + matrix_row * 128 +
                               (((half * 4 + matrix) ^ matrix_row) << 4));
            Mma(acc, x[0], 0, x[1], 0, w[0], w[1]);
            Mma(acc, x[2], 0, x[3], 0, w[2], w[3]);
          } else {
#pragma unroll
            for (int step = 0; step < 2; ++step) {
              uint32_t x[4];
              const int row = (matrix % 2) * 8 + matrix_row;
              const int column = half * 4 + step * 2 + matrix / 2;
              LoadMatrix4(x, x_base + row * 128 + ((column ^ matrix_row) << 4));
              Mma(acc, x[0], x[1], x[2], x[3], w[2 * step], w[2 * step + 1]);
            }
          }
        }
      }
      __syncwarp();
      if (lane == 0) Arrive(&empty[stage]);
      if (++stage == shape.num_stages) {
        stage = 0;
        phase ^= 1;
      }
    }
    const int column = (item * shape.num_warps + warp) * 8 + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < (XRows == 8 ? 2 : 4); ++i) {
      const int row = lane / 4 + i / 2 * 8, n = column + i % 2;
      if (row < shape.num_rows && n < shape.out_features) {
        const float b = bias == nullptr ? 0.0f : bias[n];
        out[row * out_stride + n] = FromFloat<O>(acc[i] + b);
      }
    }
  }
}

absl::StatusOr<PFN_cuTensorMapEncodeTiled_v12000> TensorMapEncoder() {
  static const auto encoder = []() -> PFN_cuTensorMapEncodeTiled_v12000 {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result;
    const cudaError_t code = cudaGetDriverEntryPointByVersion(
        "cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
    if (code != cudaSuccess || result != cudaDriverEntryPointSuccess)
      return nullptr;
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  if (encoder == nullptr)
    return absl::UnavailableError(
        "the CUDA driver has no cuTensorMapEncodeTiled; it must be 525 or "
        "newer");
  return encoder;
}

// A bf16 matrix read in boxes of [box_rows, 64].
absl::Status EncodeMap(const void* data, int64_t rows, int64_t cols,
                       int64_t row_stride, int box_rows, CUtensorMap* map) {
  SY_ASSIGN_OR_RETURN(const auto encode, TensorMapEncoder());
  const cuuint64_t dims[2] = {static_cast<cuuint64_t>(cols),
                              static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(row_stride * 2)};
  const cuuint32_t box[2] = {kBoxColumns, static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult result =
      encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, const_cast<void*>(data),
             dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    return absl::InternalError(absl::StrCat("cuTensorMapEncodeTiled of [", rows,
                                            ", ", cols, "]: code ",
                                            static_cast<int>(result)));
  return absl::OkStatus();
}

template <int XRows, typename O>
absl::Status LaunchStreaming(const OpContext& context, const MatmulArgs& args) {
  const CudaWeight& weight = AsCuda(*args.weight);
  const int num_sms = AsCuda(context.device)->num_sms();
  CUtensorMap x_map;
  SY_RETURN_IF_ERROR(EncodeMap(args.x.data, args.x.rows, args.x.cols,
                               args.x.row_stride, XRows, &x_map));
  StreamingShape shape;
  shape.num_rows = static_cast<int32_t>(args.x.rows);
  shape.out_features = static_cast<int32_t>(args.weight->out_features());
  shape.in_features = static_cast<int32_t>(args.weight->in_features());
  shape.num_warps = weight.rows_per_tile / 8;
  shape.num_items =
      static_cast<int32_t>(CeilDiv(shape.out_features, weight.rows_per_tile));
  const int stage_bytes = 2 * (shape.num_warps * 1024 + XRows * 128);
  shape.num_stages = std::min(kMaxStages, kPipelineBytes / stage_bytes);
  const LaunchShape launch{dim3(std::min(shape.num_items, num_sms)),
                           dim3((shape.num_warps + 1) * kWarpSize),
                           shape.num_stages * stage_bytes + kAlignment};
  return Launch(context, "Matmul (streaming)", StreamingKernel<XRows, O>,
                launch, weight.map, x_map, shape, args.bias,
                static_cast<O*>(args.out.data), args.out.row_stride);
}

}  // namespace

absl::Status PlanStreaming(int num_sms, int64_t out_features,
                           int64_t in_features, CudaWeight* weight) {
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
                   weight->rows_per_tile, &weight->map);
}

bool CanStream(const MatmulArgs& args) {
  return args.x.rows <= kMaxStreamingRows && args.x.dtype == DType::kBF16 &&
         AsCuda(*args.weight).rows_per_tile > 0 && AlignedTo(args.x, 16);
}

absl::Status MatmulStreaming(const OpContext& context, const MatmulArgs& args) {
  return DispatchActivation(args.out.dtype, "Matmul", [&](auto tag) {
    using O = typename decltype(tag)::type;
    return args.x.rows <= 8 ? LaunchStreaming<8, O>(context, args)
                            : LaunchStreaming<16, O>(context, args);
  });
}

}  // namespace switchyard::internal
