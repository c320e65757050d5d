// The second halves of kda's two low-rank projections, decay and output gate,
// as one launch: products of few rows with weights of 128 columns, a megabyte
// each, that would each take longer to start than to run. A warp holds the
// whole of 16 rows of W in registers, loaded before GridWait, and multiplies
// them with eight rows of x at a time.
#include "kernels/cuda_common.h"
#include "kernels/cuda_ptx.h"
#include "kernels/gated_delta_cuda.h"
#include "kernels/matmul_cuda.h"

namespace switchyard::internal {
namespace {

using namespace switchyard::cuda;

constexpr int kRank = 128;           // columns of W
constexpr int kChunks = kRank / 32;  // a lane's 16-byte loads of a row
constexpr int kWarps = 4;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kWeightRows = 16 * kWarps;  // of a block
constexpr int kTokens = 64;               // of a block
constexpr int kTileTokens = 8;            // of one product
constexpr int kAhead = 2;                 // tiles whose loads are in flight
// From here on the products are large enough to be fast by themselves.
constexpr int64_t kMaxTokens = 256;

struct Product {
  MatrixView x, out;
  const bf16* weight;
  int32_t num_tiles;  // of kWeightRows
};

struct ProjectParams {
  Product decay, gate;
};

// Eight elements of a row. The order of columns does not matter to a product as
// long as both sides have the same: pair i goes to the columns 2t (even i) and
// 2t + 8 (odd i) of product i / 2, where t is the lane's number in its row.
struct alignas(16) Slice {
  uint32_t pair[4];
};

__device__ __forceinline__ Slice LoadSlice(const bf16* p) {
  return *reinterpret_cast<const Slice*>(p);
}

__device__ __forceinline__ void StoreAs(const MatrixView& to, int64_t row,
                                        int64_t column, float x) {
  if (to.dtype == DType::kF32)
    RowOf<float>(to, row)[column] = x;
  else
    RowOf<bf16>(to, row)[column] = FromFloat<bf16>(x);
}

__global__ void __launch_bounds__(kThreads)
    ProjectKernel(const ProjectParams p) {
  GridTrigger();
  const bool is_decay = blockIdx.x < p.decay.num_tiles;
  const Product& product = is_decay ? p.decay : p.gate;
  const int tile = blockIdx.x - (is_decay ? 0 : p.decay.num_tiles);
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;
  const int g = lane / 4, t = lane % 4;
  const int64_t row = tile * kWeightRows + warp * 16 + g;
  Slice w[2][kChunks];  // rows `row` and `row + 8`
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    w[0][c] = LoadSlice(product.weight + row * kRank + c * 32 + t * 8);
    w[1][c] = LoadSlice(product.weight + (row + 8) * kRank + c * 32 + t * 8);
  }
  GridWait();

  const int64_t num_tokens = product.x.rows;
  const int64_t end =
      min(num_tokens, int64_t{blockIdx.y} * kTokens + int64_t{kTokens});
  for (int64_t first = int64_t{blockIdx.y} * kTokens; first < end;
       first += kAhead * kTileTokens) {
    Slice x[kAhead][kChunks] = {};
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int64_t token = first + a * kTileTokens + g;
      if (token >= end) continue;
#pragma unroll
      for (int c = 0; c < kChunks; ++c)
        x[a][c] = LoadSlice(RowOf<bf16>(product.x, token) + c * 32 + t * 8);
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      float sum[4] = {};
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
#pragma unroll
        for (int half = 0; half < 4; half += 2) {
          Mma(sum, w[0][c].pair[half], w[1][c].pair[half],
              w[0][c].pair[half + 1], w[1][c].pair[half + 1],
              x[a][c].pair[half], x[a][c].pair[half + 1]);
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int64_t token = first + a * kTileTokens + 2 * t + i % 2;
        if (token < end) StoreAs(product.out, token, row + i / 2 * 8, sum[i]);
      }
    }
  }
}

bool Fits(const MatmulArgs& product) {
  return product.weight != nullptr && product.bias == nullptr &&
         product.weight->dtype() == DType::kBF16 &&
         product.weight->in_features() == kRank &&
         product.weight->out_features() % kWeightRows == 0 &&
         product.x.dtype == DType::kBF16 && AlignedTo(product.x, 16) &&
         product.x.rows <= kMaxTokens;
}

Product Of(const MatmulArgs& args) {
  return {args.x, args.out,
          reinterpret_cast<const bf16*>(AsCuda(*args.weight).data.get()),
          static_cast<int32_t>(args.weight->out_features() / kWeightRows)};
}

}  // namespace

bool CanProjectGates(const MatmulArgs& decay, const MatmulArgs& gate) {
  return Fits(decay) && Fits(gate) && decay.x.rows == gate.x.rows;
}

absl::Status ProjectGates(const OpContext& context, const MatmulArgs& decay,
                          const MatmulArgs& gate) {
  const ProjectParams params = {Of(decay), Of(gate)};
  const dim3 grid(params.decay.num_tiles + params.gate.num_tiles,
                  static_cast<unsigned>(CeilDiv(decay.x.rows, kTokens)));
  return Launch(context, "GatedDelta (gates)", ProjectKernel,
                {grid, dim3(kThreads)}, params);
}

}  // namespace switchyard::internal
