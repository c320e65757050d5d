// Field-by-field reading of a JSON config, with the path of every field known.
//
// Errors are sticky: the first one is kept in the ConfigErrors shared by all
// readers of a file, the getters go on returning harmless values, and the
// caller asks once at the end. Internal to the config parser; one thread.
#ifndef SWITCHYARD_MODEL_CONFIG_READER_H_
#define SWITCHYARD_MODEL_CONFIG_READER_H_

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace switchyard {

// The first error found in one file.
class ConfigErrors {
 public:
  explicit ConfigErrors(absl::string_view file) : file_(file) {}

  // `what` continues "FILE: FIELD ", e.g. "must be positive, is 0".
  void Invalid(absl::string_view field, absl::string_view what);
  void Unsupported(absl::string_view field, absl::string_view what);

  bool ok() const { return status_.ok(); }
  const absl::Status& status() const { return status_; }

 private:
  void Set(absl::StatusCode code, absl::string_view field,
           absl::string_view what);

  std::string file_;
  absl::Status status_;
};

// One JSON object. A null counts as an absent field. REQUIRES: the JSON and the
// errors outlive the reader.
class ObjectReader {
 public:
  using Json = nlohmann::ordered_json;

  // `path` is the object's own, "" at the top. A value that is not an object
  // is an error, and then reads as empty.
  ObjectReader(const Json& json, std::string path, ConfigErrors* errors);

  // Required fields, within [min, max].
  int32_t Int(absl::string_view key, int32_t min, int32_t max);
  double PositiveDouble(absl::string_view key);
  bool Bool(absl::string_view key);
  std::string String(absl::string_view key);
  ObjectReader Object(absl::string_view key);

  // The same with a default for an absent field.
  int32_t IntOr(absl::string_view key, int32_t otherwise, int32_t min,
                int32_t max);
  double PositiveDoubleOr(absl::string_view key, double otherwise);
  bool BoolOr(absl::string_view key, bool otherwise);
  std::string StringOr(absl::string_view key, absl::string_view otherwise);
  // An absent object reads as an empty one.
  ObjectReader ObjectOrEmpty(absl::string_view key);

  bool Has(absl::string_view key) const;
  // Any value, null when absent; counts as read.
  const Json& Value(absl::string_view key);
  std::vector<std::string> Keys() const;

  // Accepts fields that do not change what the model computes.
  void Ignore(std::initializer_list<absl::string_view> keys);
  // Every field must have been read or ignored by now: an unknown one could
  // change what the model computes.
  void RejectUnknown();

  void Invalid(absl::string_view key, absl::string_view what);
  void Unsupported(absl::string_view key, absl::string_view what);
  std::string Path(absl::string_view key) const;
  ConfigErrors* errors() const { return errors_; }

 private:
  // The value of a required field, or null after an error.
  const Json& Require(absl::string_view key);
  int32_t ToInt(absl::string_view key, const Json& value, int32_t min,
                int32_t max);
  double ToPositiveDouble(absl::string_view key, const Json& value);
  bool ToBool(absl::string_view key, const Json& value);
  std::string ToString(absl::string_view key, const Json& value);
  void WrongType(absl::string_view key, absl::string_view wanted,
                 const Json& value);

  const Json* json_;  // an object
  std::string path_;
  ConfigErrors* errors_;
  std::set<std::string> read_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_MODEL_CONFIG_READER_H_
