#include "model/strict_json.h"

#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace switchyard {
namespace {

constexpr int kMaxDepth = 64;

// The library's message without its "[json.exception...]" tag, printable.
std::string Reason(const nlohmann::json::exception& error) {
  absl::string_view what = error.what();
  const size_t tag_end = what.find("] ");
  if (tag_end != absl::string_view::npos) what.remove_prefix(tag_end + 2);
  return Printable(what);
}

template <typename Json>
absl::StatusOr<Json> Parse(absl::string_view text, absl::string_view file) {
  std::vector<std::set<std::string>> open_objects;  // the keys of each
  std::string problem;
  const auto check = [&](int depth, nlohmann::json::parse_event_t event,
                         Json& value) {
    using Event = nlohmann::json::parse_event_t;
    if (!problem.empty()) return false;
    if (depth > kMaxDepth) {
      problem = absl::StrCat("is nested deeper than ", kMaxDepth, " levels");
      return false;
    }
    if (event == Event::object_start) {
      open_objects.emplace_back();
    } else if (event == Event::object_end) {
      open_objects.pop_back();
    } else if (event == Event::key) {
      const std::string& key = value.template get_ref<const std::string&>();
      if (!open_objects.back().insert(key).second) {
        problem = absl::StrCat("has the key \"", Printable(key),
                               "\" twice in one object");
        return false;
      }
    }
    return true;
  };

  Json json;
  try {
    json = Json::parse(text.begin(), text.end(), check);
  } catch (const nlohmann::json::exception& error) {
    if (problem.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(file, ": not valid JSON: ", Reason(error)));
    }
  }
  if (!problem.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": ", problem));
  }
  if (!json.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": must be a JSON object, is ", json.type_name()));
  }
  return json;
}

}  // namespace

std::string Printable(absl::string_view text) {
  std::string printable;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x20 && byte < 0x7f) {
      printable.push_back(c);
    } else {
      absl::StrAppend(&printable, "\\x", absl::Hex(byte, absl::kZeroPad2));
    }
  }
  return printable;
}

absl::StatusOr<nlohmann::ordered_json> ParseOrderedJsonObject(
    absl::string_view text, absl::string_view file) {
  return Parse<nlohmann::ordered_json>(text, file);
}

absl::StatusOr<nlohmann::json> ParseJsonObject(absl::string_view text,
                                               absl::string_view file) {
  return Parse<nlohmann::json>(text, file);
}

}  // namespace switchyard
