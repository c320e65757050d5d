#include "coordinator/tokenizer_json.h"

#include <cstddef>
#include <nlohmann/json.hpp>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "coordinator/json_field.h"
#include "kernels/status.h"

namespace switchyard {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 8;  // of a Sequence within a Sequence
constexpr size_t kMaxSteps = 32;

// ByteLevel's own split, when it has use_regex: that of GPT-2
// (https://github.com/openai/gpt-2/blob/master/src/encoder.py).
constexpr absl::string_view kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// The leaves of a component that may be null, one thing, or a Sequence of
// things under `list_key`.
absl::Status Flatten(const JsonField& component, absl::string_view list_key,
                     int depth, std::vector<JsonField>* leaves) {
  if (component.is_null()) return absl::OkStatus();
  SY_RETURN_IF_ERROR(component.ExpectObject());
  SY_ASSIGN_OR_RETURN(const std::string type, component.Get("type").String());
  if (type != "Sequence") {
    if (leaves->size() == kMaxSteps)
      return component.Unsupported(
          absl::StrCat("a Sequence of more than ", kMaxSteps, " steps"));
    leaves->push_back(component);
    return absl::OkStatus();
  }
  if (depth == kMaxDepth)
    return component.Unsupported("a Sequence so deep within others");
  const JsonField list = component.Get(list_key);
  SY_RETURN_IF_ERROR(list.ExpectArray());
  for (size_t i = 0; i < list.size(); ++i) {
    if (list.At(i).is_null()) return list.At(i).Invalid("is null");
    SY_RETURN_IF_ERROR(Flatten(list.At(i), list_key, depth + 1, leaves));
  }
  return absl::OkStatus();
}

absl::Status ExpectNoNormalizer(const JsonField& normalizer) {
  std::vector<JsonField> leaves;
  SY_RETURN_IF_ERROR(Flatten(normalizer, "normalizers", 0, &leaves));
  if (leaves.empty()) return absl::OkStatus();
  SY_ASSIGN_OR_RETURN(const std::string type, leaves[0].Get("type").String());
  return leaves[0].Get("type").Unsupported(
      absl::StrCat("the normalizer ", type));
}

absl::Status ExpectByteLevelDecoder(const JsonField& decoder) {
  std::vector<JsonField> leaves;
  SY_RETURN_IF_ERROR(Flatten(decoder, "decoders", 0, &leaves));
  if (leaves.empty())
    return decoder.Unsupported("a tokenizer without the decoder ByteLevel");
  for (const JsonField& leaf : leaves) {
    SY_ASSIGN_OR_RETURN(const std::string type, leaf.Get("type").String());
    if (type != "ByteLevel" || leaves.size() > 1)
      return leaf.Get("type").Unsupported(absl::StrCat("the decoder ", type));
  }
  return absl::OkStatus();
}

absl::StatusOr<SplitStep> ParseSplit(const JsonField& split) {
  SplitStep step;
  const JsonField pattern = split.Get("pattern");
  SY_RETURN_IF_ERROR(pattern.ExpectObject());
  step.is_literal = pattern.Get("Regex").is_null();
  SY_ASSIGN_OR_RETURN(
      step.pattern, pattern.Get(step.is_literal ? "String" : "Regex").String());
  SY_ASSIGN_OR_RETURN(const std::string behavior,
                      split.Get("behavior").String());
  SY_ASSIGN_OR_RETURN(const bool invert, split.Get("invert").Bool(false));
  if (behavior == "Removed") {
    (invert ? step.drops_others : step.drops_matches) = true;
  } else if (behavior != "Isolated") {
    return split.Get("behavior").Unsupported(behavior);
  }
  return step;
}

absl::Status ParsePreTokenizer(const JsonField& pre_tokenizer,
                               TokenizerSpec* spec) {
  std::vector<JsonField> leaves;
  SY_RETURN_IF_ERROR(Flatten(pre_tokenizer, "pretokenizers", 0, &leaves));
  for (size_t i = 0; i < leaves.size(); ++i) {
    const JsonField& leaf = leaves[i];
    SY_ASSIGN_OR_RETURN(const std::string type, leaf.Get("type").String());
    if (type == "Split") {
      SY_ASSIGN_OR_RETURN(SplitStep step, ParseSplit(leaf));
      spec->splits.push_back(std::move(step));
      continue;
    }
    if (type != "ByteLevel") {
      return leaf.Get("type").Unsupported(
          absl::StrCat("the pre-tokenizer ", type));
    }
    if (i + 1 < leaves.size())
      return leaf.Unsupported("a pre-tokenizer behind ByteLevel");
    SY_ASSIGN_OR_RETURN(spec->add_prefix_space,
                        leaf.Get("add_prefix_space").Bool(true));
    SY_ASSIGN_OR_RETURN(const bool use_regex, leaf.Get("use_regex").Bool(true));
    if (use_regex)
      spec->byte_level_split = SplitStep{std::string(kByteLevelPattern)};
    return absl::OkStatus();
  }
  return pre_tokenizer.Unsupported(
      "a pre-tokenizer that does not end in ByteLevel");
}

absl::Status ParseVocab(const JsonField& vocab, TokenizerSpec* spec) {
  SY_RETURN_IF_ERROR(vocab.ExpectObject());
  absl::flat_hash_map<uint32_t, absl::string_view> by_id;
  spec->vocab.reserve(vocab.size());
  by_id.reserve(vocab.size());
  for (const auto& [token, value] : vocab.value().items()) {
    if (!value.is_number_unsigned() ||
        value.get<uint64_t>() >= kMaxTokenizerVocabSize)
      return vocab.Get(token).Id(kMaxTokenizerVocabSize).status();
    const uint32_t id = value.get<uint32_t>();
    const auto [found, inserted] = by_id.emplace(id, token);
    if (!inserted) {
      return vocab.Invalid(absl::StrCat("gives both ", found->second, " and ",
                                        token, " the id ", id));
    }
    spec->vocab.emplace(token, id);
  }
  return absl::OkStatus();
}

absl::Status ParseMerges(const JsonField& merges, TokenizerSpec* spec) {
  SY_RETURN_IF_ERROR(merges.ExpectArray());
  spec->merges.reserve(merges.size());
  for (size_t i = 0; i < merges.size(); ++i) {
    const json& merge = merges.value()[i];
    if (merge.is_string()) {  // "a b"
      const std::string& pair = merge.get_ref<const std::string&>();
      if (absl::StartsWith(pair, "#version")) continue;  // of a merges.txt
      const size_t space = pair.find(' ');
      if (space == std::string::npos ||
          pair.find(' ', space + 1) != std::string::npos)
        return merges.At(i).Invalid("must be two tokens with a space between");
      spec->merges.emplace_back(pair.substr(0, space), pair.substr(space + 1));
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
               merge[1].is_string()) {
      spec->merges.emplace_back(merge[0].get<std::string>(),
                                merge[1].get<std::string>());
    } else {
      return merges.At(i).Invalid("must be a pair of tokens");
    }
  }
  return absl::OkStatus();
}

absl::Status ParseModel(const JsonField& model, TokenizerSpec* spec) {
  SY_RETURN_IF_ERROR(model.ExpectObject());
  if (!model.Get("type").is_null()) {  // older files leave it out
    SY_ASSIGN_OR_RETURN(const std::string type, model.Get("type").String());
    if (type != "BPE")
      return model.Get("type").Unsupported(absl::StrCat("the model ", type));
  }
  const JsonField dropout = model.Get("dropout");
  if (!dropout.is_null() && dropout.value() != json(0.0))
    return dropout.Unsupported("leaving merges out at random");
  for (absl::string_view key :
       {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const JsonField affix = model.Get(key);
    if (!affix.is_null() && affix.value() != json(""))
      return affix.Unsupported("marking tokens by their place in the word");
  }
  SY_ASSIGN_OR_RETURN(spec->ignore_merges,
                      model.Get("ignore_merges").Bool(false));
  SY_RETURN_IF_ERROR(ParseVocab(model.Get("vocab"), spec));
  return ParseMerges(model.Get("merges"), spec);
}

absl::Status ParseAddedTokens(const JsonField& tokens, TokenizerSpec* spec) {
  if (tokens.is_null()) return absl::OkStatus();
  SY_RETURN_IF_ERROR(tokens.ExpectArray());
  absl::flat_hash_map<uint32_t, absl::string_view> vocab_by_id;
  for (const auto& [token, id] : spec->vocab) vocab_by_id.emplace(id, token);
  absl::flat_hash_set<uint32_t> ids;
  absl::flat_hash_set<std::string> contents;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const JsonField token = tokens.At(i);
    SY_RETURN_IF_ERROR(token.ExpectObject());
    AddedToken added;
    SY_ASSIGN_OR_RETURN(added.id, token.Get("id").Id(kMaxTokenizerVocabSize));
    SY_ASSIGN_OR_RETURN(added.content, token.Get("content").String());
    SY_ASSIGN_OR_RETURN(added.special, token.Get("special").Bool(false));
    SY_ASSIGN_OR_RETURN(added.normalized,
                        token.Get("normalized").Bool(!added.special));
    SY_ASSIGN_OR_RETURN(added.lstrip, token.Get("lstrip").Bool(false));
    SY_ASSIGN_OR_RETURN(added.rstrip, token.Get("rstrip").Bool(false));
    SY_ASSIGN_OR_RETURN(added.single_word,
                        token.Get("single_word").Bool(false));
    if (added.content.empty()) return token.Get("content").Invalid("is empty");
    const auto same_id = vocab_by_id.find(added.id);
    const auto same_content = spec->vocab.find(added.content);
    const bool contradicts =
        (same_id != vocab_by_id.end() && same_id->second != added.content) ||
        (same_content != spec->vocab.end() && same_content->second != added.id);
    if (contradicts)
      return token.Invalid("contradicts model.vocab about that id or content");
    if (!ids.insert(added.id).second || !contents.insert(added.content).second)
      return token.Invalid("has the id or the content of one before it");
    spec->added_tokens.push_back(std::move(added));
  }
  return absl::OkStatus();
}

// One TemplateProcessing, which goes around those before it.
absl::Status ParseTemplate(const JsonField& processor, TokenizerSpec* spec) {
  const JsonField single = processor.Get("single");
  SY_RETURN_IF_ERROR(single.ExpectArray());
  const JsonField special_tokens = processor.Get("special_tokens");
  if (!special_tokens.is_null())
    SY_RETURN_IF_ERROR(special_tokens.ExpectObject());
  std::vector<uint32_t> before, after;
  bool has_text = false;
  for (size_t i = 0; i < single.size(); ++i) {
    const JsonField piece = single.At(i);
    SY_RETURN_IF_ERROR(piece.ExpectObject());
    const JsonField sequence = piece.Get("Sequence");
    if (!sequence.is_null()) {
      SY_RETURN_IF_ERROR(sequence.ExpectObject());
      SY_ASSIGN_OR_RETURN(const std::string name, sequence.Get("id").String());
      if (name != "A" || has_text)
        return sequence.Invalid("must be A, and there once");
      has_text = true;
      continue;
    }
    const JsonField special = piece.Get("SpecialToken");
    SY_RETURN_IF_ERROR(special.ExpectObject());
    SY_ASSIGN_OR_RETURN(const std::string name, special.Get("id").String());
    const JsonField entry = special_tokens.Get(name);
    SY_RETURN_IF_ERROR(entry.ExpectObject());
    const JsonField ids = entry.Get("ids");
    SY_RETURN_IF_ERROR(ids.ExpectArray());
    for (size_t j = 0; j < ids.size(); ++j) {
      SY_ASSIGN_OR_RETURN(const uint32_t id,
                          ids.At(j).Id(kMaxTokenizerVocabSize));
      (has_text ? after : before).push_back(id);
    }
  }
  if (!has_text) return single.Invalid("lacks the Sequence A");
  spec->prefix_ids.insert(spec->prefix_ids.begin(), before.begin(),
                          before.end());
  spec->suffix_ids.insert(spec->suffix_ids.end(), after.begin(), after.end());
  return absl::OkStatus();
}

absl::Status ParsePostProcessor(const JsonField& post_processor,
                                TokenizerSpec* spec) {
  std::vector<JsonField> leaves;
  SY_RETURN_IF_ERROR(Flatten(post_processor, "processors", 0, &leaves));
  for (const JsonField& leaf : leaves) {
    SY_ASSIGN_OR_RETURN(const std::string type, leaf.Get("type").String());
    if (type == "TemplateProcessing") {
      SY_RETURN_IF_ERROR(ParseTemplate(leaf, spec));
    } else if (type != "ByteLevel") {  // ByteLevel trims offsets, which nobody
                                       // here asks for
      return leaf.Get("type").Unsupported(
          absl::StrCat("the post-processor ", type));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenizerSpec> ParseTokenizerJson(absl::string_view text) {
  const json document = json::parse(text.begin(), text.end(), nullptr,
                                    /*allow_exceptions=*/false);
  if (document.is_discarded())
    return absl::InvalidArgumentError("the document is not valid JSON");
  const JsonField root(&document);
  SY_RETURN_IF_ERROR(root.ExpectObject());
  TokenizerSpec spec;
  SY_RETURN_IF_ERROR(ParseModel(root.Get("model"), &spec));
  SY_RETURN_IF_ERROR(ParseAddedTokens(root.Get("added_tokens"), &spec));
  SY_RETURN_IF_ERROR(ExpectNoNormalizer(root.Get("normalizer")));
  SY_RETURN_IF_ERROR(ParsePreTokenizer(root.Get("pre_tokenizer"), &spec));
  SY_RETURN_IF_ERROR(ParsePostProcessor(root.Get("post_processor"), &spec));
  SY_RETURN_IF_ERROR(ExpectByteLevelDecoder(root.Get("decoder")));
  return spec;
}

}  // namespace switchyard
