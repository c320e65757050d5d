#include "model/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/status.h"
#include "model/strict_json.h"

namespace switchyard {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = uint64_t{100} << 20;  // as the format says
constexpr size_t kMaxDimensions = 8;

// The types of the format, by their size in bits.
struct StoredType {
  const char* name;
  uint64_t bits;
  std::optional<DType> dtype;
};
constexpr StoredType kStoredTypes[] = {
    {"F32", 32, DType::kF32},     {"BF16", 16, DType::kBF16},
    {"F16", 16, DType::kF16},     {"I32", 32, DType::kI32},
    {"U8", 8, DType::kU8},        {"BOOL", 8, std::nullopt},
    {"I8", 8, std::nullopt},      {"I16", 16, std::nullopt},
    {"U16", 16, std::nullopt},    {"U32", 32, std::nullopt},
    {"I64", 64, std::nullopt},    {"U64", 64, std::nullopt},
    {"F64", 64, std::nullopt},    {"F8_E4M3", 8, std::nullopt},
    {"F8_E5M2", 8, std::nullopt}, {"F8_E8M0", 8, std::nullopt},
    {"F6_E2M3", 6, std::nullopt}, {"F6_E3M2", 6, std::nullopt},
    {"F4", 4, std::nullopt},      {"C64", 64, std::nullopt},
};

// a * b, or nullopt on overflow.
std::optional<uint64_t> Multiply(uint64_t a, uint64_t b) {
  uint64_t product;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

// One tensor's record in the header, with its place in the data.
class RecordParser {
 public:
  RecordParser(absl::string_view file, const std::string& name)
      : place_(absl::StrCat(file, ": tensor ", Printable(name), ": ")) {}

  struct Record {
    TensorView view;  // without bytes
    uint64_t begin = 0;
    uint64_t end = 0;
  };

  absl::StatusOr<Record> Parse(const Json& json, uint64_t data_size) const {
    if (!json.is_object()) return Error("its record must be an object");
    for (const auto& item : json.items()) {
      if (item.key() != "dtype" && item.key() != "shape" &&
          item.key() != "data_offsets") {
        return Error(absl::StrCat("unknown field \"", Printable(item.key()),
                                  "\" in its record"));
      }
    }
    Record record;
    SY_ASSIGN_OR_RETURN(const StoredType* type, ParseType(json));
    record.view.dtype_name = type->name;
    record.view.dtype = type->dtype;
    SY_ASSIGN_OR_RETURN(const uint64_t num_elements,
                        ParseShape(json, &record.view.shape));
    SY_RETURN_IF_ERROR(ParseOffsets(json, data_size, &record));

    const std::optional<uint64_t> bits = Multiply(num_elements, type->bits);
    if (!bits.has_value()) return Error("its shape is too large");
    if (*bits % 8 != 0) return Error("its elements do not fill whole bytes");
    if (*bits / 8 != record.end - record.begin) {
      return Error(absl::StrCat("its shape and dtype need ", *bits / 8,
                                " bytes, its data_offsets span ",
                                record.end - record.begin));
    }
    return record;
  }

 private:
  absl::Status Error(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat(place_, what));
  }

  absl::StatusOr<const StoredType*> ParseType(const Json& json) const {
    const auto it = json.find("dtype");
    if (it == json.end() || !it->is_string()) {
      return Error("its dtype must be a string");
    }
    const std::string& name = it->get_ref<const std::string&>();
    for (const StoredType& type : kStoredTypes) {
      if (name == type.name) return &type;
    }
    return Error(absl::StrCat("unknown dtype \"", Printable(name), "\""));
  }

  // Fills `shape`; the number of elements.
  absl::StatusOr<uint64_t> ParseShape(const Json& json,
                                      std::vector<int64_t>* shape) const {
    const auto it = json.find("shape");
    if (it == json.end() || !it->is_array()) {
      return Error("its shape must be a list");
    }
    if (it->size() > kMaxDimensions) {
      return Error(absl::StrCat("its shape has ", it->size(),
                                " dimensions, more than ", kMaxDimensions));
    }
    uint64_t num_elements = 1;
    for (const Json& extent : *it) {
      if (!extent.is_number_unsigned() ||
          extent.get<uint64_t>() >
              uint64_t{std::numeric_limits<int64_t>::max()}) {
        return Error("its shape must be a list of non-negative integers");
      }
      shape->push_back(extent.get<int64_t>());
      const std::optional<uint64_t> product =
          Multiply(num_elements, extent.get<uint64_t>());
      if (!product.has_value()) return Error("its shape is too large");
      num_elements = *product;
    }
    return num_elements;
  }

  absl::Status ParseOffsets(const Json& json, uint64_t data_size,
                            Record* record) const {
    const auto it = json.find("data_offsets");
    if (it == json.end() || !it->is_array() || it->size() != 2 ||
        !(*it)[0].is_number_unsigned() || !(*it)[1].is_number_unsigned()) {
      return Error("its data_offsets must be two non-negative integers");
    }
    record->begin = (*it)[0].get<uint64_t>();
    record->end = (*it)[1].get<uint64_t>();
    if (record->begin > record->end) {
      return Error(absl::StrCat("its data_offsets [", record->begin, ", ",
                                record->end, "] run backwards"));
    }
    if (record->end > data_size) {
      return Error(absl::StrCat("its data_offsets [", record->begin, ", ",
                                record->end,
                                "] reach past the end of the data, which has ",
                                data_size, " bytes; is the file truncated?"));
    }
    return absl::OkStatus();
  }

  const std::string place_;
};

struct Extent {
  uint64_t begin;
  uint64_t end;
  const std::string* name;
};

// The tensors must cover the data exactly.
absl::Status CheckCoverage(std::vector<Extent> extents, uint64_t data_size,
                           absl::string_view file) {
  std::sort(extents.begin(), extents.end(),
            [](const Extent& a, const Extent& b) {
              return std::tie(a.begin, a.end) < std::tie(b.begin, b.end);
            });
  uint64_t covered = 0;
  const std::string* previous = nullptr;
  for (const Extent& extent : extents) {
    if (extent.begin < covered) {
      return absl::InvalidArgumentError(
          absl::StrCat(file, ": tensor ", Printable(*extent.name), " at [",
                       extent.begin, ", ", extent.end, "] overlaps tensor ",
                       Printable(*previous), ", which ends at ", covered));
    }
    if (extent.begin > covered) {
      return absl::InvalidArgumentError(absl::StrCat(
          file, ": ", extent.begin - covered, " bytes before tensor ",
          Printable(*extent.name), " belong to no tensor"));
    }
    covered = extent.end;
    previous = extent.name;
  }
  if (covered != data_size) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": the last ", data_size - covered, " of ",
                     data_size, " data bytes belong to no tensor"));
  }
  return absl::OkStatus();
}

absl::Status CheckMetadata(const Json& metadata, absl::string_view file) {
  bool strings = metadata.is_object();
  if (strings) {
    for (const Json& value : metadata) strings = strings && value.is_string();
  }
  if (strings) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(file, ": __metadata__ must map strings to strings"));
}

absl::Status SystemError(absl::string_view what, const std::string& path) {
  const int error = errno;
  return absl::Status(
      error == ENOENT || error == ENOTDIR
          ? absl::StatusCode::kNotFound
          : absl::StatusCode::kFailedPrecondition,
      absl::StrCat(what, " ", path, ": ", std::strerror(error)));
}

bool Exists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

absl::string_view AsText(absl::Span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace

absl::StatusOr<TensorMap> ParseSafetensors(absl::Span<const std::byte> file,
                                           absl::string_view file_name) {
  if (file.size() < kLengthBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(file_name, ": has ", file.size(),
                     " bytes, too few for a safetensors file"));
  }
  uint64_t header_size = 0;
  for (int i = kLengthBytes - 1; i >= 0; --i) {
    header_size = header_size << 8 | std::to_integer<uint64_t>(file[i]);
  }
  if (header_size > kMaxHeaderBytes ||
      header_size > file.size() - kLengthBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        file_name, ": its header length of ", header_size,
        " bytes does not fit its size of ", file.size(),
        " bytes; is the file truncated, or not a safetensors file?"));
  }
  SY_ASSIGN_OR_RETURN(
      const Json header,
      ParseJsonObject(AsText(file.subspan(kLengthBytes, header_size)),
                      absl::StrCat(file_name, " (header)")));
  const absl::Span<const std::byte> data =
      file.subspan(kLengthBytes + header_size);

  TensorMap tensors;
  std::vector<Extent> extents;
  for (const auto& item : header.items()) {
    if (item.key() == "__metadata__") {
      SY_RETURN_IF_ERROR(CheckMetadata(item.value(), file_name));
      continue;
    }
    const RecordParser parser(file_name, item.key());
    SY_ASSIGN_OR_RETURN(RecordParser::Record record,
                        parser.Parse(item.value(), data.size()));
    record.view.bytes = data.subspan(record.begin, record.end - record.begin);
    const auto it = tensors.emplace(item.key(), std::move(record.view)).first;
    extents.push_back({record.begin, record.end, &it->first});
  }
  SY_RETURN_IF_ERROR(CheckCoverage(std::move(extents), data.size(), file_name));
  return tensors;
}

absl::StatusOr<std::map<std::string, std::string>> ParseSafetensorsIndex(
    absl::string_view json, absl::string_view file_name) {
  SY_ASSIGN_OR_RETURN(const Json index, ParseJsonObject(json, file_name));
  const auto weight_map = index.find("weight_map");
  if (weight_map == index.end() || !weight_map->is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(
        file_name, ": weight_map must be an object of tensor and file names"));
  }
  std::map<std::string, std::string> shards;
  for (const auto& item : weight_map->items()) {
    const std::string shard =
        item.value().is_string() ? item.value().get<std::string>() : "";
    if (shard.empty() || absl::StrContains(shard, '/') ||
        absl::StrContains(shard, '\0')) {
      return absl::InvalidArgumentError(absl::StrCat(
          file_name, ": weight_map of tensor ", Printable(item.key()),
          " must be the name of a file beside the index, is ",
          Printable(item.value().dump(-1, ' ', true,
                                      Json::error_handler_t::replace))));
    }
    shards.emplace(item.key(), shard);
  }
  return shards;
}

absl::StatusOr<MappedFile> MappedFile::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return SystemError("cannot open", path);
  struct stat info;
  absl::Status status;
  void* data = nullptr;
  if (fstat(fd, &info) != 0) {
    status = SystemError("cannot stat", path);
  } else if (!S_ISREG(info.st_mode)) {
    status = absl::FailedPreconditionError(
        absl::StrCat(path, ": is not a regular file"));
  } else if (info.st_size > 0) {
    data = mmap(nullptr, info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) status = SystemError("cannot map", path);
  }
  close(fd);
  if (!status.ok()) return status;
  return MappedFile(data, static_cast<size_t>(info.st_size));
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(data_, size_);
}

absl::StatusOr<SafetensorsModel> SafetensorsModel::Open(
    const std::string& model_dir) {
  const std::string single = absl::StrCat(model_dir, "/model.safetensors");
  const std::string index_path = absl::StrCat(single, ".index.json");
  SafetensorsModel model;
  if (Exists(single)) {
    SY_RETURN_IF_ERROR(model.AddFile(single));
    return model;
  }
  if (!Exists(index_path)) {
    return absl::NotFoundError(absl::StrCat(
        model_dir,
        ": has neither model.safetensors nor model.safetensors.index.json"));
  }
  SY_ASSIGN_OR_RETURN(const MappedFile index, MappedFile::Open(index_path));
  SY_ASSIGN_OR_RETURN(const auto shard_of,
                      ParseSafetensorsIndex(AsText(index.bytes()), index_path));

  std::set<std::string> shards;
  for (const auto& [name, shard] : shard_of) shards.insert(shard);
  for (const std::string& shard : shards) {
    SY_RETURN_IF_ERROR(model.AddFile(absl::StrCat(model_dir, "/", shard)));
  }
  for (const auto& [name, shard] : shard_of) {
    const Entry* entry = model.Find(name);
    const std::string path = absl::StrCat(model_dir, "/", shard);
    if (entry == nullptr || model.paths_[entry->file] != path) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": lacks the tensor ", Printable(name), ", which ",
                       index_path, " places there"));
    }
  }
  for (const auto& [name, entry] : model.tensors_) {
    if (shard_of.count(name) == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(model.paths_[entry.file], ": tensor ", Printable(name),
                       " is not listed in ", index_path));
    }
  }
  return model;
}

absl::Status SafetensorsModel::AddFile(const std::string& path) {
  SY_ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  SY_ASSIGN_OR_RETURN(TensorMap tensors, ParseSafetensors(file.bytes(), path));
  const auto file_id = static_cast<int32_t>(files_.size());
  paths_.push_back(path);
  files_.push_back(std::move(file));
  for (auto& [name, view] : tensors) {
    const auto [it, inserted] =
        tensors_.emplace(name, Entry{std::move(view), file_id});
    if (!inserted) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": tensor ", Printable(name), " is also in ",
                       paths_[it->second.file]));
    }
  }
  return absl::OkStatus();
}

const SafetensorsModel::Entry* SafetensorsModel::Find(
    const std::string& name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

}  // namespace switchyard
