// Matrix products with a weight, which is packed for its device once, at load.
#ifndef SWITCHYARD_KERNELS_MATMUL_H_
#define SWITCHYARD_KERNELS_MATMUL_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/op_context.h"
#include "kernels/tensor.h"

namespace switchyard {

// W [out_features, in_features], immutable, on a device. CPU: fp32, packed by
// oneDNN. CUDA: row-major bf16 (or fp32 in an fp32 run). Movable; shared by
// nobody.
class WeightMatrix {
 public:
  // What a backend keeps; defined by each backend.
  struct Storage {
    virtual ~Storage() = default;
  };

  WeightMatrix() = default;
  WeightMatrix(int64_t out_features, int64_t in_features, DType dtype,
               std::unique_ptr<Storage> storage)
      : out_features_(out_features),
        in_features_(in_features),
        dtype_(dtype),
        storage_(std::move(storage)) {}

  // Packs host memory, row-major [rows = out, cols = in] of fp32, bf16 or fp16.
  // `dtype` is the type kept on the device (the CPU keeps fp32 only).
  // Synchronous: `host` may go afterwards. InvalidArgument, ResourceExhausted.
  static absl::StatusOr<WeightMatrix> Create(Device* device,
                                             const MatrixView& host,
                                             DType dtype);

  int64_t out_features() const { return out_features_; }
  int64_t in_features() const { return in_features_; }
  DType dtype() const { return dtype_; }
  bool empty() const { return storage_ == nullptr; }
  const Storage* storage() const { return storage_.get(); }

 private:
  int64_t out_features_ = 0;
  int64_t in_features_ = 0;
  DType dtype_ = DType::kF32;
  std::unique_ptr<Storage> storage_;
};

struct MatmulArgs {
  MatrixView x;  // [num_tokens, in_features] activation type, any row stride
  const WeightMatrix* weight = nullptr;  // [out_features, in_features]
  const float* bias = nullptr;           // [out_features] fp32, or null
  MatrixView out;  // [num_tokens, out_features] fp32 or the activation type
};

// out = x W^T + bias, accumulated in fp32. On the CPU (and with
// batch_invariant) a row's bits do not depend on the number of rows.
absl::Status Matmul(const OpContext& context, const MatmulArgs& args);

}  // namespace switchyard

#endif  // SWITCHYARD_KERNELS_MATMUL_H_
