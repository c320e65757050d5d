#include "tests/coordinator/tiny_tokenizer.h"

#include <string>
#include <vector>

namespace switchyard {
namespace {

using nlohmann::json;

// A space is U+0120 in the byte-level alphabet.
constexpr char kSpace[] = "\u0120";

// bytes_to_unicode, restated from the description in the GPT-2 sources.
std::vector<std::string> ByteLevelAlphabet() {
  std::vector<std::string> characters;
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') ||
                           (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    const int code_point = printable ? byte : next++;
    characters.push_back(
        code_point < 0x80
            ? std::string(1, static_cast<char>(code_point))
            : std::string{static_cast<char>(0xC0 | code_point >> 6),
                          static_cast<char>(0x80 | (code_point & 0x3F))});
  }
  return characters;
}

json AddedTokenJson(int id, const std::string& content, bool special) {
  return {{"id", id},          {"content", content}, {"single_word", false},
          {"lstrip", false},   {"rstrip", false},    {"normalized", false},
          {"special", special}};
}

}  // namespace

json TinyTokenizerJson() {
  json vocab = json::object();
  int id = 0;
  for (const std::string& character : ByteLevelAlphabet())
    vocab[character] = id++;
  const std::string space_the = std::string(kSpace) + "the";
  for (const std::string& token :
       {std::string("th"), std::string("the"), space_the, std::string("he"),
        std::string("in"), std::string("an")})
    vocab[token] = id++;
  json merges = {"t h", "th e", std::string(kSpace) + " the",
                 "h e", "i n",  "a n"};
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens",
           {AddedTokenJson(kTinyBos, "<s>", true),
            AddedTokenJson(kTinyEos, "</s>", true),
            AddedTokenJson(kTinyTool, "<|tool|>", false)}},
          {"normalizer", nullptr},
          {"pre_tokenizer",
           {{"type", "ByteLevel"},
            {"add_prefix_space", false},
            {"use_regex", true}}},
          {"post_processor",
           {{"type", "TemplateProcessing"},
            {"single",
             {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}},
              {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
            {"special_tokens",
             {{"<s>",
               {{"id", "<s>"}, {"ids", {kTinyBos}}, {"tokens", {"<s>"}}}}}}}},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"ignore_merges", false},
            {"vocab", vocab},
            {"merges", merges}}}};
}

}  // namespace switchyard
