// What the coordinator knows of the model it serves.
#ifndef SWITCHYARD_COORDINATOR_SERVED_MODEL_H_
#define SWITCHYARD_COORDINATOR_SERVED_MODEL_H_

#include <cstdint>
#include <memory>
#include <string>

#include "coordinator/sampling_params.h"
#include "coordinator/tokenizer.h"
#include "model/config.h"

namespace switchyard {

// Immutable once serving begins, hence thread-safe.
struct ServedModel {
  std::string name;  // the checkpoint directory's name
  ModelConfig config;
  std::unique_ptr<const Tokenizer> tokenizer;  // null: token ids only
  uint32_t max_context_tokens = 0;             // prompt and completion together
  RequestLimits limits;                        // of one request
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_SERVED_MODEL_H_
