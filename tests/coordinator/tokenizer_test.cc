#include "coordinator/tokenizer.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "tests/coordinator/tiny_tokenizer.h"

namespace switchyard {
namespace {

using nlohmann::json;
using Ids = std::vector<uint32_t>;

constexpr char kTinyCheckpoint[] = "tests/testdata/apriel2-tiny/tokenizer.json";

std::unique_ptr<Tokenizer> Make(const json& document) {
  auto tokenizer = Tokenizer::FromJson(document.dump());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

Ids Encode(const Tokenizer& tokenizer, const std::string& text,
           bool add_special_tokens = false) {
  auto ids = tokenizer.Encode(text, add_special_tokens);
  EXPECT_TRUE(ids.ok()) << ids.status();
  return *std::move(ids);
}

json Split(const json& pattern, const std::string& behavior, bool invert) {
  return {{"type", "Split"},
          {"pattern", pattern},
          {"behavior", behavior},
          {"invert", invert}};
}

// The tiny tokenizer with `steps` ahead of a ByteLevel that splits nothing.
json WithSteps(std::vector<json> steps) {
  json document = TinyTokenizerJson();
  steps.push_back({{"type", "ByteLevel"},
                   {"add_prefix_space", false},
                   {"use_regex", false}});
  document["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", steps}};
  return document;
}

TEST(TokenizerGoldenTest, AgreesWithTheReferenceInBothDirections) {
  const auto tokenizer = Tokenizer::Load(kTinyCheckpoint);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocab_size(), 2048u);
  json goldens;
  std::ifstream("tests/testdata/golden_tokenizer.json") >> goldens;
  ASSERT_GE(goldens["cases"].size(), 200u);
  for (const json& golden : goldens["cases"]) {
    const std::string text = golden["text"];
    const Ids ids = golden["ids"];
    EXPECT_EQ(Encode(**tokenizer, text, true), ids) << text;
    EXPECT_EQ(Encode(**tokenizer, text, false),
              golden["ids_no_special"].get<Ids>())
        << text;
    EXPECT_EQ((*tokenizer)->Decode(ids, true), golden["decoded"]) << text;
    EXPECT_EQ((*tokenizer)->Decode(ids, false), golden["decoded_with_special"])
        << text;
  }
}

TEST(TokenizerGoldenTest, IsSafeToShareBetweenThreads) {
  const auto tokenizer = Tokenizer::Load(kTinyCheckpoint);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const std::string text = "It is a truth <s>universally acknowledged\u2026";
  const Ids expected = Encode(**tokenizer, text);
  std::vector<std::thread> threads;
  std::vector<int> wrong(4, 0);
  for (int& count : wrong) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i)
        count += *(*tokenizer)->Encode(text, false) != expected;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, std::vector<int>(4, 0));
}

TEST(TokenizerTest, MergesByRankThenFromTheLeft) {
  const auto tokenizer = Make(TinyTokenizerJson());
  EXPECT_EQ(Encode(*tokenizer, "the"), Ids{kTinyThe});
  EXPECT_EQ(Encode(*tokenizer, "in the"), (Ids{kTinyIn, kTinySpaceThe}));
  EXPECT_EQ(Encode(*tokenizer, "he"), Ids{kTinyHe});
  // `t h` ranks before `h e`, so the e stays alone only where there is no t.
  EXPECT_EQ(Encode(*tokenizer, "hethe"), (Ids{kTinyHe, kTinyThe}));
  EXPECT_EQ(Encode(*tokenizer, ""), Ids{});
}

TEST(TokenizerTest, AcceptsMergesAsPairs) {
  json document = TinyTokenizerJson();
  document["model"]["merges"] =
      json::array({{"t", "h"}, {"th", "e"}, {"\u0120", "the"}, {"h", "e"}});
  EXPECT_EQ(Encode(*Make(document), "the"), Ids{kTinyThe});
}

TEST(TokenizerTest, IgnoreMergesTakesWholeWordsFirst) {
  json document = TinyTokenizerJson();
  document["model"]["merges"] = json::array();
  EXPECT_EQ(Encode(*Make(document), "the in"),
            (Ids{'t', 'h', 'e', ' ', 'i', 'n'}));
  document["model"]["ignore_merges"] = true;
  EXPECT_EQ(Encode(*Make(document), "the in"), (Ids{kTinyThe, ' ', 'i', 'n'}));
}

TEST(TokenizerTest, OneLongWordIsNotQuadratic) {
  const auto tokenizer = Make(TinyTokenizerJson());
  std::string text;
  for (int i = 0; i < 350000; ++i) text += "the";
  EXPECT_EQ(Encode(*tokenizer, text), Ids(350000, kTinyThe));
}

TEST(TokenizerTest, AddsPrefixSpaceToWhatDoesNotBeginWithOne) {
  json document = TinyTokenizerJson();
  document["pre_tokenizer"]["add_prefix_space"] = true;
  const auto tokenizer = Make(document);
  EXPECT_EQ(Encode(*tokenizer, "the"), Ids{kTinySpaceThe});
  EXPECT_EQ(Encode(*tokenizer, " the"), Ids{kTinySpaceThe});
  EXPECT_EQ(Encode(*tokenizer, "the<s>the"),
            (Ids{kTinySpaceThe, kTinyBos, kTinySpaceThe}));
  EXPECT_EQ(Encode(*tokenizer, ""), Ids{});
}

TEST(TokenizerTest, SplitsAtRegexesAndLiterals) {
  // Without a split `the` is one word, whose merges a split cuts apart.
  EXPECT_EQ(Encode(*Make(WithSteps({})), "the"), Ids{kTinyThe});
  const json regex = {{"Regex", "[e]"}};
  EXPECT_EQ(Encode(*Make(WithSteps({Split(regex, "Isolated", false)})), "the"),
            (Ids{kTinyTh, 'e'}));
  const json literal = {{"String", "."}};
  const auto at_dots = Make(WithSteps({Split(literal, "Isolated", false)}));
  EXPECT_EQ(Encode(*at_dots, "the.in"), (Ids{kTinyThe, '.', kTinyIn}));
}

TEST(TokenizerTest, RemovesWhatASplitRemoves) {
  const json regex = {{"Regex", "\\s+"}};
  EXPECT_EQ(
      Encode(*Make(WithSteps({Split(regex, "Removed", false)})), " in\n the "),
      (Ids{kTinyIn, kTinyThe}));
  EXPECT_EQ(
      Encode(*Make(WithSteps({Split(regex, "Removed", true)})), "in\nthe "),
      (Ids{'\n', ' '}));
}

TEST(TokenizerTest, RunsSplitsOneAfterTheOther) {
  const auto tokenizer = Make(WithSteps(
      {Split({{"Regex", "\\d"}}, "Isolated", false),
       {{"type", "Sequence"},
        {"pretokenizers", {Split({{"String", "t"}}, "Removed", false)}}}}));
  EXPECT_EQ(Encode(*tokenizer, "in1the"), (Ids{kTinyIn, '1', kTinyHe}));
}

TEST(TokenizerTest, TheTemplateGoesAroundTheText) {
  json document = TinyTokenizerJson();
  auto& processor = document["post_processor"];
  processor["single"].push_back({{"SpecialToken", {{"id", "end"}}}});
  processor["special_tokens"]["end"] = {{"ids", {kTinyEos, kTinyTool}}};
  EXPECT_EQ(Encode(*Make(document), "in", true),
            (Ids{kTinyBos, kTinyIn, kTinyEos, kTinyTool}));
  EXPECT_EQ(Encode(*Make(document), "in", false), Ids{kTinyIn});
  document["post_processor"] = {{"type", "Sequence"},
                                {"processors", {processor, processor}}};
  EXPECT_EQ(
      Encode(*Make(document), "", true),
      (Ids{kTinyBos, kTinyBos, kTinyEos, kTinyTool, kTinyEos, kTinyTool}));
  document["post_processor"] = nullptr;
  EXPECT_EQ(Encode(*Make(document), "in", true), Ids{kTinyIn});
}

TEST(TokenizerTest, FindsAddedTokensLeftmostLongest) {
  json document = TinyTokenizerJson();
  document["added_tokens"].push_back({{"id", 265}, {"content", "<s>>"}});
  document["added_tokens"].push_back(
      {{"id", 266}, {"content", ">the"}, {"normalized", true}});
  const auto tokenizer = Make(document);
  EXPECT_EQ(Encode(*tokenizer, "in<s></s>"),
            (Ids{kTinyIn, kTinyBos, kTinyEos}));
  EXPECT_EQ(Encode(*tokenizer, "<<s"), (Ids{'<', '<', 's'}));
  // Those that are not normalized come first, wherever the others begin.
  EXPECT_EQ(Encode(*tokenizer, ">the<s>"), (Ids{266, kTinyBos}));
  EXPECT_EQ(tokenizer->vocab_size(), 267u);
}

TEST(TokenizerTest, AddedTokensTakeSpaceAlongAndKeepOutOfWords) {
  json document = TinyTokenizerJson();
  document["added_tokens"].push_back({{"id", 265},
                                      {"content", "cat"},
                                      {"lstrip", true},
                                      {"rstrip", true},
                                      {"single_word", true}});
  const auto tokenizer = Make(document);
  EXPECT_EQ(Encode(*tokenizer, "in\u3000 cat \u0085in"),
            (Ids{kTinyIn, 265, kTinyIn}));
  EXPECT_EQ(Encode(*tokenizer, "cat cat"), (Ids{265, 265}));
  EXPECT_EQ(Encode(*tokenizer, "cats"), (Ids{'c', 'a', 't', 's'}));
  EXPECT_EQ(Encode(*tokenizer, "_cat"), (Ids{'_', 'c', 'a', 't'}));
  EXPECT_EQ(Encode(*tokenizer, "(cat)"), (Ids{'(', 265, ')'}));
}

TEST(TokenizerTest, DecodesBytesAndSpecialTokens) {
  const auto tokenizer = Make(TinyTokenizerJson());
  const Ids ids = {kTinyBos, kTinyThe, kTinyTool, 0xE2, 0x82, 0xAC, kTinyEos};
  EXPECT_EQ(tokenizer->Decode(ids, true), "the<|tool|>\u20AC");
  EXPECT_EQ(tokenizer->Decode(ids, false), "<s>the<|tool|>\u20AC</s>");
  EXPECT_EQ(tokenizer->Decode({0xE2, 0x82, 'a'}, true), "\uFFFDa");
  EXPECT_EQ(tokenizer->Decode({0xE2, kTinyBos, 0x82, 0xAC}, true), "\u20AC");
  EXPECT_EQ(tokenizer->Decode({kTinyVocabSize, 'a', UINT32_MAX}, false), "a");
}

TEST(TokenizerTest, DescribesTokens) {
  const auto tokenizer = Make(TinyTokenizerJson());
  EXPECT_EQ(tokenizer->vocab_size(), static_cast<uint32_t>(kTinyVocabSize));
  EXPECT_TRUE(tokenizer->IsSpecial(kTinyBos));
  EXPECT_FALSE(tokenizer->IsSpecial(kTinyTool));
  EXPECT_FALSE(tokenizer->IsSpecial(kTinyVocabSize));
  EXPECT_EQ(tokenizer->TokenBytes(kTinySpaceThe), " the");
  EXPECT_EQ(tokenizer->TokenBytes(0xFF), "\xFF");
  EXPECT_EQ(tokenizer->TokenBytes(kTinyVocabSize), "");
}

TEST(TokenizerTest, RefusesTextThatIsNotUtf8) {
  const auto tokenizer = Make(TinyTokenizerJson());
  for (const char* text : {"ab\xFF", "\xC0\x80", "\xED\xA0\x80", "\xE2\x82"}) {
    const auto ids = tokenizer->Encode(text, false);
    EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_NE(
      tokenizer->Encode("ab\xFF", false).status().message().find("from byte 2"),
      absl::string_view::npos);
}

TEST(TokenizerTest, CutsOffPatternsThatBacktrackExponentially) {
  const auto tokenizer =
      Make(WithSteps({Split({{"Regex", "(a|aa|a{3})+$"}}, "Isolated", false)}));
  const auto ids = tokenizer->Encode(std::string(200, 'a') + "b", false);
  EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace switchyard
