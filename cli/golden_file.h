// Golden files: what a reference implementation said, to compare with.
//
// JSON: either {"cases": [{placement, prompt_ids, prompt_logprobs, greedy_ids,
// greedy_logprobs, min_margin, top5?, last_logits?}]} or {"prompt_ids": [[..]],
// "runs": [{placement, tokens, logprobs, margins}]}. `placement` is a list of
// mixer names, or null for a checkpoint without choices.
#ifndef SWITCHYARD_CLI_GOLDEN_FILE_H_
#define SWITCHYARD_CLI_GOLDEN_FILE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace switchyard {

struct GoldenCase {
  int32_t index = 0;                   // in its file, or prompt of its run
  std::vector<std::string> placement;  // empty: the model's own
  std::vector<uint32_t> prompt_ids;
  // Empty, or one per prompt token; [0] means nothing.
  std::vector<double> prompt_logprobs;
  std::vector<uint32_t> greedy_ids;
  std::vector<double> greedy_logprobs;  // [greedy_ids]
  std::vector<double> margins;          // [greedy_ids]
  // Empty, or [vocab] of the first generated token.
  std::vector<double> last_logprobs;
};

// NotFound, or InvalidArgument naming the file and the case.
absl::StatusOr<std::vector<GoldenCase>> LoadGoldenFile(const std::string& path);

}  // namespace switchyard

#endif  // SWITCHYARD_CLI_GOLDEN_FILE_H_
