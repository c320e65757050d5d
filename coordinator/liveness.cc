#include "coordinator/liveness.h"

#include <algorithm>
#include <utility>

namespace switchyard {

LivenessMonitor::LivenessMonitor(absl::Duration timeout,
                                 std::function<absl::Duration()> overdue,
                                 std::function<void(bool)> on_change)
    : timeout_(timeout),
      overdue_(std::move(overdue)),
      on_change_(std::move(on_change)),
      thread_([this] { Watch(); }) {}

LivenessMonitor::~LivenessMonitor() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
  }
  thread_.join();
}

void LivenessMonitor::Watch() {
  const absl::Duration interval = std::min(timeout_ / 8, absl::Seconds(1));
  bool alive = true;
  while (true) {
    {
      absl::MutexLock lock(&mutex_);
      if (mutex_.AwaitWithTimeout(absl::Condition(&stopping_), interval))
        return;
    }
    const bool moves = overdue_() <= timeout_;
    if (moves == alive) continue;
    alive = moves;
    on_change_(alive);
  }
}

}  // namespace switchyard
