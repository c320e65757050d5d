#include "model/safetensors_writer.h"

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace switchyard {
namespace {

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};

absl::Status SystemError(absl::string_view what, const std::string& path) {
  const int error = errno;
  return absl::Status(
      error == ENOSPC ? absl::StatusCode::kResourceExhausted
                      : absl::StatusCode::kFailedPrecondition,
      absl::StrCat(what, " ", path, ": ", std::strerror(error)));
}

bool Write(std::FILE* file, const void* data, size_t size) {
  return size == 0 || std::fwrite(data, 1, size, file) == size;
}

}  // namespace

std::string SafetensorsHeader(const TensorMap& tensors) {
  nlohmann::ordered_json header;
  header["__metadata__"] = {{"format", "pt"}};
  uint64_t offset = 0;
  for (const auto& [name, view] : tensors) {
    header[name] = {{"dtype", view.dtype_name},
                    {"shape", view.shape},
                    {"data_offsets", {offset, offset + view.bytes.size()}}};
    offset += view.bytes.size();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string length;
  for (int i = 0; i < 8; ++i) {
    length.push_back(static_cast<char>(uint64_t{text.size()} >> (8 * i)));
  }
  return length + text;
}

absl::Status WriteSafetensors(const std::string& path,
                              const TensorMap& tensors) {
  const std::string partial = absl::StrCat(path, ".partial");
  std::unique_ptr<std::FILE, CloseFile> file(std::fopen(partial.c_str(), "wb"));
  if (file == nullptr) return SystemError("cannot create", partial);
  const std::string header = SafetensorsHeader(tensors);
  bool written = Write(file.get(), header.data(), header.size());
  for (const auto& [name, view] : tensors) {
    written =
        written && Write(file.get(), view.bytes.data(), view.bytes.size());
  }
  written = written && std::fflush(file.get()) == 0;
  written = written && std::rename(partial.c_str(), path.c_str()) == 0;
  if (written) return absl::OkStatus();
  const absl::Status status = SystemError("cannot write", path);
  std::remove(partial.c_str());
  return status;
}

}  // namespace switchyard
