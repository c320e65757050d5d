#include "coordinator/request_lane.h"

#include <utility>

namespace switchyard {

RequestLane::RequestLane(int64_t max_waiting_bytes)
    : max_waiting_bytes_(max_waiting_bytes), thread_([this] { Run(); }) {}

RequestLane::~RequestLane() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

bool RequestLane::Post(int64_t num_bytes, std::function<void()> task) {
  absl::MutexLock lock(&mutex_);
  if (!waiting_.empty() && waiting_bytes_ + num_bytes > max_waiting_bytes_) {
    return false;
  }
  waiting_.push_back({num_bytes, std::move(task)});
  waiting_bytes_ += num_bytes;
  return true;
}

void RequestLane::Run() {
  while (true) {
    Task task;
    {
      absl::MutexLock lock(&mutex_);
      mutex_.Await(absl::Condition(
          +[](RequestLane* lane) ABSL_NO_THREAD_SAFETY_ANALYSIS {
            return !lane->waiting_.empty() || lane->stopping_;
          },
          this));
      if (waiting_.empty()) return;
      task = std::move(waiting_.front());
      waiting_.pop_front();
      waiting_bytes_ -= task.num_bytes;
    }
    task.run();
  }
}

}  // namespace switchyard
