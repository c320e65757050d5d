// From a weight source to this rank's weights on its device: the slices of the
// weight table, those that share an input joined into one matrix.
#ifndef SWITCHYARD_MODEL_WEIGHTS_H_
#define SWITCHYARD_MODEL_WEIGHTS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "kernels/matmul.h"
#include "kernels/tensor.h"
#include "model/config.h"
#include "model/weight_source.h"
#include "model/weight_table.h"

namespace switchyard {

// fp32 numbers on a device: norm weights, biases, convolution taps.
class DeviceVector {
 public:
  DeviceVector() = default;
  DeviceVector(DeviceBuffer buffer, int64_t size)
      : buffer_(std::move(buffer)), size_(size) {}

  // Null when empty, as ops want an absent bias.
  const float* data() const {
    return reinterpret_cast<const float*>(buffer_.get());
  }
  int64_t size() const { return size_; }

 private:
  DeviceBuffer buffer_;
  int64_t size_ = 0;
};

// Rows to look up, on a device, in the type they are stored in.
struct DeviceTable {
  DeviceBuffer buffer;
  MatrixView view;
};

// What a matrix or vector is joined from.
struct WeightPart {
  WeightPart(TensorRole role, std::vector<int64_t> rows = {})
      : role(role), rows(std::move(rows)) {}
  // Every element of a part of a vector times `scale`.
  static WeightPart Scaled(TensorRole role, float scale) {
    WeightPart part(role);
    part.scale = scale;
    return part;
  }
  // A part of a vector that the model has no tensor for.
  static WeightPart Zeros(int64_t num) {
    WeightPart part(TensorRole::kEmbedding);
    part.num_zeros = num;
    return part;
  }

  TensorRole role;
  // Rows of the rank's slice to take, in this order, some perhaps repeatedly;
  // empty: all.
  std::vector<int64_t> rows;
  int64_t num_zeros = 0;
  float scale = 1;  // vectors only
};

struct WeightReaderOptions {
  int32_t rank = 0;
  int32_t world_size = 1;
  DType matrix_dtype = DType::kF32;  // what matrices become on the device
  // Called after every tensor with the bytes of this rank read so far.
  std::function<void(int64_t bytes)> progress;
};

class WeightScope;

// Reads one rank's weights. Used by one thread, while a model is loaded;
// borrows device and source.
class WeightReader {
 public:
  WeightReader(Device* device, const ModelConfig& config,
               const WeightSource* source, WeightReaderOptions options);

  // The tensors outside the layers; of a layer; of one of its mixers.
  WeightScope Model();
  WeightScope Layer(int32_t layer);
  WeightScope Mixer(int32_t layer, int32_t mixer);

  int64_t bytes_total() const { return bytes_total_; }  // of this rank
  // Internal, naming a tensor that nobody asked for: our own omission, since
  // the source holds exactly the table's tensors.
  absl::Status CheckAllRead() const;

 private:
  friend class WeightScope;
  using Key = std::tuple<int32_t, int32_t, TensorRole>;  // layer, mixer, role

  struct Entry {
    TensorSpec spec;
    bool read = false;
  };

  // REQUIRES: the table has it.
  Entry& Find(const Key& key);
  absl::Status ReadInto(Entry& entry, const MatrixView& out);
  // Host memory to put a matrix together in, contiguous, page-locked where
  // copies to the device profit from it; one at a time, contents undefined.
  absl::StatusOr<MatrixView> Stage(DType dtype, int64_t rows, int64_t cols);

  Device* const device_;
  const WeightSource* const source_;
  const WeightReaderOptions options_;
  std::map<Key, Entry> entries_;
  int64_t bytes_total_ = 0;
  int64_t bytes_read_ = 0;
  DeviceBuffer staging_;
  int64_t staging_bytes_ = 0;
};

// A reader's view of one layer's or mixer's tensors. Errors: the source's,
// ResourceExhausted. REQUIRES throughout: the config implies the tensors asked
// for.
class WeightScope {
 public:
  WeightScope(WeightReader* reader, int32_t layer, int32_t mixer)
      : reader_(reader), layer_(layer), mixer_(mixer) {}

  // The parts' rows one below the other. REQUIRES: equal columns.
  absl::StatusOr<WeightMatrix> Matrix(
      const std::vector<WeightPart>& parts) const;
  // The parts one behind the other.
  absl::StatusOr<DeviceVector> Vector(
      const std::vector<WeightPart>& parts) const;
  // A bias that belongs after the all-reduce: rank 0 has it, the others an
  // empty vector, so that the sum holds it once.
  absl::StatusOr<DeviceVector> OutputBias(TensorRole role) const;
  absl::StatusOr<DeviceTable> Table(TensorRole role) const;

 private:
  // Where the rows of a part go; advances `row`.
  absl::Status ReadPart(const WeightPart& part, const MatrixView& out,
                        int64_t& row) const;
  int64_t NumRows(const WeightPart& part) const;

  WeightReader* reader_;
  int32_t layer_;
  int32_t mixer_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_MODEL_WEIGHTS_H_
