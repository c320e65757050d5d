#include "coordinator/tokenizer_pattern_syntax.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cstddef>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/status.h"

namespace switchyard {
namespace {

// The members of Oniguruma's character types, as they stand inside a bracket.
// PCRE2's \s lacks U+0085 and has U+180E instead; its \w lacks marks,
// connectors and circled letters; its \h and \v are other things altogether.
constexpr absl::string_view kSpace = R"(\t-\r\x{85}\p{Z})";
constexpr absl::string_view kWord =
    R"(\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\x{24B6}-\x{24E9}\x{1F130}-\x{1F149}\x{1F150}-\x{1F169}\x{1F170}-\x{1F189})";
// Superscripts and fractions of Latin-1 are word characters to it, but not
// inside a bracket.
constexpr absl::string_view kWordOutsideBrackets =
    R"(\x{B2}\x{B3}\x{B9}\x{BC}-\x{BE})";
constexpr absl::string_view kHexDigit = "0-9a-fA-F";

// Escapes that mean the same to both.
constexpr absl::string_view kCommonEscapes = "tnrfaedD";
constexpr absl::string_view kCommonAssertions = "AzZ123456789";

bool IsScript(absl::string_view name) {
  const std::string pattern = absl::StrCat("\\p{sc:", name, "}");
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()),
                    pattern.size(), PCRE2_UTF, &error, &offset, nullptr);
  pcre2_code_free(code);
  return code != nullptr;
}

class Translator {
 public:
  explicit Translator(absl::string_view regex) : in_(regex) {}

  absl::StatusOr<std::string> Run() {
    while (at_ < in_.size()) {
      const char c = in_[at_];
      if (c == '\\') {
        SY_RETURN_IF_ERROR(Escape());
      } else if (c == '[') {
        SY_RETURN_IF_ERROR(Bracket());
      } else if (c == '(') {
        SY_RETURN_IF_ERROR(Group());
      } else if (c == '{') {
        SY_RETURN_IF_ERROR(Interval());
      } else {
        Copy(1);
      }
    }
    return std::move(out_);
  }

 private:
  void Copy(size_t size) {
    absl::StrAppend(&out_, in_.substr(at_, size));
    at_ += size;
  }

  absl::Status Unsupported(absl::string_view construct) const {
    return absl::UnimplementedError(absl::StrCat(construct, " at byte ", at_,
                                                 " of the regular expression ",
                                                 in_, " is not supported"));
  }

  absl::Status BreaksOff() const {
    return absl::InvalidArgumentError(
        absl::StrCat("the regular expression ", in_, " ends too early"));
  }

  // A class of characters, as one item inside a bracket or a bracket of its
  // own.
  void Emit(absl::string_view members, bool negated, bool in_bracket) {
    if (in_bracket) {
      absl::StrAppend(&out_, members);
    } else {
      absl::StrAppend(&out_, negated ? "[^" : "[", members, "]");
    }
    at_ += 2;
  }

  static std::string WordMembers(bool in_bracket) {
    return absl::StrCat(kWord, in_bracket ? "" : kWordOutsideBrackets);
  }

  // An escape outside brackets.
  absl::Status Escape() {
    if (at_ + 1 == in_.size()) return BreaksOff();
    const char c = in_[at_ + 1];
    if (c == 'b' || c == 'B') {
      const std::string word = WordMembers(/*in_bracket=*/false);
      // Behind a word character: is it the same ahead (B) or not (b)? And
      // likewise behind another.
      absl::StrAppend(&out_, "(?:(?<=[", word, "])", c == 'B' ? "(?=[" : "(?![",
                      word, "])|(?<![", word, "])", c == 'B' ? "(?![" : "(?=[",
                      word, "]))");
      at_ += 2;
      return absl::OkStatus();
    }
    if (absl::StrContains(kCommonAssertions, c)) {
      Copy(2);
      return absl::OkStatus();
    }
    return CharacterEscape(/*in_bracket=*/false);
  }

  absl::Status CharacterEscape(bool in_bracket) {
    if (at_ + 1 == in_.size()) return BreaksOff();
    const char c = in_[at_ + 1];
    const bool negated = absl::ascii_isupper(c);
    switch (c) {
      case 's':
      case 'S':
        // Negated inside a bracket it stays: that differs in U+180E alone,
        // which is not the space PCRE2 takes it for.
        if (negated && in_bracket) {
          Copy(2);
        } else {
          Emit(kSpace, negated, in_bracket);
        }
        return absl::OkStatus();
      case 'w':
      case 'W':
        if (negated && in_bracket) break;
        Emit(WordMembers(in_bracket), negated, in_bracket);
        return absl::OkStatus();
      case 'h':
      case 'H':
        if (negated && in_bracket) break;
        Emit(kHexDigit, negated, in_bracket);
        return absl::OkStatus();
      case 'v':
        absl::StrAppend(&out_, "\\x{0B}");
        at_ += 2;
        return absl::OkStatus();
      case 'u':
        return CodeUnit();
      case 'x':
        return HexEscape();
      case 'p':
      case 'P':
        return Property();
      default:
        break;
    }
    const bool plain = !absl::ascii_isalnum(c) ||
                       absl::StrContains(kCommonEscapes, c) || c == '0' ||
                       (in_bracket && c == 'b');
    if (!plain)
      return Unsupported(absl::StrCat("the escape \\", in_.substr(at_ + 1, 1)));
    Copy(2);
    return absl::OkStatus();
  }

  // \uHHHH
  absl::Status CodeUnit() {
    const absl::string_view digits = in_.substr(at_ + 2, 4);
    for (char digit : digits) {
      if (!absl::ascii_isxdigit(digit)) return Unsupported("the escape \\u");
    }
    if (digits.size() < 4) return BreaksOff();
    absl::StrAppend(&out_, "\\x{", digits, "}");
    at_ += 6;
    return absl::OkStatus();
  }

  // \xHH is a byte to Oniguruma, a character to PCRE2; below 0x80 that is the
  // same. \x{H...} is a character to both.
  absl::Status HexEscape() {
    const absl::string_view digits = in_.substr(at_ + 2, 2);
    if (digits.size() == 2 && absl::ascii_isxdigit(digits[0]) &&
        digits[0] >= '8' && absl::ascii_isxdigit(digits[1]))
      return Unsupported("\\x of a byte beyond 7f");
    Copy(2);
    return absl::OkStatus();
  }

  // \p{Name}. A script's name means the Script property to Oniguruma,
  // Script_Extensions to PCRE2.
  absl::Status Property() {
    if (in_.substr(at_ + 2, 1) != "{") return Unsupported("\\p without braces");
    const size_t close = in_.find('}', at_);
    if (close == absl::string_view::npos) return BreaksOff();
    absl::string_view name = in_.substr(at_ + 3, close - at_ - 3);
    if (name.size() > 2 && name[0] != '^' && IsScript(name)) {
      absl::StrAppend(&out_, in_.substr(at_, 3), "sc:", name, "}");
      at_ = close + 1;
    } else {
      Copy(close + 1 - at_);
    }
    return absl::OkStatus();
  }

  absl::Status Bracket() {
    Copy(1);
    if (in_.substr(at_, 1) == "^") Copy(1);
    if (in_.substr(at_, 1) == "]") Copy(1);  // the first is a member
    while (at_ < in_.size() && in_[at_] != ']') {
      if (in_[at_] == '[') return Unsupported("a set within a set, [");
      if (in_.substr(at_, 2) == "&&")
        return Unsupported("the intersection of sets, &&,");
      if (in_[at_] == '\\') {
        SY_RETURN_IF_ERROR(CharacterEscape(/*in_bracket=*/true));
      } else {
        Copy(1);
      }
    }
    if (at_ == in_.size()) return BreaksOff();
    Copy(1);
    return absl::OkStatus();
  }

  absl::Status Group() {
    const absl::string_view rest = in_.substr(at_);
    if (rest.substr(1, 1) == "*") return Unsupported("the verb (*");
    if (rest.substr(1, 1) != "?") {
      Copy(1);
      return absl::OkStatus();
    }
    for (absl::string_view common :
         {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!"}) {
      if (rest.substr(0, common.size()) == common) {
        Copy(common.size());
        return absl::OkStatus();
      }
    }
    // Options. Case folding is the only one whose letter means the same to
    // both; on its own rather than with a group,
    // (?i) reaches to the end of the alternative or of the group, which is the
    // same at the very beginning only.
    const bool folds = rest.substr(0, 4) == "(?i:" ||
                       rest.substr(0, 5) == "(?-i:" ||
                       (at_ == 0 && rest.substr(0, 4) == "(?i)");
    if (!folds)
      return Unsupported(absl::StrCat("the group ", rest.substr(0, 4)));
    Copy(3);
    return absl::OkStatus();
  }

  // {n}, {n,}, {n,m} or {,m}; any other brace stands for itself.
  absl::Status Interval() {
    size_t i = at_ + 1;
    const auto digits = [&] {
      const size_t begin = i;
      while (i < in_.size() && absl::ascii_isdigit(in_[i])) ++i;
      return i - begin;
    };
    const size_t low = digits();
    const bool comma = i < in_.size() && in_[i] == ',';
    if (comma) ++i;
    const size_t high = comma ? digits() : 0;
    if (i == in_.size() || in_[i] != '}' || low + high == 0) {
      Copy(1);
      return absl::OkStatus();
    }
    ++i;
    const absl::string_view suffix = in_.substr(i, 1);
    if (suffix == "+")
      return Unsupported("{n,m}+, which repeats the repetition,");
    if (suffix == "?" && !comma)
      return Unsupported("{n}?, which makes the repetition optional,");
    if (low == 0) {
      absl::StrAppend(&out_, "{0", in_.substr(at_ + 1, i - at_ - 1));
      at_ = i;
    } else {
      Copy(i - at_);
    }
    return absl::OkStatus();
  }

  const absl::string_view in_;
  size_t at_ = 0;
  std::string out_;
};

}  // namespace

absl::StatusOr<std::string> TranslatePattern(absl::string_view regex) {
  return Translator(regex).Run();
}

}  // namespace switchyard
