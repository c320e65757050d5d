// Text to token ids and back, as a Hugging Face `tokenizer.json` prescribes.
//
// Serves byte-level BPE: any mixture of regex splits ahead of the byte-level
// alphabet, added tokens, and a template that adds BOS/EOS. What the file asks
// for beyond that is refused at load with Unimplemented naming the field,
// because a tokenizer that is nearly right is worse than none. `truncation` and
// `padding` belong to training and are not applied.
//
// Thread safety: immutable after construction; every method may be called from
// any thread.
#ifndef SWITCHYARD_COORDINATOR_TOKENIZER_H_
#define SWITCHYARD_COORDINATOR_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace switchyard {

class Tokenizer {
 public:
  // Reads a tokenizer.json. NotFound if the file cannot be read; otherwise as
  // FromJson, with `path` in the message.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(
      const std::string& path);

  // InvalidArgument names the field that is malformed or contradicts another;
  // Unimplemented the feature not served.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromJson(
      absl::string_view json);

  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // The ids of `text`; with `add_special_tokens` wrapped in those of the file's
  // template (BOS). Text that contains an added token's content, special or
  // not, gets that token's id. InvalidArgument if `text` is not UTF-8, or if it
  // makes the file's split pattern backtrack beyond a fixed limit.
  absl::StatusOr<std::vector<uint32_t>> Encode(absl::string_view text,
                                               bool add_special_tokens) const;

  // The text of `ids`, always valid UTF-8: each maximal invalid byte sequence
  // becomes U+FFFD. Ids without a token (a model's vocabulary may be padded
  // beyond the tokenizer's) contribute nothing, and special tokens neither if
  // skipped.
  std::string Decode(absl::Span<const uint32_t> ids,
                     bool skip_special_tokens) const;

  // One more than the largest token id.
  uint32_t vocab_size() const;

  // Whether `id` is an added token marked special; false for ids without a
  // token.
  bool IsSpecial(uint32_t id) const;

  // The bytes `id` stands for, which need not be whole characters; empty for
  // ids without a token.
  absl::string_view TokenBytes(uint32_t id) const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<const Impl> impl);

  const std::unique_ptr<const Impl> impl_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_TOKENIZER_H_
