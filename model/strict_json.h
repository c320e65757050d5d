// JSON from files nobody vouches for, as Status instead of exceptions.
#ifndef SWITCHYARD_MODEL_STRICT_JSON_H_
#define SWITCHYARD_MODEL_STRICT_JSON_H_

#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace switchyard {

// Parses `text`, which came from `file`. InvalidArgument names the file and
// the place: bad syntax, a key that occurs twice in one object, nesting deeper
// than 64, or anything but an object at the top. The ordered form keeps the
// order of keys and looks them up linearly; the other one is for big objects.
absl::StatusOr<nlohmann::ordered_json> ParseOrderedJsonObject(
    absl::string_view text, absl::string_view file);
absl::StatusOr<nlohmann::json> ParseJsonObject(absl::string_view text,
                                               absl::string_view file);

// `text` fit for a message: bytes outside printable ASCII as \xNN.
std::string Printable(absl::string_view text);

}  // namespace switchyard

#endif  // SWITCHYARD_MODEL_STRICT_JSON_H_
