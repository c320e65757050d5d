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
  // weight (fp32, or rows that are not whole 16-byte units).
  CUtensorMap map = {};
  int32_t rows_per_tile = 0;
};

inline const CudaWeight& AsCuda(const WeightMatrix& weight) {
  return *static_cast<const CudaWeight*>(weight.storage());
}

// ---- Few rows: weights streamed through shared memory by the copy engine ----

constexpr int kMaxStreamingRows = 16;

// Fills map and rows_per_tile.
absl::Status PlanStreaming(int num_sms, int64_t out_features,
                           int64_t in_features, CudaWeight* weight);
// Whether the streaming kernel serves this product.
bool CanStream(const MatrixView& x, const WeightMatrix& weight);
// REQUIRES, of both: CanStream(args.x, *args.weight).
absl::Status MatmulStreaming(const OpContext& context, const MatmulArgs& args);
absl::Status GatedMatmulStreaming(const OpContext& context,
                                  const GatedMatmulArgs& args);

// ---- Any number of rows, each row's bits independent of it ----
// Same instruction and same order of k as the streaming kernel, so the two
// agree bit for bit.
absl::Status MatmulInvariant(const OpContext& context, const MatmulArgs& args);

}  // namespace switchyard::internal

#endif  // SWITCHYARD_KERNELS_MATMUL_CUDA_H_
