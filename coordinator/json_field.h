// A value of a JSON document together with its path, so that every complaint
// names the field it is about.
#ifndef SWITCHYARD_COORDINATOR_JSON_FIELD_H_
#define SWITCHYARD_COORDINATOR_JSON_FIELD_H_

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace switchyard {

// Borrows the document. A field that is absent reads as null.
class JsonField {
 public:
  explicit JsonField(const nlohmann::json* root) : value_(root) {}

  const nlohmann::json& value() const { return *value_; }
  // `model.merges[3]`; empty for the document.
  const std::string& path() const { return path_; }
  bool is_null() const { return value_->is_null(); }
  size_t size() const { return value_->size(); }

  // REQUIRES: an object, or null.
  JsonField Get(absl::string_view key) const;
  // REQUIRES: an array with more than `index` elements.
  JsonField At(size_t index) const;

  // InvalidArgument unless of that type; with a default, null reads as the
  // default.
  absl::Status ExpectObject() const;
  absl::Status ExpectArray() const;
  absl::StatusOr<std::string> String() const;
  absl::StatusOr<bool> Bool(bool default_value) const;
  // Also InvalidArgument at or beyond `limit`.
  absl::StatusOr<uint32_t> Id(uint32_t limit) const;

  // InvalidArgument: `path problem`.
  absl::Status Invalid(absl::string_view problem) const;
  // Unimplemented: `path: what is not supported`.
  absl::Status Unsupported(absl::string_view what) const;

 private:
  absl::Status Mismatch(absl::string_view expected) const;

  JsonField(const nlohmann::json* value, std::string path)
      : value_(value), path_(std::move(path)) {}

  const nlohmann::json* value_;
  std::string path_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_JSON_FIELD_H_
