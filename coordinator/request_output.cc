#include "coordinator/request_output.h"

#include <utility>
#include <vector>

namespace switchyard {

RequestOutput::RequestOutput(const Tokenizer* tokenizer,
                             const v1::SamplingParams& sampling)
    : min_tokens_(sampling.min_tokens()) {
  if (tokenizer == nullptr) return;
  detokenizer_.emplace(tokenizer, sampling.skip_special_tokens());
  if (sampling.stop_size() > 0) {
    stop_strings_.emplace(std::vector<std::string>(sampling.stop().begin(),
                                                   sampling.stop().end()));
  }
}

absl::string_view RequestOutput::Append(uint32_t token_id) {
  text_.clear();
  ++num_tokens_;
  if (detokenizer_) Release(detokenizer_->Append(token_id));
  return text_;
}

absl::string_view RequestOutput::AppendLast(uint32_t token_id,
                                            bool is_stop_token) {
  text_.clear();
  ++num_tokens_;
  if (detokenizer_ && !is_stop_token) Release(detokenizer_->Append(token_id));
  ReleaseRest();
  return text_;
}

absl::string_view RequestOutput::Flush() {
  text_.clear();
  ReleaseRest();
  return text_;
}

void RequestOutput::Release(std::string text) {
  if (!stop_strings_ || num_tokens_ <= min_tokens_) {
    text_.append(text);
    return;
  }
  text_.append(stop_strings_->Append(text).text);
}

void RequestOutput::ReleaseRest() {
  if (!detokenizer_) return;
  Release(detokenizer_->Flush());
  if (stop_strings_ && !stop_strings_->stopped()) {
    text_.append(stop_strings_->Flush());
  }
}

}  // namespace switchyard
