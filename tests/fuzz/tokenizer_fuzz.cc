// tokenizer.json and, after a NUL byte, a text: any bytes yield a tokenizer, or
// an InvalidArgument or Unimplemented, and whatever tokenizer was accepted
// encodes, decodes and streams within its contracts.
//
// A vocabulary needs a token for every byte; to keep the corpus about the rest,
// those are added to `model.vocab` (ids 0 to 255) where they are missing.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "coordinator/detokenizer.h"
#include "coordinator/tokenizer.h"
#include "coordinator/utf8.h"
#include "kernels/check.h"
#include "tests/fuzz/json_mutator.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace switchyard {
namespace {

using nlohmann::json;
using Ids = std::vector<uint32_t>;

// The byte-level alphabet, as entries of a vocabulary.
const std::string& ByteEntries() {
  static const auto* const entries = [] {
    json vocab;
    int next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable =
          (byte > ' ' && byte <= '~') || (byte > 0xA0 && byte != 0xAD);
      const int c = printable ? byte : next++;
      std::string utf8;
      if (c >= 0x80) utf8 += static_cast<char>(0xC0 | c >> 6);
      utf8 += static_cast<char>(c < 0x80 ? c : 0x80 | (c & 0x3F));
      vocab[utf8] = byte;
    }
    const std::string object = vocab.dump();
    return new std::string(object.substr(1, object.size() - 2));
  }();
  return *entries;
}

// Of the entries with the same key the last counts, that is the document's own.
std::string WithEveryByte(std::string document) {
  const std::string opening = "\"vocab\":{";
  const size_t at = document.find(opening);
  if (at == std::string::npos) return document;
  const size_t first = at + opening.size();
  const bool empty = document.compare(first, 1, "}") == 0;
  return document.insert(first, ByteEntries() + (empty ? "" : ","));
}

// Whether nothing in `value`, a part of the document, makes text and ids differ
// by more than their form. Follows what the format says, not what the tokenizer
// made of it.
bool IsLosslessPart(const json& value) {
  if (value.is_object()) {
    const auto flag = [&](const char* key, bool absent) {
      const auto found = value.find(key);
      if (found == value.end() || found->is_null()) return absent;
      return found->is_boolean() && found->get<bool>();
    };
    if (flag("lstrip", false) || flag("rstrip", false)) return false;
    if (value.contains("behavior") && value["behavior"] == "Removed")
      return false;
    const bool byte_level =
        value.contains("type") && value["type"] == "ByteLevel";
    if (byte_level && flag("add_prefix_space", true)) return false;
    // An added token decodes through the byte-level alphabet as any other does,
    // which is the identity for ASCII alone.
    if (value.contains("content") && value["content"].is_string()) {
      for (char c : value["content"].get_ref<const std::string&>())
        if (static_cast<uint8_t>(c) >= 0x80) return false;
    }
  }
  if (!value.is_structured()) return true;
  return std::all_of(value.begin(), value.end(), IsLosslessPart);
}

bool IsLossless(const json& document) {
  return IsLosslessPart(document.value("added_tokens", json())) &&
         IsLosslessPart(document.value("pre_tokenizer", json()));
}

void CheckDecode(const Tokenizer& tokenizer, const Ids& ids) {
  for (bool skip : {false, true}) {
    const std::string text = tokenizer.Decode(ids, skip);
    SY_CHECK(FindInvalidUtf8(text) == text.size());
    Detokenizer detokenizer(&tokenizer, skip);
    std::string streamed;
    for (uint32_t id : ids) {
      const std::string piece = detokenizer.Append(id);
      SY_CHECK(FindInvalidUtf8(piece) == piece.size());
      streamed += piece;
    }
    SY_CHECK(streamed + detokenizer.Flush() == text);
  }
}

void Use(const Tokenizer& tokenizer, const std::string& text, bool lossless) {
  CheckDecode(tokenizer, Ids(text.begin(), text.end()));
  const auto ids = tokenizer.Encode(text, /*add_special_tokens=*/false);
  const auto wrapped = tokenizer.Encode(text, /*add_special_tokens=*/true);
  SY_CHECK(ids.ok() == wrapped.ok());
  if (!ids.ok()) {
    SY_CHECK(absl::IsInvalidArgument(ids.status()));
    return;
  }
  SY_CHECK(FindInvalidUtf8(text) == text.size());
  SY_CHECK(std::search(wrapped->begin(), wrapped->end(), ids->begin(),
                       ids->end()) != wrapped->end() ||
           ids->empty());
  for (uint32_t id : *wrapped) {
    SY_CHECK(id < tokenizer.vocab_size());
    SY_CHECK(!tokenizer.TokenBytes(id).empty());
  }
  CheckDecode(tokenizer, *wrapped);
  if (lossless) SY_CHECK(tokenizer.Decode(*ids, false) == text);
}

std::unique_ptr<Tokenizer> Load(const std::string& document) {
  auto tokenizer = Tokenizer::FromJson(document);
  if (tokenizer.ok()) return *std::move(tokenizer);
  SY_CHECK(absl::IsInvalidArgument(tokenizer.status()) ||
           absl::IsUnimplemented(tokenizer.status()));
  SY_CHECK(!tokenizer.status().message().empty());
  return nullptr;
}

// The strings in `value`; free text alone, or names of types and tokens too.
void CollectStrings(json& value, bool free_text, std::vector<json*>* strings) {
  if (value.is_object()) {
    for (const auto& [key, child] : value.items()) {
      const bool wanted = !free_text || child.is_structured() ||
                          key == "Regex" || key == "String" || key == "content";
      if (wanted) CollectStrings(child, free_text, strings);
    }
  } else if (value.is_array()) {
    for (json& child : value)
      if (!free_text || child.is_structured())
        CollectStrings(child, free_text, strings);
  } else if (value.is_string()) {
    strings->push_back(&value);
  }
}

// Replaces a random string by a mutation of it, most often one of those that
// may be anything.
void MutateString(json& document, std::minstd_rand& random) {
  std::vector<json*> strings;
  CollectStrings(document, random() % 4 != 0, &strings);
  if (strings.empty()) return;
  json& victim = *strings[random() % strings.size()];
  std::string text = victim.get<std::string>();
  const size_t size = text.size();
  text.resize(size + 32);
  text.resize(LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(text.data()), size,
                               text.size()));
  victim = text;
}

struct Input {
  std::string document;
  std::string text;
};

Input Cut(const uint8_t* data, size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  const size_t nul = std::min(bytes.find('\0'), bytes.size());
  return {bytes.substr(0, nul), bytes.substr(std::min(nul + 1, bytes.size()))};
}

}  // namespace
}  // namespace switchyard

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace switchyard;
  const Input input = Cut(data, size);
  const std::string document = WithEveryByte(input.document);
  if (const auto tokenizer = Load(document))
    Use(*tokenizer, input.text, IsLossless(json::parse(document)));
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size,
                                          size_t max_size, unsigned int seed) {
  using namespace switchyard;
  std::minstd_rand random(seed);
  Input input = Cut(data, size);
  const auto kind = random() % 8;
  if (kind < 2) {
    const std::string mutated = MutateJson(input.document, random);
    if (!mutated.empty()) input.document = mutated;
  } else if (kind < 5) {
    json document = json::parse(input.document, nullptr, false);
    if (!document.is_discarded()) {
      MutateString(document, random);
      input.document =
          document.dump(-1, ' ', false, json::error_handler_t::replace);
    }
  } else if (kind < 7) {
    const size_t old_size = input.text.size();
    input.text.resize(old_size + 64);
    input.text.resize(
        LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(input.text.data()),
                         old_size, input.text.size()));
  } else {
    return LLVMFuzzerMutate(data, size, max_size);
  }
  const std::string bytes = input.document + '\0' + input.text;
  if (bytes.size() > max_size) return LLVMFuzzerMutate(data, size, max_size);
  std::memcpy(data, bytes.data(), bytes.size());
  return bytes.size();
}
