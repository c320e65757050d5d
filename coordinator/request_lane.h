// The thread that reads long requests.
#ifndef SWITCHYARD_COORDINATOR_REQUEST_LANE_H_
#define SWITCHYARD_COORDINATOR_REQUEST_LANE_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace switchyard {

// gRPC has few threads for its callbacks, and they write every stream and
// answer every call: a text of some megabytes, which takes a second to
// tokenize, must not be tokenized on one of them. Tasks of the lane run one
// after the other, in the order they came, on its own thread.
//
// Thread-safe.
class RequestLane {
 public:
  // What waits is bounded by the bytes of its requests.
  explicit RequestLane(int64_t max_waiting_bytes);
  // Runs what waits. Nothing may be posted any more.
  ~RequestLane();
  RequestLane(const RequestLane&) = delete;
  RequestLane& operator=(const RequestLane&) = delete;

  // False if `num_bytes` more than wait already would exceed the bound; the
  // task is not run then. A lane in which nothing waits takes any task.
  bool Post(int64_t num_bytes, std::function<void()> task)
      ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  struct Task {
    int64_t num_bytes;
    std::function<void()> run;
  };

  void Run() ABSL_LOCKS_EXCLUDED(mutex_);

  const int64_t max_waiting_bytes_;
  absl::Mutex mutex_;
  std::deque<Task> waiting_ ABSL_GUARDED_BY(mutex_);
  int64_t waiting_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_REQUEST_LANE_H_
