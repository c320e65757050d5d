// Text out of a stream of token ids, one id at a time.
#ifndef SWITCHYARD_COORDINATOR_DETOKENIZER_H_
#define SWITCHYARD_COORDINATOR_DETOKENIZER_H_

#include <cstdint>
#include <string>

#include "coordinator/tokenizer.h"

namespace switchyard {

// The incremental twin of Tokenizer::Decode, for one sequence. Invariant: the
// pieces returned so far, followed by Flush(), concatenate to Decode() of all
// ids so far; every piece is valid UTF-8. A token that ends in the middle of a
// character holds back those bytes (at most 3) until the next token completes
// or invalidates them.
//
// Thread safety: none; one owner. `tokenizer` is borrowed and must outlive this
// object.
class Detokenizer {
 public:
  Detokenizer(const Tokenizer* tokenizer, bool skip_special_tokens);

  // The text that `id` makes complete; may be empty.
  std::string Append(uint32_t id);

  // The end of the text: held back bytes can no longer become a character, and
  // are returned as U+FFFD. Leaves the detokenizer as it was constructed.
  std::string Flush();

 private:
  const Tokenizer* const tokenizer_;
  const bool skip_special_tokens_;
  std::string pending_;  // the first bytes of a character
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_DETOKENIZER_H_
