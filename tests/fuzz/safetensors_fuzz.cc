// A safetensors file, and the same bytes as an index: any bytes yield views
// that lie inside the file and agree with their shapes, or an InvalidArgument
// of one line.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>

#include "absl/strings/match.h"
#include "kernels/check.h"
#include "model/safetensors.h"
#include "tests/fuzz/json_mutator.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace switchyard {
namespace {

constexpr size_t kLengthBytes = 8;

void CheckError(const absl::Status& status) {
  SY_CHECK(absl::IsInvalidArgument(status));
  SY_CHECK(!absl::StrContains(status.message(), '\n'));
}

void CheckTensors(const TensorMap& tensors, absl::Span<const std::byte> file) {
  size_t total = 0;
  for (const auto& [name, view] : tensors) {
    SY_CHECK(view.bytes.empty() || (view.bytes.data() >= file.data() &&
                                    view.bytes.data() + view.bytes.size() <=
                                        file.data() + file.size()));
    total += view.bytes.size();
    if (!view.dtype.has_value()) continue;
    uint64_t bytes = DTypeBytes(*view.dtype);
    for (const int64_t extent : view.shape) bytes *= uint64_t(extent);
    SY_CHECK(bytes == view.bytes.size());
  }
  SY_CHECK(total <= file.size());
}

// The header's length as the first 8 bytes say, if that is inside the file.
size_t HeaderSize(const std::string& file) {
  if (file.size() < kLengthBytes) return 0;
  uint64_t size = 0;
  std::memcpy(&size, file.data(), kLengthBytes);
  return size <= file.size() - kLengthBytes ? size : 0;
}

}  // namespace
}  // namespace switchyard

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const absl::Span<const std::byte> file(
      reinterpret_cast<const std::byte*>(data), size);
  const auto tensors = switchyard::ParseSafetensors(file, "file");
  if (tensors.ok()) {
    switchyard::CheckTensors(*tensors, file);
  } else {
    switchyard::CheckError(tensors.status());
  }
  const auto index = switchyard::ParseSafetensorsIndex(
      {reinterpret_cast<const char*>(data), size}, "index");
  if (!index.ok()) switchyard::CheckError(index.status());
  return 0;
}

// Three in four mutations change the header (or the index) as JSON and correct
// the length before it, so that they reach what comes after the JSON parser.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size,
                                          size_t max_size, unsigned int seed) {
  std::minstd_rand random(seed);
  if (random() % 4 != 0) {
    const std::string file(reinterpret_cast<const char*>(data), size);
    const size_t header_size = switchyard::HeaderSize(file);
    std::string mutated;
    if (header_size > 0) {
      const std::string header = switchyard::MutateJson(
          file.substr(switchyard::kLengthBytes, header_size), random);
      if (!header.empty()) {
        uint64_t length = header.size();
        mutated.assign(reinterpret_cast<const char*>(&length), sizeof(length));
        mutated += header;
        mutated += file.substr(switchyard::kLengthBytes + header_size);
      }
    } else {
      mutated = switchyard::MutateJson(file, random);
    }
    if (!mutated.empty() && mutated.size() <= max_size) {
      std::memcpy(data, mutated.data(), mutated.size());
      return mutated.size();
    }
  }
  return LLVMFuzzerMutate(data, size, max_size);
}
