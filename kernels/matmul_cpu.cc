#include "kernels/matmul_cpu.h"

#include <omp.h>

#include <memory>
#include <utility>
#include <vector>

#include "kernels/backends.h"
#include "kernels/dtype.h"
#include "kernels/status.h"

namespace switchyard::internal {
namespace {

std::vector<float> ToFloat(const MatrixView& m) {
  std::vector<float> out(m.rows * m.cols);
  for (int64_t row = 0; row < m.rows; ++row) {
    float* to = out.data() + row * m.cols;
    if (m.dtype == DType::kF32) {
      std::memcpy(to, m.Row<const float>(row), m.cols * sizeof(float));
      continue;
    }
    const uint16_t* from = m.Row<const uint16_t>(row);
    if (m.dtype == DType::kBF16) {
      for (int64_t c = 0; c < m.cols; ++c) to[c] = BF16ToFloat(from[c]);
    } else {
      for (int64_t c = 0; c < m.cols; ++c) to[c] = F16ToFloat(from[c]);
    }
  }
  return out;
}

}  // namespace

absl::StatusOr<std::unique_ptr<WeightMatrix::Storage>> PackWeightCpu(
    Device* device, const MatrixView& host, DType dtype) {
  omp_set_num_threads(device->num_threads());
  const std::vector<float> weight = ToFloat(host);
  SY_ASSIGN_OR_RETURN(std::unique_ptr<CpuWeight> packed,
                      PackForDnnl(weight.data(), host.rows, host.cols));
  if (packed == nullptr) {
    packed = PackPortable(weight.data(), host.rows, host.cols);
  }
  return std::unique_ptr<WeightMatrix::Storage>(std::move(packed));
}

absl::Status MatmulCpu(const OpContext& context, const MatmulArgs& args) {
  return static_cast<const CpuWeight*>(args.weight->storage())
      ->Multiply(args.x, args.bias, args.out);
}

}  // namespace switchyard::internal
