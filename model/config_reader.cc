#include "model/config_reader.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "model/strict_json.h"

namespace switchyard {
namespace {

const ObjectReader::Json& EmptyObject() {
  static const auto* empty =
      new ObjectReader::Json(ObjectReader::Json::object());
  return *empty;
}

const ObjectReader::Json& Null() {
  static const auto* null = new ObjectReader::Json();
  return *null;
}

// A value as a message shows it: short and printable.
std::string Show(const ObjectReader::Json& value) {
  if (value.is_structured()) return value.is_array() ? "a list" : "an object";
  std::string text =
      value.dump(-1, ' ', true, ObjectReader::Json::error_handler_t::replace);
  if (text.size() > 60) text = absl::StrCat(text.substr(0, 60), "...");
  return text;
}

}  // namespace

void ConfigErrors::Set(absl::StatusCode code, absl::string_view field,
                       absl::string_view what) {
  if (!status_.ok()) return;
  status_ = absl::Status(code, absl::StrCat(file_, ": ", field, " ", what));
}

void ConfigErrors::Invalid(absl::string_view field, absl::string_view what) {
  Set(absl::StatusCode::kInvalidArgument, field, what);
}

void ConfigErrors::Unsupported(absl::string_view field,
                               absl::string_view what) {
  Set(absl::StatusCode::kUnimplemented, field, what);
}

ObjectReader::ObjectReader(const Json& json, std::string path,
                           ConfigErrors* errors)
    : json_(&json), path_(std::move(path)), errors_(errors) {
  if (!json.is_object()) {
    errors_->Invalid(path_, absl::StrCat("must be an object, is ", Show(json)));
    json_ = &EmptyObject();
  }
}

std::string ObjectReader::Path(absl::string_view key) const {
  const std::string printable = Printable(key);
  return path_.empty() ? printable : absl::StrCat(path_, ".", printable);
}

void ObjectReader::Invalid(absl::string_view key, absl::string_view what) {
  errors_->Invalid(Path(key), what);
}

void ObjectReader::Unsupported(absl::string_view key, absl::string_view what) {
  errors_->Unsupported(Path(key), what);
}

void ObjectReader::WrongType(absl::string_view key, absl::string_view wanted,
                             const Json& value) {
  Invalid(key, absl::StrCat("must be ", wanted, ", is ", Show(value)));
}

bool ObjectReader::Has(absl::string_view key) const {
  const auto it = json_->find(std::string(key));
  return it != json_->end() && !it->is_null();
}

const ObjectReader::Json& ObjectReader::Value(absl::string_view key) {
  read_.insert(std::string(key));
  const auto it = json_->find(std::string(key));
  return it == json_->end() ? Null() : *it;
}

const ObjectReader::Json& ObjectReader::Require(absl::string_view key) {
  const Json& value = Value(key);
  if (value.is_null()) Invalid(key, "is missing");
  return value;
}

std::vector<std::string> ObjectReader::Keys() const {
  std::vector<std::string> keys;
  for (const auto& item : json_->items()) keys.push_back(item.key());
  return keys;
}

int32_t ObjectReader::ToInt(absl::string_view key, const Json& value,
                            int32_t min, int32_t max) {
  if (!value.is_number_integer()) {
    WrongType(key, "an integer", value);
    return min;
  }
  const bool too_big =
      value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX};
  if (too_big || value.get<int64_t>() < min || value.get<int64_t>() > max) {
    Invalid(key, absl::StrCat("must be from ", min, " to ", max, ", is ",
                              Show(value)));
    return min;
  }
  return static_cast<int32_t>(value.get<int64_t>());
}

double ObjectReader::ToPositiveDouble(absl::string_view key,
                                      const Json& value) {
  if (!value.is_number()) {
    WrongType(key, "a number", value);
    return 1.0;
  }
  const double number = value.get<double>();
  if (!std::isfinite(number) || number <= 0) {
    Invalid(key, absl::StrCat("must be positive, is ", Show(value)));
    return 1.0;
  }
  return number;
}

bool ObjectReader::ToBool(absl::string_view key, const Json& value) {
  if (value.is_boolean()) return value.get<bool>();
  WrongType(key, "true or false", value);
  return false;
}

std::string ObjectReader::ToString(absl::string_view key, const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  WrongType(key, "a string", value);
  return "";
}

int32_t ObjectReader::Int(absl::string_view key, int32_t min, int32_t max) {
  const Json& value = Require(key);
  return value.is_null() ? min : ToInt(key, value, min, max);
}

int32_t ObjectReader::IntOr(absl::string_view key, int32_t otherwise,
                            int32_t min, int32_t max) {
  const Json& value = Value(key);
  return value.is_null() ? otherwise : ToInt(key, value, min, max);
}

double ObjectReader::PositiveDouble(absl::string_view key) {
  const Json& value = Require(key);
  return value.is_null() ? 1.0 : ToPositiveDouble(key, value);
}

double ObjectReader::PositiveDoubleOr(absl::string_view key, double otherwise) {
  const Json& value = Value(key);
  return value.is_null() ? otherwise : ToPositiveDouble(key, value);
}

bool ObjectReader::Bool(absl::string_view key) {
  const Json& value = Require(key);
  return value.is_null() ? false : ToBool(key, value);
}

bool ObjectReader::BoolOr(absl::string_view key, bool otherwise) {
  const Json& value = Value(key);
  return value.is_null() ? otherwise : ToBool(key, value);
}

std::string ObjectReader::String(absl::string_view key) {
  const Json& value = Require(key);
  return value.is_null() ? "" : ToString(key, value);
}

std::string ObjectReader::StringOr(absl::string_view key,
                                   absl::string_view otherwise) {
  const Json& value = Value(key);
  return value.is_null() ? std::string(otherwise) : ToString(key, value);
}

ObjectReader ObjectReader::Object(absl::string_view key) {
  const Json& value = Require(key);
  return ObjectReader(value.is_null() ? EmptyObject() : value, Path(key),
                      errors_);
}

ObjectReader ObjectReader::ObjectOrEmpty(absl::string_view key) {
  const Json& value = Value(key);
  return ObjectReader(value.is_null() ? EmptyObject() : value, Path(key),
                      errors_);
}

void ObjectReader::Ignore(std::initializer_list<absl::string_view> keys) {
  for (absl::string_view key : keys) read_.insert(std::string(key));
}

void ObjectReader::RejectUnknown() {
  for (const auto& item : json_->items()) {
    if (read_.count(item.key()) == 0) {
      Invalid(item.key(),
              "is not a known field; it may change what the model computes");
      return;
    }
  }
}

}  // namespace switchyard
