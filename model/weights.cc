#include "model/weights.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "kernels/status.h"

namespace switchyard {
namespace {

// Bytes of this rank's slice once it is on the device.
int64_t SliceBytes(const TensorSpec& spec, const WeightReaderOptions& options) {
  const SliceShape shape = LocalShape(spec, options.world_size);
  const DType dtype = spec.is_matrix ? options.matrix_dtype : DType::kF32;
  return shape.rows * shape.cols * DTypeBytes(dtype);
}

// A contiguous matrix in host memory, zeros at first.
struct HostMatrix {
  HostMatrix(DType dtype, int64_t rows, int64_t cols)
      : bytes(rows * cols * DTypeBytes(dtype)),
        view(MakeMatrix(bytes.data(), dtype, rows, cols)) {}
  HostMatrix(const HostMatrix&) = delete;
  HostMatrix& operator=(const HostMatrix&) = delete;

  std::vector<std::byte> bytes;
  MatrixView view;
};

// REQUIRES: contiguous.
absl::StatusOr<DeviceBuffer> Upload(Device* device, const MatrixView& host) {
  const int64_t bytes = host.rows * host.cols * DTypeBytes(host.dtype);
  SY_ASSIGN_OR_RETURN(DeviceBuffer buffer, device->Allocate(bytes));
  SY_RETURN_IF_ERROR(device->CopyToDevice(buffer.get(), host.data, bytes));
  SY_RETURN_IF_ERROR(device->Synchronize());
  return buffer;
}

}  // namespace

WeightReader::WeightReader(Device* device, const ModelConfig& config,
                           const WeightSource* source,
                           WeightReaderOptions options)
    : device_(device), source_(source), options_(std::move(options)) {
  for (TensorSpec& spec : EnumerateTensors(config)) {
    bytes_total_ += SliceBytes(spec, options_);
    const Key key{spec.layer, spec.mixer, spec.role};
    entries_.emplace(key, Entry{std::move(spec)});
  }
}

WeightScope WeightReader::Model() { return WeightScope(this, -1, -1); }
WeightScope WeightReader::Layer(int32_t layer) {
  return WeightScope(this, layer, -1);
}
WeightScope WeightReader::Mixer(int32_t layer, int32_t mixer) {
  return WeightScope(this, layer, mixer);
}

absl::Status WeightReader::CheckAllRead() const {
  for (const auto& [key, entry] : entries_) {
    if (!entry.read) {
      return absl::InternalError(
          absl::StrCat("tensor ", entry.spec.name, " was not loaded"));
    }
  }
  return absl::OkStatus();
}

WeightReader::Entry& WeightReader::Find(const Key& key) {
  const auto it = entries_.find(key);
  SY_CHECK(it != entries_.end());
  return it->second;
}

absl::StatusOr<MatrixView> WeightReader::Stage(DType dtype, int64_t rows,
                                               int64_t cols) {
  const int64_t bytes = rows * cols * DTypeBytes(dtype);
  if (bytes > staging_bytes_) {
    staging_.reset();
    staging_bytes_ = 0;
    SY_ASSIGN_OR_RETURN(staging_, device_->AllocateHost(bytes));
    staging_bytes_ = bytes;
  }
  return MakeMatrix(staging_.get(), dtype, rows, cols);
}

absl::Status WeightReader::ReadInto(Entry& entry, const MatrixView& out) {
  SY_RETURN_IF_ERROR(
      source_->ReadInto(entry.spec, options_.rank, options_.world_size, out));
  if (!entry.read) {
    entry.read = true;
    bytes_read_ += SliceBytes(entry.spec, options_);
    if (options_.progress) options_.progress(bytes_read_);
  }
  return absl::OkStatus();
}

int64_t WeightScope::NumRows(const WeightPart& part) const {
  if (part.num_zeros > 0) return part.num_zeros;
  if (!part.rows.empty()) return part.rows.size();
  const auto& entry = reader_->Find({layer_, mixer_, part.role});
  return LocalShape(entry.spec, reader_->options_.world_size).rows;
}

absl::Status WeightScope::ReadPart(const WeightPart& part,
                                   const MatrixView& out, int64_t& row) const {
  const int64_t num_rows = NumRows(part);
  const MatrixView target = out.Rows(row, num_rows);
  row += num_rows;
  if (part.num_zeros > 0) {
    SY_CHECK(target.contiguous());
    std::memset(target.data, 0,
                target.rows * target.cols * DTypeBytes(target.dtype));
    return absl::OkStatus();
  }
  auto& entry = reader_->Find({layer_, mixer_, part.role});
  if (part.rows.empty()) return reader_->ReadInto(entry, target);

  const SliceShape shape = LocalShape(entry.spec, reader_->options_.world_size);
  HostMatrix slice(out.dtype, shape.rows, shape.cols);
  SY_RETURN_IF_ERROR(reader_->ReadInto(entry, slice.view));
  for (int64_t i = 0; i < num_rows; ++i) {
    std::memcpy(target.Rows(i, 1).data, slice.view.Rows(part.rows[i], 1).data,
                shape.cols * DTypeBytes(out.dtype));
  }
  return absl::OkStatus();
}

absl::StatusOr<WeightMatrix> WeightScope::Matrix(
    const std::vector<WeightPart>& parts) const {
  int64_t num_rows = 0;
  int64_t cols = 0;
  // The host keeps what is stored, unless the parts are of several types.
  DType dtype = DType::kF32;
  for (const WeightPart& part : parts) {
    const TensorSpec& spec = reader_->Find({layer_, mixer_, part.role}).spec;
    const DType stored = reader_->source_->StoredType(spec);
    const int64_t part_cols =
        LocalShape(spec, reader_->options_.world_size).cols;
    if (num_rows == 0) {
      dtype = stored;
      cols = part_cols;
    }
    SY_CHECK(part_cols == cols);
    if (stored != dtype) dtype = DType::kF32;
    num_rows += NumRows(part);
  }
  SY_ASSIGN_OR_RETURN(const MatrixView host,
                      reader_->Stage(dtype, num_rows, cols));
  int64_t row = 0;
  for (const WeightPart& part : parts) {
    SY_RETURN_IF_ERROR(ReadPart(part, host, row));
  }
  return WeightMatrix::Create(reader_->device_, host,
                              reader_->options_.matrix_dtype);
}

absl::StatusOr<DeviceVector> WeightScope::Vector(
    const std::vector<WeightPart>& parts) const {
  int64_t num_rows = 0;
  int64_t cols = 1;
  for (const WeightPart& part : parts) {
    if (part.num_zeros == 0) {
      cols = LocalShape(reader_->Find({layer_, mixer_, part.role}).spec,
                        reader_->options_.world_size)
                 .cols;
    }
    num_rows += NumRows(part);
  }
  SY_ASSIGN_OR_RETURN(const MatrixView host,
                      reader_->Stage(DType::kF32, num_rows, cols));
  int64_t row = 0;
  for (const WeightPart& part : parts) {
    float* const begin = host.Row<float>(row);
    SY_RETURN_IF_ERROR(ReadPart(part, host, row));
    std::for_each(begin, host.Row<float>(row),
                  [&part](float& x) { x *= part.scale; });
  }
  SY_ASSIGN_OR_RETURN(DeviceBuffer buffer, Upload(reader_->device_, host));
  return DeviceVector(std::move(buffer), num_rows * cols);
}

absl::StatusOr<DeviceVector> WeightScope::OutputBias(TensorRole role) const {
  if (reader_->options_.rank == 0) return Vector({role});
  auto& entry = reader_->Find({layer_, mixer_, role});
  entry.read = true;
  return DeviceVector();
}

absl::StatusOr<DeviceTable> WeightScope::Table(TensorRole role) const {
  auto& entry = reader_->Find({layer_, mixer_, role});
  const SliceShape shape = LocalShape(entry.spec, reader_->options_.world_size);
  SY_ASSIGN_OR_RETURN(MatrixView view,
                      reader_->Stage(reader_->source_->StoredType(entry.spec),
                                     shape.rows, shape.cols));
  SY_RETURN_IF_ERROR(reader_->ReadInto(entry, view));
  SY_ASSIGN_OR_RETURN(DeviceBuffer buffer, Upload(reader_->device_, view));
  view.data = buffer.get();
  return DeviceTable{std::move(buffer), view};
}

}  // namespace switchyard
