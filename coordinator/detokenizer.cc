#include "coordinator/detokenizer.h"

#include "absl/strings/string_view.h"
#include "coordinator/utf8.h"

namespace switchyard {

Detokenizer::Detokenizer(const Tokenizer* tokenizer, bool skip_special_tokens)
    : tokenizer_(tokenizer), skip_special_tokens_(skip_special_tokens) {}

std::string Detokenizer::Append(uint32_t id) {
  std::string text;
  if (skip_special_tokens_ && tokenizer_->IsSpecial(id)) return text;
  const absl::string_view bytes = tokenizer_->TokenBytes(id);
  pending_.append(bytes.data(), bytes.size());
  pending_.erase(0, AppendUtf8Lossy(pending_, /*at_end=*/false, &text));
  return text;
}

std::string Detokenizer::Flush() {
  std::string text;
  AppendUtf8Lossy(pending_, /*at_end=*/true, &text);
  pending_.clear();
  return text;
}

}  // namespace switchyard
