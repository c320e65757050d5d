#include "coordinator/detokenizer.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "coordinator/utf8.h"
#include "tests/coordinator/tiny_tokenizer.h"

namespace switchyard {
namespace {

std::unique_ptr<Tokenizer> Tiny() {
  return *Tokenizer::FromJson(TinyTokenizerJson().dump());
}

TEST(DetokenizerTest, HoldsBackHalfACharacter) {
  const auto tokenizer = Tiny();
  Detokenizer detokenizer(tokenizer.get(), true);
  EXPECT_EQ(detokenizer.Append(kTinyThe), "the");
  EXPECT_EQ(detokenizer.Append(0xF0), "");
  EXPECT_EQ(detokenizer.Append(0x9F), "");
  EXPECT_EQ(detokenizer.Append(0x98), "");
  EXPECT_EQ(detokenizer.Append(0x80), "\U0001F600");
  EXPECT_EQ(detokenizer.Flush(), "");
}

TEST(DetokenizerTest, ReplacesWhatNeverBecomesACharacter) {
  const auto tokenizer = Tiny();
  Detokenizer detokenizer(tokenizer.get(), true);
  EXPECT_EQ(detokenizer.Append(0xE2), "");
  EXPECT_EQ(detokenizer.Append('a'), "\uFFFDa");
  EXPECT_EQ(detokenizer.Append(0x80), "\uFFFD");
  EXPECT_EQ(detokenizer.Append(0xE2), "");
  EXPECT_EQ(detokenizer.Append(0x82), "");
  EXPECT_EQ(detokenizer.Flush(), "\uFFFD");
  EXPECT_EQ(detokenizer.Append('b'), "b");
}

TEST(DetokenizerTest, SkipsSpecialTokensOnDemand) {
  const auto tokenizer = Tiny();
  Detokenizer skips(tokenizer.get(), true), shows(tokenizer.get(), false);
  EXPECT_EQ(skips.Append(kTinyEos), "");
  EXPECT_EQ(shows.Append(kTinyEos), "</s>");
  EXPECT_EQ(skips.Append(kTinyTool), "<|tool|>");
  // Tokens the model has and the tokenizer has not.
  EXPECT_EQ(shows.Append(kTinyVocabSize), "");
}

struct RandomIds {
  const char* name;
  uint32_t low;
  uint32_t high;
};

class DetokenizerPropertyTest : public testing::TestWithParam<RandomIds> {};

TEST_P(DetokenizerPropertyTest, PiecesConcatenateToDecode) {
  const auto tokenizer = Tiny();
  std::mt19937 random(11);
  std::uniform_int_distribution<uint32_t> id(GetParam().low, GetParam().high);
  for (int trial = 0; trial < 2000; ++trial) {
    const bool skip = trial % 2 == 0;
    std::vector<uint32_t> ids(1 + trial % 40);
    for (uint32_t& i : ids) i = id(random);
    Detokenizer detokenizer(tokenizer.get(), skip);
    std::string text;
    for (uint32_t i : ids) {
      const std::string piece = detokenizer.Append(i);
      ASSERT_EQ(FindInvalidUtf8(piece), piece.size());
      text += piece;
    }
    text += detokenizer.Flush();
    ASSERT_EQ(text, tokenizer->Decode(ids, skip));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Ids, DetokenizerPropertyTest,
    testing::Values(RandomIds{"All", 0, kTinyVocabSize + 2},
                    RandomIds{"Continuations", 0x80, 0xFF},
                    RandomIds{"Leads", 0xE0, 0xF4},
                    RandomIds{"Specials", 0xF8, kTinyVocabSize}),
    [](const auto& info) { return info.param.name; });

// Real text, whose characters are cut apart by real tokens.
TEST(DetokenizerTest, StreamsTheCheckpointsOwnTokens) {
  const auto tokenizer =
      Tokenizer::Load("tests/testdata/apriel2-tiny/tokenizer.json");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const std::string text =
      "na\u00EFve \u6F22\u5B57 \U0001F469\u200D\U0001F680 \u0928\u092E\u0938";
  Detokenizer detokenizer(tokenizer->get(), true);
  std::string streamed;
  const auto ids = (*tokenizer)->Encode(text, true);
  ASSERT_TRUE(ids.ok());
  for (uint32_t id : *ids) streamed += detokenizer.Append(id);
  EXPECT_EQ(streamed, text);
  EXPECT_EQ(detokenizer.Flush(), "");
}

}  // namespace
}  // namespace switchyard
