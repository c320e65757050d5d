#include "coordinator/json_field.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"

namespace switchyard {
namespace {

const nlohmann::json& Null() {
  static const nlohmann::json* const null = new nlohmann::json(nullptr);
  return *null;
}

}  // namespace

JsonField JsonField::Get(absl::string_view key) const {
  SY_CHECK(value_->is_object() || value_->is_null());
  const std::string name(key);
  std::string path = path_.empty() ? name : absl::StrCat(path_, ".", name);
  if (value_->is_null()) return JsonField(&Null(), std::move(path));
  const auto found = value_->find(name);
  return JsonField(found == value_->end() ? &Null() : &*found, std::move(path));
}

JsonField JsonField::At(size_t index) const {
  SY_CHECK(value_->is_array() && index < value_->size());
  return JsonField(&(*value_)[index], absl::StrCat(path_, "[", index, "]"));
}

absl::Status JsonField::ExpectObject() const {
  return value_->is_object() ? absl::OkStatus() : Mismatch("an object");
}

absl::Status JsonField::ExpectArray() const {
  return value_->is_array() ? absl::OkStatus() : Mismatch("an array");
}

absl::StatusOr<std::string> JsonField::String() const {
  if (!value_->is_string()) return Mismatch("a string");
  return value_->get_ref<const std::string&>();
}

absl::StatusOr<bool> JsonField::Bool(bool default_value) const {
  if (is_null()) return default_value;
  if (!value_->is_boolean()) return Mismatch("true or false");
  return value_->get<bool>();
}

absl::StatusOr<uint32_t> JsonField::Id(uint32_t limit) const {
  if (!value_->is_number_unsigned() || value_->get<uint64_t>() >= limit) {
    return Mismatch(absl::StrCat("a whole number from 0 to ", limit - 1));
  }
  return static_cast<uint32_t>(value_->get<uint64_t>());
}

absl::Status JsonField::Mismatch(absl::string_view expected) const {
  constexpr size_t kLongest = 60;
  std::string found;
  if (is_null()) {
    found = "missing or null";
  } else if (value_->is_structured()) {
    found = value_->is_array() ? "an array" : "an object";
  } else {
    found = value_->dump(-1, ' ', /*ensure_ascii=*/true,
                         nlohmann::json::error_handler_t::replace);
    if (found.size() > kLongest) found = found.substr(0, kLongest) + "...";
  }
  return Invalid(absl::StrCat("must be ", expected, ", and is ", found));
}

absl::Status JsonField::Invalid(absl::string_view problem) const {
  return absl::InvalidArgumentError(
      absl::StrCat(path_.empty() ? "the document" : path_, " ", problem));
}

absl::Status JsonField::Unsupported(absl::string_view what) const {
  return absl::UnimplementedError(
      absl::StrCat(path_, ": ", what, " is not supported"));
}

}  // namespace switchyard
