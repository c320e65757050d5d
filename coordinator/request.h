// A request on its way from a client to the engine, and the way its tokens come
// back.
#ifndef SWITCHYARD_COORDINATOR_REQUEST_H_
#define SWITCHYARD_COORDINATOR_REQUEST_H_

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "coordinator/served_model.h"
#include "switchyard/v1/generation.pb.h"

namespace switchyard {

// A request whose every field has been checked, except its placement, which the
// engine resolves.
struct EngineRequest {
  std::string request_id;                  // not empty
  std::vector<uint32_t> prompt_token_ids;  // [1 .. max_context_tokens - 1]
  v1::SamplingParams sampling;             // as ResolveSamplingParams leaves it
  std::optional<v1::Placement> placement;  // unset: the default placement
  std::chrono::steady_clock::time_point received =
      std::chrono::steady_clock::now();
};

// What a step adds to a stream.
struct TokenDelta {
  absl::Span<const uint32_t> token_ids;  // may be empty: text alone
  absl::string_view text;                // whole characters; may be empty
  // [token_ids.size()], when asked for, else null. The receiver may take the
  // contents away.
  v1::TokenLogprobs* logprobs = nullptr;
};

// Where a request's events go. The engine calls it from one thread at a time,
// in this order: OnAdmitted at most once, OnTokens any number of times after
// it, and then exactly one of OnComplete and OnError. Until that last call
// returns the sink must stay alive; from then on the engine does not know it
// any more. No call may block: the step loop waits for it.
class RequestSink {
 public:
  virtual ~RequestSink() = default;

  // The request has its place and its first cache; it no longer waits.
  virtual void OnAdmitted() = 0;
  virtual void OnTokens(const TokenDelta& delta) = 0;
  virtual void OnComplete(v1::GenerateComplete complete) = 0;
  virtual void OnError(const absl::Status& status) = 0;
};

inline constexpr size_t kMaxRequestIdBytes = 256;

// Checks a request against the model and tokenizes its prompt; any thread.
// `assigned_id` and `random_seed` serve a request that brings none.
// InvalidArgument names the field as the client wrote it; Unimplemented names a
// feature that needs the tokenizer which this model lacks.
absl::StatusOr<EngineRequest> ParseGenerateRequest(
    const v1::GenerateRequest& request, const ServedModel& model,
    absl::string_view assigned_id, uint64_t random_seed);

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_REQUEST_H_
