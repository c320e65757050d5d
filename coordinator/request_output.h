// Turns the tokens of one request into the text of its stream.
#ifndef SWITCHYARD_COORDINATOR_REQUEST_OUTPUT_H_
#define SWITCHYARD_COORDINATOR_REQUEST_OUTPUT_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"
#include "coordinator/detokenizer.h"
#include "coordinator/stop_strings.h"
#include "coordinator/tokenizer.h"
#include "switchyard/v1/generation.pb.h"

namespace switchyard {

// The text ends before the first stop string, and before a stop token, whose
// text is never shown. Stop strings are looked for once min_tokens have been
// generated. Not thread-safe; one owner.
class RequestOutput {
 public:
  // `tokenizer` is borrowed; null: no text.
  RequestOutput(const Tokenizer* tokenizer, const v1::SamplingParams& sampling);

  // The text that `token_id` releases; valid until the next call.
  absl::string_view Append(uint32_t token_id);
  // The same for the last token; releases all that was held back.
  // `is_stop_token`: it ended the sequence by being a stop token.
  absl::string_view AppendLast(uint32_t token_id, bool is_stop_token);
  // The end without another token.
  absl::string_view Flush();

  // A stop string is complete: the stream ends here.
  bool stopped() const { return stop_strings_ && stop_strings_->stopped(); }

 private:
  // Passes detokenised text on, through the stop strings when they count.
  void Release(std::string text);
  void ReleaseRest();

  std::optional<Detokenizer> detokenizer_;
  std::optional<StopStrings> stop_strings_;
  const uint32_t min_tokens_;
  uint32_t num_tokens_ = 0;
  std::string text_;  // of the latest call
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_REQUEST_OUTPUT_H_
