// What a tokenizer.json says, checked and reduced to what the tokenizer does.
#ifndef SWITCHYARD_COORDINATOR_TOKENIZER_JSON_H_
#define SWITCHYARD_COORDINATOR_TOKENIZER_JSON_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace switchyard {

// Ids are below this; it bounds the memory that a lying file can claim.
inline constexpr uint32_t kMaxTokenizerVocabSize = 1 << 22;

// A token cut out of the text before anything else happens to it.
struct AddedToken {
  uint32_t id = 0;
  std::string content;
  bool special = false;
  bool normalized = false;   // looked for after those that are not
  bool lstrip = false;       // takes the white space before it along
  bool rstrip = false;       // and behind it
  bool single_word = false;  // not where a word goes on before or behind it
};

// One step of the pre-tokenizer: cuts each piece of text into pieces at the
// matches of a pattern.
struct SplitStep {
  std::string pattern;
  bool is_literal = false;
  // Whether the matches, or what lies between them, are dropped. Otherwise both
  // are pieces.
  bool drops_matches = false;
  bool drops_others = false;
};

struct TokenizerSpec {
  std::vector<AddedToken> added_tokens;

  std::vector<SplitStep> splits;
  bool add_prefix_space = false;              // to each piece the splits leave
  std::optional<SplitStep> byte_level_split;  // after that

  // Byte-level BPE. Tokens are spelled in the byte-level alphabet
  // (tokenizer_bpe.h).
  absl::flat_hash_map<std::string, uint32_t> vocab;         // ids are distinct
  std::vector<std::pair<std::string, std::string>> merges;  // by priority
  bool ignore_merges = false;

  // The template: what stands before and behind the text's own ids.
  std::vector<uint32_t> prefix_ids;
  std::vector<uint32_t> suffix_ids;
};

// InvalidArgument names the field that is malformed or contradicts another,
// Unimplemented the feature not served.
absl::StatusOr<TokenizerSpec> ParseTokenizerJson(absl::string_view json);

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_TOKENIZER_JSON_H_
