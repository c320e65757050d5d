// Byte-pair encoding over bytes.
#ifndef SWITCHYARD_COORDINATOR_TOKENIZER_BPE_H_
#define SWITCHYARD_COORDINATOR_TOKENIZER_BPE_H_

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "coordinator/tokenizer_json.h"

namespace switchyard {

// The bytes of a token spelled in the byte-level alphabet, in which every byte
// has a printable character of its own
// (https://github.com/openai/gpt-2/blob/master/src/encoder.py,
// bytes_to_unicode). A token with any character outside the alphabet stands for
// its own UTF-8 bytes.
std::string DecodeByteLevel(absl::string_view token);

// Immutable; may be used from any thread.
class Bpe {
 public:
  // InvalidArgument names the merge whose tokens the vocabulary lacks, or the
  // byte for which it has no token.
  static absl::StatusOr<Bpe> Create(const TokenizerSpec& spec);

  // Working memory of Encode, worth keeping from word to word.
  struct Scratch {
    struct Symbol {
      uint32_t id;
      int32_t previous;  // -1: none
      int32_t next;      // -1: none
      bool merged_away;
    };
    struct Candidate {
      uint32_t rank;
      int32_t position;  // of the left symbol
      uint32_t id;       // of what the pair becomes
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
  };

  // Appends the ids of one pre-tokenized word: starting from its bytes, the
  // leftmost pair of lowest rank is merged until none is left. O(n log n).
  // REQUIRES: `word` is valid UTF-8 of less than 2^31 bytes.
  void Encode(absl::string_view word, Scratch* scratch,
              std::vector<uint32_t>* ids) const;

 private:
  struct Merge {
    uint32_t rank;
    uint32_t id;
  };

  Bpe() = default;

  const Merge* FindMerge(uint32_t left, uint32_t right) const;
  // Puts the pair at `position` and its right neighbour on the heap, if they
  // merge.
  void Consider(int32_t position, Scratch* scratch) const;

  std::array<uint32_t, 256> byte_ids_ = {};
  // Key: left id << 32 | right id.
  absl::flat_hash_map<uint64_t, Merge> merges_;
  // With ignore_merges: the bytes of each token -> its id. Else empty.
  absl::flat_hash_map<std::string, uint32_t> words_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_TOKENIZER_BPE_H_
