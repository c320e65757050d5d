// Where a model's weights come from: a checkpoint, or a counter-based
// generator.
#ifndef SWITCHYARD_MODEL_WEIGHT_SOURCE_H_
#define SWITCHYARD_MODEL_WEIGHT_SOURCE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/tensor.h"
#include "model/weight_table.h"

namespace switchyard {

// A rank's slice of one tensor in host memory; row-major and contiguous. Owns
// its bytes; movable.
struct HostTensor {
  std::vector<std::byte> bytes;
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;

  // Borrows this tensor's memory, which the ops take as non-const.
  MatrixView view() { return MakeMatrix(bytes.data(), dtype, rows, cols); }
  // REQUIRES: dtype is kF32.
  const float* floats() const {
    return reinterpret_cast<const float*>(bytes.data());
  }
};

// Thread-safe: any number of threads may read at once.
class WeightSource {
 public:
  virtual ~WeightSource() = default;

  // The type the tensor is stored in: kF32, kBF16 or kF16.
  virtual DType StoredType(const TensorSpec& spec) const = 0;

  // Writes the slice of `rank` into `out`, converting to its type (kF32, kBF16
  // or kF16, round to nearest even); rows of padding become zeros. `spec` is
  // one of the model's. InvalidArgument when the shape of `out` is not
  // LocalShape(spec, world_size) or its type is none of these.
  virtual absl::Status ReadInto(const TensorSpec& spec, int32_t rank,
                                int32_t world_size,
                                const MatrixView& out) const = 0;

  // The same into a tensor of its own.
  absl::StatusOr<HostTensor> Read(const TensorSpec& spec, int32_t rank,
                                  int32_t world_size, DType dtype) const;
};

// Converts `num` elements of kF32, kBF16 or kF16 to another of these types.
void ConvertElements(DType from, const void* source, DType to, void* target,
                     int64_t num);

// What every ReadInto checks first.
absl::Status CheckSlice(const TensorSpec& spec, int32_t rank,
                        int32_t world_size, const MatrixView& out);

}  // namespace switchyard

#endif  // SWITCHYARD_MODEL_WEIGHT_SOURCE_H_
