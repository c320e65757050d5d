// Ends a text stream before the first of a set of stop strings.
#ifndef SWITCHYARD_COORDINATOR_STOP_STRINGS_H_
#define SWITCHYARD_COORDINATOR_STOP_STRINGS_H_

#include <cstddef>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace switchyard {

// Watches the text of one sequence. Text which may turn out to be the beginning
// of a stop string is held back until it is known not to be. "First" is the
// stop string that is complete first (the longest of those completed by the
// same byte), so the outcome does not depend on how the text is cut into
// pieces.
//
// Thread safety: none; one owner. Cost: O(number of stop strings) per byte,
// whatever the text.
class StopStrings {
 public:
  // Empty stop strings never match.
  explicit StopStrings(absl::Span<const std::string> stops);

  struct Piece {
    // Released: it precedes any possible stop string. Whole characters, if
    // the input was.
    std::string text;
    // A stop string is complete; it and everything behind it is dropped.
    bool stopped = false;
  };

  // Takes the next piece of text. After a stop everything is dropped, and
  // `stopped` stays true.
  Piece Append(absl::string_view text);

  // The end of the text: releases what was held back.
  std::string Flush();

  bool stopped() const { return stopped_; }

 private:
  // A Knuth-Morris-Pratt matcher.
  struct Matcher {
    std::string stop;
    // [stop.size()]: of each prefix the longest proper prefix that is also its
    // suffix.
    std::vector<size_t> border;
    // The longest prefix of `stop` that the text so far ends in.
    size_t matched = 0;
  };

  std::vector<Matcher> matchers_;
  std::string held_;  // the longest of the matched prefixes
  bool stopped_ = false;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_STOP_STRINGS_H_
