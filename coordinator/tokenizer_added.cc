#include "coordinator/tokenizer_added.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "coordinator/utf8.h"
#include "kernels/check.h"

namespace switchyard {
namespace {

// \w of the regular expressions that the reference uses here:
// https://docs.rs/regex, Unicode TR18 with join controls.
constexpr absl::string_view kWordCharacter = R"([\w\x{200C}\x{200D}])";

TokenizerPattern WordCharacter() {
  auto pattern = TokenizerPattern::FromRegex(kWordCharacter);
  SY_CHECK(pattern.ok());
  return *std::move(pattern);
}

// White_Space of the Unicode standard.
bool IsSpace(absl::string_view character) {
  static constexpr absl::string_view kSpaces[] = {
      "\t",           "\n",           "\v",
      "\f",           "\r",           " ",
      "\xC2\x85",     "\xC2\xA0",     "\xE1\x9A\x80",
      "\xE2\x80\x80", "\xE2\x80\x81", "\xE2\x80\x82",
      "\xE2\x80\x83", "\xE2\x80\x84", "\xE2\x80\x85",
      "\xE2\x80\x86", "\xE2\x80\x87", "\xE2\x80\x88",
      "\xE2\x80\x89", "\xE2\x80\x8A", "\xE2\x80\xA8",
      "\xE2\x80\xA9", "\xE2\x80\xAF", "\xE2\x81\x9F",
      "\xE3\x80\x80"};
  return std::find(std::begin(kSpaces), std::end(kSpaces), character) !=
         std::end(kSpaces);
}

// Where the white space that `text` ends in begins.
size_t TrailingSpace(absl::string_view text) {
  while (!text.empty()) {
    const size_t last = LastCharacter(text);
    if (!IsSpace(text.substr(last))) break;
    text = text.substr(0, last);
  }
  return text.size();
}

// The size of the white space that `text` begins with.
size_t LeadingSpace(absl::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const size_t size = FirstCharacterSize(text.substr(at));
    if (!IsSpace(text.substr(at, size))) break;
    at += size;
  }
  return at;
}

}  // namespace

AddedTokens::Trie::Trie() : ends_(1, -1) {}

void AddedTokens::Trie::Insert(absl::string_view content, int index) {
  begins_[static_cast<uint8_t>(content[0])] = true;
  int node = 0;
  for (char c : content) {
    const uint64_t key =
        static_cast<uint64_t>(node) << 8 | static_cast<uint8_t>(c);
    const auto [child, inserted] =
        children_.emplace(key, static_cast<int>(ends_.size()));
    if (inserted) ends_.push_back(-1);
    node = child->second;
  }
  ends_[node] = index;
}

std::optional<AddedTokens::Trie::Match> AddedTokens::Trie::Find(
    absl::string_view text, size_t from) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    if (!begins_[static_cast<uint8_t>(text[begin])]) continue;
    std::optional<Match> longest;
    int node = 0;
    for (size_t at = begin; at < text.size(); ++at) {
      const auto child = children_.find(static_cast<uint64_t>(node) << 8 |
                                        static_cast<uint8_t>(text[at]));
      if (child == children_.end()) break;
      node = child->second;
      if (ends_[node] >= 0) longest = Match{begin, at + 1, ends_[node]};
    }
    if (longest.has_value()) return longest;
  }
  return std::nullopt;
}

AddedTokens::AddedTokens(std::vector<AddedToken> tokens)
    : tokens_(std::move(tokens)), word_character_(WordCharacter()) {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    (tokens_[i].normalized ? normalized_ : plain_)
        .Insert(tokens_[i].content, static_cast<int>(i));
  }
}

bool AddedTokens::InsideWord(absl::string_view text,
                             const Trie::Match& match) const {
  const auto is_word = [&](absl::string_view character) {
    bool found = false;
    SY_CHECK(word_character_
                 .ForEachMatch(character, [&](size_t, size_t) { found = true; })
                 .ok());
    return found;
  };
  const absl::string_view before = text.substr(0, match.begin);
  const absl::string_view after = text.substr(match.end);
  return (!before.empty() && is_word(before.substr(LastCharacter(before)))) ||
         (!after.empty() &&
          is_word(after.substr(0, FirstCharacterSize(after))));
}

void AddedTokens::SplitAt(const Trie& trie, absl::string_view text,
                          std::vector<Piece>* pieces) const {
  size_t done = 0;  // what lies before is in *pieces
  size_t from = 0;
  while (const auto match = trie.Find(text, from)) {
    from = match->end;
    const AddedToken& token = tokens_[match->index];
    if (token.single_word && InsideWord(text, *match)) continue;
    size_t begin = match->begin, end = match->end;
    if (token.lstrip)
      begin = std::max(TrailingSpace(text.substr(0, begin)), done);
    if (token.rstrip) end += LeadingSpace(text.substr(end));
    if (done < begin)
      pieces->push_back({text.substr(done, begin - done), std::nullopt});
    pieces->push_back({text.substr(begin, end - begin), token.id});
    done = from = end;
  }
  if (done < text.size()) pieces->push_back({text.substr(done), std::nullopt});
}

std::vector<AddedTokens::Piece> AddedTokens::Split(
    absl::string_view text) const {
  std::vector<Piece> coarse, pieces;
  SplitAt(plain_, text, &coarse);
  for (const Piece& piece : coarse) {
    if (piece.id.has_value()) {
      pieces.push_back(piece);
    } else {
      SplitAt(normalized_, piece.text, &pieces);
    }
  }
  return pieces;
}

}  // namespace switchyard
