// Finds added tokens (`<s>`, `<|end|>`) in text.
#ifndef SWITCHYARD_COORDINATOR_TOKENIZER_ADDED_H_
#define SWITCHYARD_COORDINATOR_TOKENIZER_ADDED_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "coordinator/tokenizer_json.h"
#include "coordinator/tokenizer_pattern.h"

namespace switchyard {

// Immutable; may be used from any thread.
class AddedTokens {
 public:
  explicit AddedTokens(std::vector<AddedToken> tokens);

  struct Piece {
    absl::string_view text;
    // Of the added token that the piece is; unset for plain text.
    std::optional<uint32_t> id;
  };

  // Cuts `text` at its added tokens: the leftmost, of those the longest; those
  // with `normalized` unset first, and the others in what is left. Pieces are
  // not empty, do not overlap and borrow `text`.
  // REQUIRES: `text` is valid UTF-8.
  std::vector<Piece> Split(absl::string_view text) const;

 private:
  // The contents of a set of tokens, byte by byte.
  class Trie {
   public:
    Trie();
    // `index` is found again where `content`, which is not empty, matches.
    void Insert(absl::string_view content, int index);

    struct Match {
      size_t begin;
      size_t end;
      int index;
    };
    std::optional<Match> Find(absl::string_view text, size_t from) const;

   private:
    // Key: node << 8 | byte. Node 0 is the root.
    absl::flat_hash_map<uint64_t, int> children_;
    std::vector<int> ends_;  // by node: the token that ends there, or -1
    std::array<bool, 256> begins_ = {};  // the bytes that contents begin with
  };

  void SplitAt(const Trie& trie, absl::string_view text,
               std::vector<Piece>* pieces) const;
  bool InsideWord(absl::string_view text, const Trie::Match& match) const;

  std::vector<AddedToken> tokens_;
  Trie plain_;
  Trie normalized_;
  TokenizerPattern word_character_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_TOKENIZER_ADDED_H_
