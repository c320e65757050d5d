#include "coordinator/tokenizer_pattern.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "coordinator/tokenizer_pattern_syntax.h"

namespace switchyard {
namespace {

using Strings = std::vector<std::string>;

// The matches in `text`, those without characters as "".
Strings Matches(const std::string& regex, absl::string_view text) {
  auto pattern = TokenizerPattern::FromRegex(regex);
  EXPECT_TRUE(pattern.ok()) << pattern.status();
  if (!pattern.ok()) return {};
  Strings matches;
  const absl::Status status =
      pattern->ForEachMatch(text, [&](size_t begin, size_t end) {
        matches.emplace_back(text.substr(begin, end - begin));
      });
  EXPECT_TRUE(status.ok()) << status;
  return matches;
}

TEST(TokenizerPatternTest, SplitsAsGpt2Does) {
  EXPECT_EQ(
      Matches(R"('s|'t| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)",
              "it's 42\u00BD  \u00E9t\u00E9!\n"),
      (Strings{"it", "'s", " 42\u00BD", " ", " \u00E9t\u00E9", "!", "\n"}));
}

TEST(TokenizerPatternTest, ReportsEmptyMatchesOffTheLastMatch) {
  EXPECT_EQ(Matches("a*", "baac"), (Strings{"", "aa", ""}));
  EXPECT_EQ(Matches("(?=\u00E9)", "a\u00E9\u00E9"), (Strings{"", ""}));
  EXPECT_EQ(Matches("x*", ""), Strings{""});
}

TEST(TokenizerPatternTest, LiteralsAreLiteral) {
  const auto pattern = TokenizerPattern::FromLiteral("a.(");
  ASSERT_TRUE(pattern.ok()) << pattern.status();
  std::vector<size_t> begins;
  ASSERT_TRUE(
      pattern
          ->ForEachMatch("aa.(axa.(",
                         [&](size_t begin, size_t) { begins.push_back(begin); })
          .ok());
  EXPECT_EQ(begins, (std::vector<size_t>{1, 6}));
}

// Where Oniguruma and PCRE2 differ, Oniguruma is followed.
TEST(TokenizerPatternTest, SpaceIsWhiteSpaceOfUnicode) {
  // U+0085 is, U+180E is not.
  EXPECT_EQ(Matches("\\s", " \u0085\u180E\u3000\v"),
            (Strings{" ", "\u0085", "\u3000", "\v"}));
  EXPECT_EQ(Matches("\\S", " \u0085\u180Ea"), (Strings{"\u180E", "a"}));
  EXPECT_EQ(Matches("[\\s_]+", "a\u0085_b"), Strings{"\u0085_"});
}

TEST(TokenizerPatternTest, WordsHoldMarksAndConnectors) {
  const std::string word = "e\u0301\u203Fa\u24D0";
  EXPECT_EQ(Matches("\\w+", word + "-\u00B2"), (Strings{word, "\u00B2"}));
  EXPECT_EQ(Matches("[\\w]+", word + "-\u00B2"), Strings{word});
  EXPECT_EQ(Matches("\\W", "a-e\u0301"), Strings{"-"});
  EXPECT_EQ(Matches("\\b.", "e\u0301a b"), (Strings{"e", " ", "b"}));
  EXPECT_EQ(Matches("\\Ba", "a\u0301a aa"), (Strings{"a", "a"}));
}

TEST(TokenizerPatternTest, TranslatesOtherEscapes) {
  EXPECT_EQ(Matches("\\h+", "0fFg \t"), Strings{"0fF"});
  EXPECT_EQ(Matches("\\H", "0g"), Strings{"g"});
  EXPECT_EQ(Matches("[\\h_]+", "a_g"), Strings{"a_"});
  EXPECT_EQ(Matches("\\v", "\v\n\u2028"), Strings{"\v"});
  EXPECT_EQ(Matches("\\u00e9", "e\u00E9"), Strings{"\u00E9"});
  EXPECT_EQ(Matches("\\x41\\x{1F600}", "A\U0001F600"), Strings{"A\U0001F600"});
  EXPECT_EQ(Matches("a{,2}b", "aaab"), Strings{"aab"});
  EXPECT_EQ(Matches("a{x}", "a{x}"), Strings{"a{x}"});
  // A script is what the character belongs to, not every script that uses it.
  EXPECT_EQ(Matches("\\p{Han}", "\u6F22\u3002"), Strings{"\u6F22"});
  EXPECT_EQ(Matches("\\p{^L}", "a1"), Strings{"1"});
  EXPECT_EQ(Matches("(?i:'S)|(?:x)", "'s'\u017Fx"),
            (Strings{"'s", "'\u017F", "x"}));
  EXPECT_EQ(Matches("^a$", "a\nb\na"), (Strings{"a", "a"}));
  EXPECT_EQ(Matches("\\p{L}++|.", "ab1\n"), (Strings{"ab", "1"}));
}

TEST(TokenizerPatternTest, RefusesWhatItCannotTranslate) {
  for (const char* regex :
       {"[a[b]]",  "[[:alpha:]]", "[a&&b]",  "a{2}+", "a{1,2}+", "a{2}?",
        "\\R",     "\\X",         "\\K",     "\\G",   "\\N",     "\\k<a>",
        "\\xE9",   "\\uDxyz",     "[\\W]",   "[\\H]", "\\pL",    "(?m:.)",
        "(?<a>b)", "a(?i)b",      "(*FAIL)", "(?~a)", "\\C"}) {
    const auto pattern = TokenizerPattern::FromRegex(regex);
    EXPECT_EQ(pattern.status().code(), absl::StatusCode::kUnimplemented)
        << regex << ": " << pattern.status();
    EXPECT_TRUE(absl::StrContains(pattern.status().message(), regex))
        << pattern.status();
  }
}

TEST(TokenizerPatternTest, SaysWhatIsWrongWithARegex) {
  for (const char* regex : {"a\\", "[a", "[a\\", "\\p{L", "(a", "a)", "*",
                            "\\p{Nonsense}", "[b-a]", "\\u12", "(?<=a*)b"}) {
    const auto pattern = TokenizerPattern::FromRegex(regex);
    EXPECT_EQ(pattern.status().code(), absl::StatusCode::kInvalidArgument)
        << regex << ": " << pattern.status();
  }
}

TEST(TokenizerPatternTest, LeavesWhatIsCommonAlone) {
  for (const char* regex :
       {R"([^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|(?!\p{P})\(\[\^\-\]\.)",
        R"((?<!a)(?<=b)(?>c)\1(d)[\p{Lu}\p{M}a-z\]]*+\A\z\d\D)"}) {
    EXPECT_EQ(*TranslatePattern(regex), regex);
  }
}

}  // namespace
}  // namespace switchyard
