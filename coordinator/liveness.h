// Whether the step loop makes progress, watched from outside of it.
#ifndef SWITCHYARD_COORDINATOR_LIVENESS_H_
#define SWITCHYARD_COORDINATOR_LIVENESS_H_

#include <functional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace switchyard {

// Progress, not load: a loop with a long queue is alive as long as its steps
// end, an idle one always, and one whose step does not come back is not,
// whatever the reason. It is alive again when it goes on.
class LivenessMonitor {
 public:
  // Asks `overdue` several times within each `timeout`, on a thread of its own,
  // and calls `on_change` there: with false once a step has taken longer than
  // that, with true when the loop has moved on.
  LivenessMonitor(absl::Duration timeout,
                  std::function<absl::Duration()> overdue,
                  std::function<void(bool alive)> on_change);
  ~LivenessMonitor();  // no call is made after it
  LivenessMonitor(const LivenessMonitor&) = delete;
  LivenessMonitor& operator=(const LivenessMonitor&) = delete;

 private:
  void Watch();

  const absl::Duration timeout_;
  const std::function<absl::Duration()> overdue_;
  const std::function<void(bool)> on_change_;
  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_LIVENESS_H_
