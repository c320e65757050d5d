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
    std::optional<uint32_t>
        id;  // of the added token the piece is; else the piece is plain text
  };

  // Cuts `text` at its added tokens: the leftmost, of those the longest; those
  // with `normalized` unset first, and the others in what is left. Pieces are
  // not empty and borrow `text`. REQUIRES: `text` is valid UTF-8.
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
    absl::flat_hash_map<uint64_t, int>
        children_;           // key: node << 8 | byte; node 0 is the root
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
