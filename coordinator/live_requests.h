// The requests in the engine's care, and what it knows of each beside its
// sequence.
#ifndef SWITCHYARD_COORDINATOR_LIVE_REQUESTS_H_
#define SWITCHYARD_COORDINATOR_LIVE_REQUESTS_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "coordinator/engine_observer.h"
#include "coordinator/request.h"
#include "coordinator/request_output.h"

namespace switchyard {

struct LiveRequest {
  LiveRequest(uint64_t handle, const EngineRequest& request, RequestSink* sink,
              const Tokenizer* tokenizer)
      : handle(handle),
        request_id(request.request_id),
        sink(sink),
        on_default(!request.placement.has_value()),
        wants_logprobs(request.sampling.has_logprobs()),
        output(tokenizer, request.sampling) {
    trace.request_id = request.request_id;
    trace.received = request.received;
    trace.num_prompt_tokens =
        static_cast<uint32_t>(request.prompt_token_ids.size());
  }

  const uint64_t handle;
  const std::string request_id;
  RequestSink* const sink;
  const bool on_default;  // it named no placement
  const bool wants_logprobs;
  RequestOutput output;
  RequestTrace trace;
  bool admitted = false;
  uint64_t sequence_id = 0;  // 0: the scheduler does not have it yet
  // Its request, while it is kept from the scheduler.
  std::optional<EngineRequest> held;
  // By prompt position, when asked for; a rebuilt prompt reports them again.
  std::vector<v1::TokenLogprobs> prompt_logprobs;
};

// Finds requests by handle (the order of arrival), sequence and request id.
// Owned and used by the engine's thread.
class LiveRequests {
 public:
  bool HasId(const std::string& request_id) const {
    return ids_.contains(request_id);
  }
  // The new request. REQUIRES: !HasId(its request_id).
  LiveRequest* Insert(std::unique_ptr<LiveRequest> request);
  // `request` is known by `sequence_id` from here on.
  void Bind(LiveRequest* request, uint64_t sequence_id);
  void Erase(LiveRequest* request);

  // Null if there is none.
  LiveRequest* ByHandle(uint64_t handle) const;
  LiveRequest* BySequence(uint64_t sequence_id) const;

  int64_t size() const { return static_cast<int64_t>(by_handle_.size()); }
  // Of those bound to a sequence, how many run on the default placement.
  int64_t num_bound_on_default() const { return num_bound_on_default_; }
  int64_t num_unbound() const {
    return size() - static_cast<int64_t>(by_sequence_.size());
  }

  // All of them, in the order of arrival. Valid until the next change.
  std::vector<LiveRequest*> All() const;

 private:
  absl::btree_map<uint64_t, std::unique_ptr<LiveRequest>> by_handle_;
  absl::flat_hash_map<uint64_t, LiveRequest*> by_sequence_;
  absl::flat_hash_set<std::string> ids_;
  int64_t num_bound_on_default_ = 0;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_LIVE_REQUESTS_H_
