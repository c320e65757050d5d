// Whether a loop still moves, as seen from other threads.
#ifndef SWITCHYARD_COORDINATOR_HEARTBEAT_H_
#define SWITCHYARD_COORDINATOR_HEARTBEAT_H_

#include <atomic>
#include <chrono>
#include <cstdint>

#include "absl/time/time.h"

namespace switchyard {

// Thread-safe. The loop beats whenever it comes round with work to do, and
// rests while it has none: then nothing is overdue, however long it lasts.
class Heartbeat {
 public:
  void Beat() { last_.store(Now(), std::memory_order_relaxed); }
  void Rest() { last_.store(kResting, std::memory_order_relaxed); }

  // Since the last beat; zero while resting.
  absl::Duration overdue() const {
    const int64_t last = last_.load(std::memory_order_relaxed);
    return last == kResting ? absl::ZeroDuration()
                            : absl::Nanoseconds(Now() - last);
  }

 private:
  static constexpr int64_t kResting = -1;

  static int64_t Now() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }

  std::atomic<int64_t> last_{kResting};
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_HEARTBEAT_H_
