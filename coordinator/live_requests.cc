#include "coordinator/live_requests.h"

#include <utility>

#include "kernels/check.h"

namespace switchyard {

LiveRequest* LiveRequests::Insert(std::unique_ptr<LiveRequest> request) {
  SY_CHECK(ids_.insert(request->request_id).second);
  LiveRequest* inserted = request.get();
  by_handle_.emplace(inserted->handle, std::move(request));
  return inserted;
}

void LiveRequests::Bind(LiveRequest* request, uint64_t sequence_id) {
  SY_CHECK(request->sequence_id == 0 && sequence_id != 0);
  request->sequence_id = sequence_id;
  by_sequence_.emplace(sequence_id, request);
  if (request->on_default) ++num_bound_on_default_;
}

void LiveRequests::Erase(LiveRequest* request) {
  if (request->sequence_id != 0) {
    by_sequence_.erase(request->sequence_id);
    if (request->on_default) --num_bound_on_default_;
  }
  ids_.erase(request->request_id);
  by_handle_.erase(request->handle);
}

LiveRequest* LiveRequests::ByHandle(uint64_t handle) const {
  const auto it = by_handle_.find(handle);
  return it == by_handle_.end() ? nullptr : it->second.get();
}

LiveRequest* LiveRequests::BySequence(uint64_t sequence_id) const {
  const auto it = by_sequence_.find(sequence_id);
  return it == by_sequence_.end() ? nullptr : it->second;
}

std::vector<LiveRequest*> LiveRequests::All() const {
  std::vector<LiveRequest*> all;
  all.reserve(by_handle_.size());
  for (const auto& [handle, request] : by_handle_) all.push_back(request.get());
  return all;
}

}  // namespace switchyard
