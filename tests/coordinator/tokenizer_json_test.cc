// What a tokenizer.json may get wrong, and what is said about it.
#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "coordinator/tokenizer.h"
#include "tests/coordinator/tiny_tokenizer.h"

namespace switchyard {
namespace {

using nlohmann::json;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;

struct Fault {
  std::string name;
  std::function<void(json&)> inject;  // into the tiny tokenizer
  absl::StatusCode code;
  std::string message;  // what the error says, in part
};

std::ostream& operator<<(std::ostream& out, const Fault& fault) {
  return out << fault.name;
}

json Steps(std::vector<json> steps) {
  return {{"type", "Sequence"}, {"pretokenizers", std::move(steps)}};
}

json Split(const std::string& regex) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", regex}}},
          {"behavior", "Isolated"}};
}

const json kByteLevel = {{"type", "ByteLevel"}};

class TokenizerJsonTest : public testing::TestWithParam<Fault> {};

TEST_P(TokenizerJsonTest, NamesWhatIsWrong) {
  json document = TinyTokenizerJson();
  ASSERT_TRUE(Tokenizer::FromJson(document.dump()).ok());
  GetParam().inject(document);
  const auto tokenizer = Tokenizer::FromJson(document.dump());
  EXPECT_EQ(tokenizer.status().code(), GetParam().code) << tokenizer.status();
  EXPECT_TRUE(
      absl::StrContains(tokenizer.status().message(), GetParam().message))
      << tokenizer.status();
}

const Fault kFaults[] = {
    {"NotAnObject", [](json& d) { d = json::array(); }, kInvalid,
     "the document must be an object, and is an array"},
    {"NoModel", [](json& d) { d.erase("model"); }, kInvalid,
     "model must be an object, and is missing"},
    {"OtherModel", [](json& d) { d["model"]["type"] = "Unigram"; },
     kUnimplemented, "model.type: the model Unigram"},
    {"Dropout", [](json& d) { d["model"]["dropout"] = 0.1; }, kUnimplemented,
     "model.dropout"},
    {"WordEnd", [](json& d) { d["model"]["end_of_word_suffix"] = "</w>"; },
     kUnimplemented, "model.end_of_word_suffix"},
    {"Subword", [](json& d) { d["model"]["continuing_subword_prefix"] = "##"; },
     kUnimplemented, "model.continuing_subword_prefix"},
    {"IgnoreMergesNotBool", [](json& d) { d["model"]["ignore_merges"] = 1; },
     kInvalid, "model.ignore_merges must be true or false, and is 1"},
    {"NoVocab", [](json& d) { d["model"].erase("vocab"); }, kInvalid,
     "model.vocab must be an object"},
    {"IdNotANumber", [](json& d) { d["model"]["vocab"]["the"] = "x"; },
     kInvalid, "model.vocab.the must be a whole number"},
    {"IdNegative", [](json& d) { d["model"]["vocab"]["the"] = -1; }, kInvalid,
     "model.vocab.the must be a whole number from 0 to 4194303, and is -1"},
    {"IdHuge", [](json& d) { d["model"]["vocab"]["the"] = 4294967295u; },
     kInvalid, "model.vocab.the must be a whole number"},
    {"IdTwice", [](json& d) { d["model"]["vocab"]["the"] = kTinyIn; }, kInvalid,
     "the id 260"},
    {"ByteMissing",
     [](json& d) {
       d["model"]["vocab"].erase("a");
       d["model"]["merges"] = json::array();
     },
     kInvalid, "no token for the byte 0x61"},
    {"NoMerges", [](json& d) { d["model"].erase("merges"); }, kInvalid,
     "model.merges must be an array"},
    {"MergeOfThree", [](json& d) { d["model"]["merges"][1] = "a b c"; },
     kInvalid, "model.merges[1] must be two tokens"},
    {"MergeOfOne", [](json& d) { d["model"]["merges"][1] = json{"a"}; },
     kInvalid, "model.merges[1] must be a pair"},
    {"MergeIntoNothing", [](json& d) { d["model"]["merges"][1] = "x y"; },
     kInvalid, "model.merges[1] needs the token xy"},
    {"MergeOfNothing", [](json& d) { d["model"]["merges"][1] = "xx y"; },
     kInvalid, "model.merges[1] needs the token xx"},
    {"AddedNotAList", [](json& d) { d["added_tokens"] = 3; }, kInvalid,
     "added_tokens must be an array, and is 3"},
    {"AddedWithoutId", [](json& d) { d["added_tokens"][1].erase("id"); },
     kInvalid, "added_tokens[1].id must be a whole number"},
    {"AddedEmpty", [](json& d) { d["added_tokens"][1]["content"] = ""; },
     kInvalid, "added_tokens[1].content is empty"},
    {"AddedTwice", [](json& d) { d["added_tokens"][1]["id"] = kTinyBos; },
     kInvalid, "added_tokens[1] has the id"},
    {"AddedContradicts", [](json& d) { d["added_tokens"][1]["id"] = 65; },
     kInvalid, "added_tokens[1] contradicts model.vocab"},
    {"AddedFlag", [](json& d) { d["added_tokens"][1]["special"] = "yes"; },
     kInvalid, "added_tokens[1].special must be true or false"},
    {"Normalizer",
     [](json& d) {
       d["normalizer"] = {{"type", "Sequence"},
                          {"normalizers", {{{"type", "NFC"}}}}};
     },
     kUnimplemented, "normalizer.normalizers[0].type: the normalizer NFC"},
    {"NoPreTokenizer", [](json& d) { d["pre_tokenizer"] = nullptr; },
     kUnimplemented, "pre_tokenizer: a pre-tokenizer that does not end in"},
    {"SplitAlone", [](json& d) { d["pre_tokenizer"] = Steps({Split("a")}); },
     kUnimplemented, "pre_tokenizer: a pre-tokenizer that does not end in"},
    {"OtherPreTokenizer",
     [](json& d) {
       d["pre_tokenizer"] = Steps({{{"type", "Digits"}}, kByteLevel});
     },
     kUnimplemented,
     "pre_tokenizer.pretokenizers[0].type: the pre-tokenizer Digits"},
    {"BehindByteLevel",
     [](json& d) {
       d["pre_tokenizer"] = Steps({kByteLevel, Split("a")});
     },
     kUnimplemented, "pre_tokenizer.pretokenizers[0]"},
    {"OtherBehavior",
     [](json& d) {
       json split = Split("a");
       split["behavior"] = "MergedWithNext";
       d["pre_tokenizer"] = Steps({split, kByteLevel});
     },
     kUnimplemented, "pretokenizers[0].behavior: MergedWithNext"},
    {"NoPattern",
     [](json& d) {
       json split = Split("a");
       split.erase("pattern");
       d["pre_tokenizer"] = Steps({split, kByteLevel});
     },
     kInvalid, "pretokenizers[0].pattern must be an object"},
    {"BrokenRegex",
     [](json& d) {
       d["pre_tokenizer"] = Steps({Split("(a"), kByteLevel});
     },
     kInvalid, "missing closing parenthesis"},
    {"UnsupportedRegex",
     [](json& d) {
       d["pre_tokenizer"] = Steps({Split("[a&&b]"), kByteLevel});
     },
     kUnimplemented, "&&"},
    {"DeepSequence",
     [](json& d) {
       json step = kByteLevel;
       for (int i = 0; i < 100; ++i) step = Steps({step});
       d["pre_tokenizer"] = step;
     },
     kUnimplemented, "a Sequence so deep"},
    {"LongSequence",
     [](json& d) {
       d["pre_tokenizer"] = Steps(std::vector<json>(1000, Split("a")));
     },
     kUnimplemented, "a Sequence of more than"},
    {"OtherPostProcessor",
     [](json& d) {
       d["post_processor"] = {{"type", "BertProcessing"}};
     },
     kUnimplemented, "post_processor.type: the post-processor BertProcessing"},
    {"TemplateWithoutText",
     [](json& d) { d["post_processor"]["single"] = json::array(); }, kInvalid,
     "post_processor.single lacks the Sequence A"},
    {"TemplateTokenUnknown",
     [](json& d) { d["post_processor"]["special_tokens"] = json::object(); },
     kInvalid, "post_processor.special_tokens.<s> must be an object"},
    {"TemplateIdUnknown",
     [](json& d) {
       d["post_processor"]["special_tokens"]["<s>"]["ids"] = {9999};
     },
     kInvalid, "post_processor adds the id 9999"},
    {"NoDecoder", [](json& d) { d["decoder"] = nullptr; }, kUnimplemented,
     "decoder"},
    {"OtherDecoder", [](json& d) { d["decoder"]["type"] = "WordPiece"; },
     kUnimplemented, "decoder.type: the decoder WordPiece"},
    {"TypeNotAString", [](json& d) { d["decoder"]["type"] = 5; }, kInvalid,
     "decoder.type must be a string, and is 5"},
};

INSTANTIATE_TEST_SUITE_P(Faults, TokenizerJsonTest, testing::ValuesIn(kFaults),
                         [](const auto& info) { return info.param.name; });

TEST(TokenizerFileTest, NamesTheFile) {
  const auto missing = Tokenizer::Load("no/such/tokenizer.json");
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(absl::StrContains(missing.status().message(),
                                "no/such/tokenizer.json: cannot be read: No"));
  const std::string config = "tests/testdata/apriel2-tiny/config.json";
  const auto other = Tokenizer::Load(config);
  EXPECT_EQ(other.status().code(), kInvalid);
  EXPECT_TRUE(absl::StrContains(other.status().message(),
                                config + ": model must be an object"))
      << other.status();
}

TEST(TokenizerFileTest, RefusesWhatIsNotJson) {
  for (const char* text : {"", "{", "{\"model\": \"\xFF\"}", "nul"}) {
    EXPECT_EQ(Tokenizer::FromJson(text).status().message(),
              "the document is not valid JSON");
  }
}

}  // namespace
}  // namespace switchyard
