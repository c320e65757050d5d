// The regular expressions of a tokenizer.json, which splits text with them
// before BPE.
#ifndef SWITCHYARD_COORDINATOR_TOKENIZER_PATTERN_H_
#define SWITCHYARD_COORDINATOR_TOKENIZER_PATTERN_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

struct pcre2_real_code_8;

namespace switchyard {

// A compiled pattern. Immutable; may be used from any thread.
class TokenizerPattern {
 public:
  // `regex` is in Oniguruma's syntax. InvalidArgument tells what is wrong with
  // it and where, Unimplemented which construct is not served.
  static absl::StatusOr<TokenizerPattern> FromRegex(absl::string_view regex);
  // Matches exactly `text`.
  static absl::StatusOr<TokenizerPattern> FromLiteral(absl::string_view text);

  // Calls on_match(begin, end) for the successive matches in `text`, left to
  // right. An empty match is reported unless it touches the end of the one
  // before. InvalidArgument if a match takes more backtracking than any sane
  // pattern.
  // REQUIRES: `text` is valid UTF-8.
  absl::Status ForEachMatch(
      absl::string_view text,
      absl::FunctionRef<void(size_t begin, size_t end)> on_match) const;

 private:
  struct FreeCode {
    void operator()(pcre2_real_code_8* code) const;
  };

  static absl::StatusOr<TokenizerPattern> Compile(absl::string_view pattern,
                                                  uint32_t options);
  explicit TokenizerPattern(std::unique_ptr<pcre2_real_code_8, FreeCode> code);

  std::unique_ptr<pcre2_real_code_8, FreeCode> code_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_TOKENIZER_PATTERN_H_
