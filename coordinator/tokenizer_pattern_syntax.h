// From the regular expressions a tokenizer.json holds to those of PCRE2.
#ifndef SWITCHYARD_COORDINATOR_TOKENIZER_PATTERN_SYNTAX_H_
#define SWITCHYARD_COORDINATOR_TOKENIZER_PATTERN_SYNTAX_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace switchyard {

// The reference tokenizer compiles its patterns with Oniguruma, in Ruby syntax
// (https://github.com/kkos/oniguruma/blob/master/doc/RE); this returns the
// pattern for PCRE2 (UTF, UCP, MULTILINE) that has the same matches. Most of
// the two languages is common; what differs is rewritten (the character types
// \s \w \h and what builds on them, \v, \u, scripts, the interval {,n}), and
// what cannot be is refused: Unimplemented names the construct, InvalidArgument
// a pattern that breaks off in the middle of one. What is wrong in both
// languages passes, for PCRE2 to complain about. Characters that are younger
// than the Unicode version of the installed PCRE2 have no category to it.
absl::StatusOr<std::string> TranslatePattern(absl::string_view regex);

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_TOKENIZER_PATTERN_SYNTAX_H_
