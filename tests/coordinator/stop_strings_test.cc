#include "coordinator/stop_strings.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <random>
#include <string>
#include <vector>

namespace switchyard {
namespace {

using Strings = std::vector<std::string>;

TEST(StopStringsTest, WithoutStopStringsTextPasses) {
  StopStrings stops({});
  EXPECT_EQ(stops.Append("abc").text, "abc");
  EXPECT_EQ(stops.Append("").text, "");
  EXPECT_EQ(stops.Flush(), "");
  EXPECT_FALSE(stops.stopped());
}

TEST(StopStringsTest, StopsAcrossPiecesAndDropsTheRest) {
  StopStrings stops(Strings{"\n\nUser"});
  EXPECT_EQ(stops.Append("Yes.\n").text, "Yes.");
  EXPECT_EQ(stops.Append("\nUs").text, "");
  const StopStrings::Piece piece = stops.Append("er: why");
  EXPECT_EQ(piece.text, "");
  EXPECT_TRUE(piece.stopped);
  EXPECT_TRUE(stops.stopped());
  EXPECT_EQ(stops.Append("more").text, "");
  EXPECT_TRUE(stops.Append("more").stopped);
  EXPECT_EQ(stops.Flush(), "");
}

TEST(StopStringsTest, ReleasesWhatTurnsOutNotToBeAStop) {
  StopStrings stops(Strings{"aab"});
  EXPECT_EQ(stops.Append("xaa").text, "x");
  EXPECT_EQ(stops.Append("").text, "");
  EXPECT_EQ(stops.Append("a").text, "a");  // still ends in `aa`
  EXPECT_EQ(stops.Append("c").text, "aac");
  EXPECT_EQ(stops.Append("a").text, "");
  EXPECT_EQ(stops.Flush(), "a");
  EXPECT_FALSE(stops.stopped());
}

TEST(StopStringsTest, TheFirstToBeCompleteWins) {
  StopStrings stops(Strings{"abcdef", "cd"});
  const StopStrings::Piece piece = stops.Append("xabcdef");
  EXPECT_EQ(piece.text, "xab");
  EXPECT_TRUE(piece.stopped);
}

TEST(StopStringsTest, OfThoseCompletedTogetherTheLongestWins) {
  StopStrings stops(Strings{"c", "abc", "bc"});
  EXPECT_EQ(stops.Append("xabc").text, "x");
}

// Looks at every prefix of the text anew.
std::optional<std::string> NaiveStop(const Strings& stops,
                                     const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& stop : stops) {
      if (stop.size() <= end &&
          text.compare(end - stop.size(), stop.size(), stop) == 0)
        longest = std::max(longest, stop.size());
    }
    if (longest > 0) return text.substr(0, end - longest);
  }
  return std::nullopt;
}

TEST(StopStringsTest, AgreesWithANaiveSearchHoweverTheTextIsCut) {
  std::mt19937 random(5);
  const auto random_text = [&](int min, int max) {
    std::string text(std::uniform_int_distribution<int>(min, max)(random), 'a');
    for (char& c : text) c += random() % 3;
    return text;
  };
  int num_stopped = 0;
  for (int trial = 0; trial < 20000; ++trial) {
    Strings wanted(1 + random() % 4);
    for (std::string& stop : wanted) stop = random_text(1, 6);
    const std::string text = random_text(0, 40);
    StopStrings stops(wanted);
    std::string released;
    for (size_t at = 0; at < text.size();) {
      const size_t size = std::min<size_t>(random() % 5, text.size() - at);
      const auto piece = stops.Append(text.substr(at, size));
      released += piece.text;
      at += size;
      if (!piece.stopped) {
        // Only the possible beginning of a stop string is held back.
        const std::string held =
            text.substr(released.size(), at - released.size());
        ASSERT_TRUE(held.empty() ||
                    std::any_of(wanted.begin(), wanted.end(),
                                [&](const std::string& stop) {
                                  return stop.compare(0, held.size(), held) ==
                                         0;
                                }));
      }
    }
    released += stops.Flush();
    const auto expected = NaiveStop(wanted, text);
    ASSERT_EQ(stops.stopped(), expected.has_value());
    ASSERT_EQ(released, expected.value_or(text));
    num_stopped += stops.stopped();
  }
  EXPECT_GT(num_stopped, 1000);
}

TEST(StopStringsTest, ReleasesWholeCharacters) {
  StopStrings stops(Strings{"\u20ACx"});
  EXPECT_EQ(stops.Append("a\u20AC").text, "a");
  EXPECT_EQ(stops.Append("\u20AC").text, "\u20AC");
  EXPECT_EQ(stops.Flush(), "\u20AC");
}

TEST(StopStringsTest, ManyLongStopsAreLinear) {
  Strings wanted;
  for (int i = 0; i < 16; ++i)
    wanted.push_back(std::string(1023, 'a') + static_cast<char>('b' + i));
  StopStrings stops(wanted);
  std::string released;
  for (int i = 0; i < 1000; ++i)
    released += stops.Append(std::string(100, 'a')).text;
  EXPECT_EQ(released.size(), 100000u - 1023u);
  EXPECT_EQ(stops.Flush().size(), 1023u);
}

}  // namespace
}  // namespace switchyard
