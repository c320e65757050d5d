// What tests of the engine and of its services serve: a supernet that no
// weights belong to, with a tokenizer small enough to read.
#ifndef SWITCHYARD_TESTS_COORDINATOR_MADE_UP_MODEL_H_
#define SWITCHYARD_TESTS_COORDINATOR_MADE_UP_MODEL_H_

#include <cstdint>
#include <vector>

#include "coordinator/served_model.h"
#include "switchyard/v1/generation.pb.h"
#include "tests/coordinator/supernet.h"
#include "tests/coordinator/tiny_tokenizer.h"

namespace switchyard {

inline ServedModel MakeMadeUpModel(int num_layers,
                                   uint32_t max_context_tokens) {
  ServedModel model;
  model.name = "made-up";
  model.config = MakeSupernet(num_layers);
  model.config.vocab_size = kTinyVocabSize;
  model.config.eos_token_ids = {kTinyEos};
  model.tokenizer = Tokenizer::FromJson(TinyTokenizerJson().dump()).value();
  model.max_context_tokens = max_context_tokens;
  return model;
}

// For exactly `max_tokens` tokens: the fake workers may sample an EOS.
inline v1::GenerateRequest MakeRequest(const std::vector<uint32_t>& prompt,
                                       uint32_t max_tokens) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->mutable_ids()->Add(prompt.begin(), prompt.end());
  request.mutable_sampling()->set_max_tokens(max_tokens);
  request.mutable_sampling()->set_ignore_eos(true);
  return request;
}

}  // namespace switchyard

#endif  // SWITCHYARD_TESTS_COORDINATOR_MADE_UP_MODEL_H_
