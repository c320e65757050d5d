// Reading of safetensors files through memory maps.
//
// The format (github.com/huggingface/safetensors): 8 bytes of little-endian
// header length, a JSON header {name: {dtype, shape, data_offsets}}, then the
// data, which the tensors cover without overlap or gap. Nothing in a file is
// believed: every error is an InvalidArgument naming the file and the tensor.
//
// Everything here is immutable once opened and thread-safe. The files must not
// be truncated while they are mapped (the system would raise SIGBUS).
#ifndef SWITCHYARD_MODEL_SAFETENSORS_H_
#define SWITCHYARD_MODEL_SAFETENSORS_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/dtype.h"

namespace switchyard {

// One tensor of a mapped file. Borrows the file's memory.
struct TensorView {
  std::string dtype_name;      // as in the file: "BF16", "I64", ...
  std::optional<DType> dtype;  // the types the engine reads; else nullopt
  std::vector<int64_t> shape;
  absl::Span<const std::byte> bytes;  // row-major; not necessarily aligned
};

using TensorMap = std::map<std::string, TensorView>;

// Checks and takes apart one file's content. The views point into `file`;
// `file_name` is for messages.
absl::StatusOr<TensorMap> ParseSafetensors(absl::Span<const std::byte> file,
                                           absl::string_view file_name);

// The content of a model.safetensors.index.json: tensor name -> file name of
// its shard, which lies in the same directory.
absl::StatusOr<std::map<std::string, std::string>> ParseSafetensorsIndex(
    absl::string_view json, absl::string_view file_name);

// A file mapped for reading. Movable.
class MappedFile {
 public:
  // NotFound, or FailedPrecondition for what the system refuses.
  static absl::StatusOr<MappedFile> Open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  absl::Span<const std::byte> bytes() const {
    return {static_cast<const std::byte*>(data_), size_};
  }

 private:
  MappedFile(void* data, size_t size) : data_(data), size_(size) {}

  void* data_;  // null when empty
  size_t size_;
};

// All tensors of one model directory. Movable.
class SafetensorsModel {
 public:
  // DIR/model.safetensors, else the shards of DIR/model.safetensors.index.json.
  // NotFound when there is neither, or a shard is not there. Shards and index
  // must agree: a tensor the index does not place in the shard that has it, or
  // places in one that lacks it, is an error.
  static absl::StatusOr<SafetensorsModel> Open(const std::string& model_dir);

  struct Entry {
    TensorView view;
    int32_t file = 0;  // index into paths()
  };

  // Null when there is no such tensor.
  const Entry* Find(const std::string& name) const;
  const std::map<std::string, Entry>& tensors() const { return tensors_; }
  const std::vector<std::string>& paths() const { return paths_; }

 private:
  SafetensorsModel() = default;

  // Maps a shard and adds its tensors.
  absl::Status AddFile(const std::string& path);

  std::vector<std::string> paths_;
  std::vector<MappedFile> files_;  // by index of paths_
  std::map<std::string, Entry> tensors_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_MODEL_SAFETENSORS_H_
