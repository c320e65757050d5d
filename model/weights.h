// WeightReader: from a source of tensors to this rank's weights on its device.
//
// The mixers, MLPs and the model name their tensors; the reader slices them for
// the rank (through the weight table), joins those that share an input into one
// matrix, converts and uploads them. It counts bytes for the progress.
#ifndef SWITCHYARD_MODEL_WEIGHTS_H_
#define SWITCHYARD_MODEL_WEIGHTS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/device.h"
#include "kernels/matmul.h"
#include "kernels/tensor.h"

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

// A table of rows in its stored type, for lookups.
struct DeviceTable {
  DeviceBuffer buffer;
  MatrixView view;  // [rows, cols]
};

// This rank's slice of one tensor, row-major on the host; a vector is one
// column per... [rows, 1].
struct HostTensor {
  MatrixView view;  // [rows, cols] fp32, bf16 or fp16
  std::vector<std::byte>
      storage;  // holds the rows when they had to be gathered
};

// Where tensors come from: a checkpoint, or random numbers.
class TensorSource {
 public:
  virtual ~TensorSource() = default;
  // The rank's slice of the tensor called `name`. A tensor of one dimension is
  // a row of it.
  virtual absl::StatusOr<HostTensor> Read(const std::string& name) = 0;
};

// Part of a joined matrix or vector.
struct WeightPart {
  std::string name;
  // Rows of the rank's slice to take, in this order; empty: all. A row may be
  // taken more than once.
  std::vector<int64_t> rows;
};

}  // namespace switchyard

#endif  // SWITCHYARD_MODEL_WEIGHTS_H_
