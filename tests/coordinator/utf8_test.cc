#include "coordinator/utf8.h"

#include <gtest/gtest.h>

#include <string>

namespace switchyard {
namespace {

std::string Repair(absl::string_view bytes) {
  std::string text;
  EXPECT_EQ(AppendUtf8Lossy(bytes, /*at_end=*/true, &text), bytes.size());
  return text;
}

TEST(Utf8Test, AcceptsWholeCharacters) {
  // The first and last of each length, and around the surrogates.
  const std::string text =
      "\x01\x7F\u0080\u07FF\u0800\uD7FF\uE000\uFFFF\U00010000\U0010FFFF";
  EXPECT_EQ(FindInvalidUtf8(text), text.size());
  EXPECT_EQ(Repair(text), text);
  EXPECT_EQ(FindInvalidUtf8(""), 0u);
}

TEST(Utf8Test, FindsTheFirstBadByte) {
  EXPECT_EQ(FindInvalidUtf8("ab\x80"), 2u);
  EXPECT_EQ(FindInvalidUtf8("\u00E9\xC0\x80"), 2u);    // too long a form
  EXPECT_EQ(FindInvalidUtf8("\xED\xA0\x80"), 0u);      // a surrogate
  EXPECT_EQ(FindInvalidUtf8("\xF4\x90\x80\x80"), 0u);  // beyond U+10FFFF
  EXPECT_EQ(FindInvalidUtf8("a\xE2\x82"), 1u);         // breaks off
}

// The example of the Unicode standard, table 3-8 and those after it.
TEST(Utf8Test, ReplacesMaximalSubparts) {
  const std::string r = "\uFFFD";
  EXPECT_EQ(Repair("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"),
            r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(Repair("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"),
            r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(Repair("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"),
            r + r + r + r + r + "A" + r + r + "B");
  EXPECT_EQ(Repair("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"),
            r + r + r + r + "A");
}

TEST(Utf8Test, LeavesTheBeginningOfACharacter) {
  for (absl::string_view begun : {"\xC3", "\xE2\x82", "\xF0\x9F\x98"}) {
    std::string text;
    EXPECT_EQ(
        AppendUtf8Lossy("ab" + std::string(begun), /*at_end=*/false, &text),
        2u);
    EXPECT_EQ(text, "ab");
    EXPECT_EQ(Repair(begun), "\uFFFD");
  }
  std::string text;
  EXPECT_EQ(AppendUtf8Lossy("\xE0\x80", /*at_end=*/false, &text), 2u);
  EXPECT_EQ(text, "\uFFFD\uFFFD");
}

TEST(Utf8Test, FindsTheEndsOfText) {
  EXPECT_EQ(LastCharacter("a\u20AC"), 1u);
  EXPECT_EQ(LastCharacter("\U0001F600"), 0u);
  EXPECT_EQ(FirstCharacterSize("\u20ACa"), 3u);
  EXPECT_EQ(FirstCharacterSize("a"), 1u);
}

}  // namespace
}  // namespace switchyard
