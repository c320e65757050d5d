#include "coordinator/tokenizer_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/tokenizer_pattern_syntax.h"
#include "coordinator/utf8.h"
#include "kernels/check.h"
#include "kernels/status.h"

namespace switchyard {
namespace {

struct FreeMatch {
  void operator()(pcre2_match_data* match) const {
    pcre2_match_data_free(match);
  }
  void operator()(pcre2_match_context* context) const {
    pcre2_match_context_free(context);
  }
  void operator()(pcre2_compile_context* context) const {
    pcre2_compile_context_free(context);
  }
};

std::string ErrorMessage(int code) {
  PCRE2_UCHAR buffer[256] = {};
  pcre2_get_error_message(code, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

PCRE2_SPTR Pointer(absl::string_view text) {
  // PCRE2 before 10.43 refuses a null subject, even of size 0.
  return reinterpret_cast<PCRE2_SPTR>(text.empty() ? "" : text.data());
}

// One match takes a few steps per byte; a limit in proportion to the text cuts
// off exponential patterns alone.
uint32_t MatchLimit(size_t text_size) {
  constexpr size_t kBase = 1 << 20, kPerByte = 32, kMax = 1u << 31;
  return static_cast<uint32_t>(
      text_size < kMax / kPerByte ? kBase + kPerByte * text_size : kMax);
}

}  // namespace

void TokenizerPattern::FreeCode::operator()(pcre2_real_code_8* code) const {
  pcre2_code_free(code);
}

TokenizerPattern::TokenizerPattern(
    std::unique_ptr<pcre2_real_code_8, FreeCode> code)
    : code_(std::move(code)) {}

absl::StatusOr<TokenizerPattern> TokenizerPattern::Compile(
    absl::string_view pattern, uint32_t options) {
  const std::unique_ptr<pcre2_compile_context, FreeMatch> context(
      pcre2_compile_context_create(nullptr));
  SY_CHECK(context != nullptr);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int error = 0;
  PCRE2_SIZE offset = 0;
  std::unique_ptr<pcre2_real_code_8, FreeCode> code(
      pcre2_compile(Pointer(pattern), pattern.size(), options | PCRE2_UTF,
                    &error, &offset, context.get()));
  if (code == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("does not compile: ", ErrorMessage(error), ", at byte ",
                     offset, " of the regular expression ", pattern));
  }
  // Where the machine has no JIT compiler, the interpreter gives the same
  // matches.
  (void)pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
  return TokenizerPattern(std::move(code));
}

absl::StatusOr<TokenizerPattern> TokenizerPattern::FromRegex(
    absl::string_view regex) {
  SY_ASSIGN_OR_RETURN(const std::string translated, TranslatePattern(regex));
  return Compile(translated,
                 PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C);
}

absl::StatusOr<TokenizerPattern> TokenizerPattern::FromLiteral(
    absl::string_view text) {
  return Compile(text, PCRE2_LITERAL);
}

absl::Status TokenizerPattern::ForEachMatch(
    absl::string_view text,
    absl::FunctionRef<void(size_t begin, size_t end)> on_match) const {
  const std::unique_ptr<pcre2_match_data, FreeMatch> match(
      pcre2_match_data_create(1, nullptr));
  const std::unique_ptr<pcre2_match_context, FreeMatch> context(
      pcre2_match_context_create(nullptr));
  SY_CHECK(match != nullptr && context != nullptr);
  pcre2_set_match_limit(context.get(), MatchLimit(text.size()));

  size_t from = 0;
  bool any = false;
  size_t last_end = 0;
  while (from <= text.size()) {
    // Checking the text's encoding once per match would make this quadratic;
    // the caller has done it.
    uint32_t options = PCRE2_NO_UTF_CHECK;
    int result = pcre2_match(code_.get(), Pointer(text), text.size(), from,
                             options, match.get(), context.get());
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) {
      // The interpreter keeps its stack on the heap.
      options |= PCRE2_NO_JIT;
      result = pcre2_match(code_.get(), Pointer(text), text.size(), from,
                           options, match.get(), context.get());
    }
    if (result == PCRE2_ERROR_NOMATCH) break;
    if (result < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("cannot be split by the tokenizer's pattern, at byte ",
                       from, ": ", ErrorMessage(result)));
    }
    const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(match.get());
    const size_t begin = offsets[0], end = offsets[1];
    SY_CHECK(from <= begin && begin <= end && end <= text.size());
    if (begin == end && any && last_end == end) {
      if (from == text.size()) break;
      from += FirstCharacterSize(text.substr(from));
      continue;
    }
    on_match(begin, end);
    any = true;
    from = last_end = end;
  }
  return absl::OkStatus();
}

}  // namespace switchyard
