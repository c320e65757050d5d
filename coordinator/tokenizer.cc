#include "coordinator/tokenizer.h"

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <fstream>
#include <iterator>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/tokenizer_added.h"
#include "coordinator/tokenizer_bpe.h"
#include "coordinator/tokenizer_json.h"
#include "coordinator/tokenizer_pattern.h"
#include "coordinator/utf8.h"
#include "kernels/status.h"

namespace switchyard {
namespace {

// One step of the pre-tokenizer, compiled.
struct Step {
  bool add_prefix_space =
      false;  // before the split, to a piece that does not begin with a space
  std::optional<TokenizerPattern> pattern;  // unset: no split
  bool drops_matches = false;
  bool drops_others = false;
};

absl::StatusOr<Step> CompileStep(const SplitStep& split) {
  Step step;
  auto pattern = split.is_literal ? TokenizerPattern::FromLiteral(split.pattern)
                                  : TokenizerPattern::FromRegex(split.pattern);
  if (!pattern.ok()) {
    return absl::Status(
        pattern.status().code(),
        absl::StrCat("pre_tokenizer: pattern: ", pattern.status().message()));
  }
  step.pattern = *std::move(pattern);
  step.drops_matches = split.drops_matches;
  step.drops_others = split.drops_others;
  return step;
}

struct Token {
  uint32_t offset = 0;  // of its bytes in Impl::bytes
  uint32_t size = 0;
  bool special = false;
};

}  // namespace

struct Tokenizer::Impl {
  // What one call of Encode works with.
  struct Encoding {
    std::vector<uint32_t> ids;
    Bpe::Scratch scratch;
  };

  absl::Status CompileSteps(const TokenizerSpec& spec);
  absl::Status FillTokens(const TokenizerSpec& spec);

  // Runs the steps from number `index` on over `piece`, and BPE over what they
  // leave.
  absl::Status EncodePiece(size_t index, absl::string_view piece,
                           Encoding* encoding) const;

  explicit Impl(Bpe bpe_of_spec, std::vector<AddedToken> added_tokens)
      : bpe(std::move(bpe_of_spec)), added(std::move(added_tokens)) {}

  Bpe bpe;
  AddedTokens added;
  std::vector<Step> steps;
  std::vector<uint32_t> prefix_ids;
  std::vector<uint32_t> suffix_ids;
  std::vector<Token> tokens;  // by id
  std::string bytes;          // of all tokens
};

absl::Status Tokenizer::Impl::CompileSteps(const TokenizerSpec& spec) {
  for (const SplitStep& split : spec.splits) {
    SY_ASSIGN_OR_RETURN(Step step, CompileStep(split));
    steps.push_back(std::move(step));
  }
  Step byte_level;
  if (spec.byte_level_split.has_value()) {
    SY_ASSIGN_OR_RETURN(byte_level, CompileStep(*spec.byte_level_split));
  }
  byte_level.add_prefix_space = spec.add_prefix_space;
  steps.push_back(std::move(byte_level));
  return absl::OkStatus();
}

absl::Status Tokenizer::Impl::FillTokens(const TokenizerSpec& spec) {
  const auto add = [&](uint32_t id, absl::string_view spelling, bool special) {
    if (id >= tokens.size()) tokens.resize(id + 1);
    const std::string decoded = DecodeByteLevel(spelling);
    tokens[id] = {static_cast<uint32_t>(bytes.size()),
                  static_cast<uint32_t>(decoded.size()), special};
    bytes += decoded;
  };
  for (const auto& [spelling, id] : spec.vocab) add(id, spelling, false);
  for (const AddedToken& token : spec.added_tokens)
    add(token.id, token.content, token.special);
  if (bytes.size() > UINT32_MAX)
    return absl::InvalidArgumentError("the vocabulary exceeds 4 GiB");
  for (const auto& template_ids : {spec.prefix_ids, spec.suffix_ids}) {
    for (uint32_t id : template_ids) {
      if (id >= tokens.size() || tokens[id].size == 0) {
        return absl::InvalidArgumentError(absl::StrCat(
            "post_processor adds the id ", id, ", which no token has"));
      }
    }
  }
  prefix_ids = spec.prefix_ids;
  suffix_ids = spec.suffix_ids;
  return absl::OkStatus();
}

absl::Status Tokenizer::Impl::EncodePiece(size_t index, absl::string_view piece,
                                          Encoding* encoding) const {
  if (piece.empty()) return absl::OkStatus();
  if (index == steps.size()) {
    bpe.Encode(piece, &encoding->scratch, &encoding->ids);
    return absl::OkStatus();
  }
  const Step& step = steps[index];
  std::string prefixed;
  if (step.add_prefix_space && piece[0] != ' ') {
    prefixed = absl::StrCat(" ", piece);
    piece = prefixed;
  }
  if (!step.pattern.has_value()) return EncodePiece(index + 1, piece, encoding);

  absl::Status status;
  size_t done = 0;
  const auto next = [&](size_t begin, size_t end, bool dropped) {
    if (status.ok() && !dropped)
      status =
          EncodePiece(index + 1, piece.substr(begin, end - begin), encoding);
    done = end;
  };
  SY_RETURN_IF_ERROR(
      step.pattern->ForEachMatch(piece, [&](size_t begin, size_t end) {
        next(done, begin, step.drops_others);
        next(begin, end, step.drops_matches);
      }));
  next(done, piece.size(), step.drops_others);
  return status;
}

Tokenizer::Tokenizer(std::unique_ptr<const Impl> impl)
    : impl_(std::move(impl)) {}

Tokenizer::~Tokenizer() = default;

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(
    const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string json(std::istreambuf_iterator<char>(file), {});
  if (!file) {
    return absl::NotFoundError(
        absl::StrCat(path, ": cannot be read: ", std::strerror(errno)));
  }
  auto tokenizer = FromJson(json);
  if (!tokenizer.ok()) {
    return absl::Status(tokenizer.status().code(),
                        absl::StrCat(path, ": ", tokenizer.status().message()));
  }
  return tokenizer;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromJson(
    absl::string_view json) {
  SY_ASSIGN_OR_RETURN(TokenizerSpec spec, ParseTokenizerJson(json));
  SY_ASSIGN_OR_RETURN(Bpe bpe, Bpe::Create(spec));
  auto impl = std::make_unique<Impl>(std::move(bpe), spec.added_tokens);
  SY_RETURN_IF_ERROR(impl->CompileSteps(spec));
  SY_RETURN_IF_ERROR(impl->FillTokens(spec));
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(impl)));
}

absl::StatusOr<std::vector<uint32_t>> Tokenizer::Encode(
    absl::string_view text, bool add_special_tokens) const {
  if (const size_t at = FindInvalidUtf8(text); at < text.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("text is not UTF-8, from byte ", at, " on"));
  }
  // The prefix space included, offsets within a word are int32.
  if (text.size() >= INT32_MAX - 1)
    return absl::InvalidArgumentError("text exceeds 2 GiB");
  Impl::Encoding encoding;
  if (add_special_tokens) encoding.ids = impl_->prefix_ids;
  for (const AddedTokens::Piece& piece : impl_->added.Split(text)) {
    if (piece.id.has_value()) {
      encoding.ids.push_back(*piece.id);
      continue;
    }
    const absl::Status status = impl_->EncodePiece(0, piece.text, &encoding);
    if (!status.ok())
      return absl::Status(status.code(),
                          absl::StrCat("text ", status.message()));
  }
  if (add_special_tokens) {
    encoding.ids.insert(encoding.ids.end(), impl_->suffix_ids.begin(),
                        impl_->suffix_ids.end());
  }
  return std::move(encoding.ids);
}

std::string Tokenizer::Decode(absl::Span<const uint32_t> ids,
                              bool skip_special_tokens) const {
  std::string bytes;
  for (uint32_t id : ids) {
    if (skip_special_tokens && IsSpecial(id)) continue;
    const absl::string_view token = TokenBytes(id);
    bytes.append(token.data(), token.size());
  }
  std::string text;
  AppendUtf8Lossy(bytes, /*at_end=*/true, &text);
  return text;
}

uint32_t Tokenizer::vocab_size() const {
  return static_cast<uint32_t>(impl_->tokens.size());
}

bool Tokenizer::IsSpecial(uint32_t id) const {
  return id < impl_->tokens.size() && impl_->tokens[id].special;
}

absl::string_view Tokenizer::TokenBytes(uint32_t id) const {
  if (id >= impl_->tokens.size()) return {};
  const Token& token = impl_->tokens[id];
  return absl::string_view(impl_->bytes).substr(token.offset, token.size);
}

}  // namespace switchyard
