// Vocabulary-parallel embedding lookup.
#ifndef SWITCHYARD_KERNELS_EMBEDDING_H_
#define SWITCHYARD_KERNELS_EMBEDDING_H_

#include "absl/status/status.h"
#include "kernels/op_context.h"
#include "kernels/tensor.h"

namespace switchyard {

struct EmbeddingArgs {
  const int32_t* token_ids = nullptr;  // [num_tokens]
  MatrixView table;         // [vocab_local, hidden], fp32, bf16 or fp16
  int32_t vocab_begin = 0;  // the token id of the table's first row
  // [num_tokens, hidden] fp32; zero where the table does not have the id.
  MatrixView out;
};

// out[i] = table[token_ids[i] - vocab_begin], or 0: the sum over ranks is the
// embedding. Of an id that no rank has (kNoToken in sampling.h, which a step
// may find in place of a token) it is zero.
absl::Status Embedding(const OpContext& context, const EmbeddingArgs& args);

}  // namespace switchyard

#endif  // SWITCHYARD_KERNELS_EMBEDDING_H_
