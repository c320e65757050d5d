#include "coordinator/stop_strings.h"

#include <algorithm>
#include <utility>

namespace switchyard {

StopStrings::StopStrings(absl::Span<const std::string> stops) {
  for (const std::string& stop : stops) {
    if (stop.empty()) continue;
    Matcher matcher{stop, std::vector<size_t>(stop.size(), 0), 0};
    for (size_t i = 1, border = 0; i < stop.size(); ++i) {
      while (border > 0 && stop[i] != stop[border])
        border = matcher.border[border - 1];
      if (stop[i] == stop[border]) ++border;
      matcher.border[i] = border;
    }
    matchers_.push_back(std::move(matcher));
  }
}

StopStrings::Piece StopStrings::Append(absl::string_view text) {
  Piece piece;
  if (stopped_) return {"", true};
  if (matchers_.empty()) {
    piece.text = std::string(text);
    return piece;
  }
  held_.append(text.data(), text.size());
  const size_t already_seen = held_.size() - text.size();
  size_t longest = 0;  // prefix of a stop string that the text ends in
  for (size_t i = already_seen; i < held_.size(); ++i) {
    longest = 0;
    size_t longest_stop = 0;
    for (Matcher& m : matchers_) {
      while (m.matched > 0 && held_[i] != m.stop[m.matched])
        m.matched = m.border[m.matched - 1];
      if (held_[i] == m.stop[m.matched]) ++m.matched;
      longest = std::max(longest, m.matched);
      if (m.matched == m.stop.size())
        longest_stop = std::max(longest_stop, m.matched);
    }
    if (longest_stop > 0) {
      stopped_ = piece.stopped = true;
      piece.text = held_.substr(0, i + 1 - longest_stop);
      held_.clear();
      return piece;
    }
  }
  // A text of no bytes holds back what was held back before.
  if (text.empty()) longest = held_.size();
  piece.text = held_.substr(0, held_.size() - longest);
  held_.erase(0, piece.text.size());
  return piece;
}

std::string StopStrings::Flush() {
  for (Matcher& m : matchers_) m.matched = 0;
  return std::exchange(held_, {});
}

}  // namespace switchyard
