// The parts of the CUDA matmul. Choice between them: matmul_cuda.cu.
#ifndef SWITCHYARD_KERNELS_MATMUL_CUDA_H_
#define SWITCHYARD_KERNELS_MATMUL_CUDA_H_

#include <cuda.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/gated_matmul.h"
#include "kernels/matmul.h"

namespace switchyard::internal {

// A weight on the GPU, row-major [out_features, in_features] without padding.
struct CudaWeight final : WeightMatrix::Storage {
  DeviceBuffer data;
  // For the streaming kernel; rows_per_tile is 0 where it cannot serve this
  // weight (fp32, or rows that are not whole units of 128 bytes).
  CUtensorMap map = {};
  int32_t rows_per_tile = 0;
  // For the wide kernel; wide_rows is 0 where it cannot serve this weight.
  CUtensorMap wide_map = {};
  int32_t wide_rows = 0;   // of W in a tile
  int32_t wide_split = 1;  // blocks that share a tile's columns
  int32_t wide_from = 0;   // rows of x from which it is the fastest
};

inline const CudaWeight& AsCuda(const WeightMatrix& weight) {
  return *static_cast<const CudaWeight*>(weight.storage());
}

// ---- Few rows: weights streamed through shared memory by the copy engine ----

constexpr int kMaxStreamingRows = 16;

// Fills map and rows_per_tile, where the kernel can serve the weight.
absl::Status PlanStreaming(int num_sms, int64_t out_features,
                           int64_t in_features, CudaWeight* weight);
// Whether the streaming kernel serves this product.
bool CanStream(const MatrixView& x, const WeightMatrix& weight);
// REQUIRES, of both: CanStream(args.x, *args.weight).
absl::Status MatmulStreaming(const OpContext& context, const MatmulArgs& args);
absl::Status GatedMatmulStreaming(const OpContext& context,
                                  const GatedMatmulArgs& args);

// ---- More rows: the weight streamed through the warpgroup instruction ----

constexpr int kMaxWideRows = 64;  // above, cuBLASLt is no slower

// Fills wide_map, wide_rows, wide_split and wide_from.
absl::Status PlanWide(int num_sms, int64_t out_features, int64_t in_features,
                      CudaWeight* weight);
// Whether the wide kernel can serve this product, of any number of rows.
bool CanMultiplyWide(const MatrixView& x, const WeightMatrix& weight);
// And whether it does: where it is the fastest, and wherever a row's bits may
// not depend on the others.
bool ServesWide(const OpContext& context, const MatrixView& x,
                const WeightMatrix& weight);
// REQUIRES, of both: CanMultiplyWide(args.x, *args.weight).
absl::Status MatmulWide(const OpContext& context, const MatmulArgs& args);
absl::Status GatedMatmulWide(const OpContext& context,
                             const GatedMatmulArgs& args);

// ---- What no other kernel serves of a batch-invariant context: scalar ----
absl::Status MatmulInvariant(const OpContext& context, const MatmulArgs& args);

}  // namespace switchyard::internal

#endif  // SWITCHYARD_KERNELS_MATMUL_CUDA_H_
