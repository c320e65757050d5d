// UTF-8 checking, and repair as the Unicode standard recommends.
#ifndef SWITCHYARD_COORDINATOR_UTF8_H_
#define SWITCHYARD_COORDINATOR_UTF8_H_

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace switchyard {

// The offset of the first byte that is not part of a whole, shortest-form
// character; bytes.size() if there is none.
size_t FindInvalidUtf8(absl::string_view bytes);

// Appends the text of `bytes` to *text, with U+FFFD in place of each maximal
// subpart of an ill-formed sequence (Unicode 15, section 3.9, "U+FFFD
// Substitution of Maximal Subparts"). The beginning of a character at the very
// end is left alone unless `at_end`. Returns the number of bytes dealt with;
// what remains is at most 3 bytes.
size_t AppendUtf8Lossy(absl::string_view bytes, bool at_end, std::string* text);

// The offset of the last character of `text`, which is valid UTF-8 and not
// empty.
size_t LastCharacter(absl::string_view text);

// The size of the first character of `text`, which is valid UTF-8 and not
// empty.
size_t FirstCharacterSize(absl::string_view text);

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_UTF8_H_
