#include "coordinator/stop_requests.h"

#include <cstdlib>

#include "log/log.h"

namespace switchyard {

StopRequests::StopRequests() : signals_([this](int count) { Signal(count); }) {}

void StopRequests::Signal(int count) {
  absl::MutexLock lock(&mutex_);
  if (!serving_) {
    Log(LogLevel::kInfo, "told to stop before it served");
    FlushLog();
    std::_Exit(0);
  }
  num_signals_ = count;
}

void StopRequests::Serving() {
  absl::MutexLock lock(&mutex_);
  serving_ = true;
}

void StopRequests::Lost() {
  absl::MutexLock lock(&mutex_);
  lost_ = true;
}

void StopRequests::Idle() {
  absl::MutexLock lock(&mutex_);
  idle_ = true;
}

bool StopRequests::is_lost() const {
  absl::MutexLock lock(&mutex_);
  return lost_;
}

void StopRequests::WaitForSignalOrLoss() {
  absl::MutexLock lock(&mutex_);
  const auto told = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return num_signals_ > 0 || lost_;
  };
  mutex_.Await(absl::Condition(&told));
}

bool StopRequests::WaitUntilIdle(absl::Duration patience) {
  absl::MutexLock lock(&mutex_);
  const auto over = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return idle_ || num_signals_ > 1;
  };
  mutex_.AwaitWithTimeout(absl::Condition(&over), patience);
  return idle_;
}

}  // namespace switchyard
