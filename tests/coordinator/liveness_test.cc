#include "coordinator/liveness.h"

#include <gtest/gtest.h>

#include <atomic>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "coordinator/heartbeat.h"

namespace switchyard {
namespace {

TEST(HeartbeatTest, NothingIsOverdueAtRest) {
  Heartbeat heartbeat;
  EXPECT_EQ(heartbeat.overdue(), absl::ZeroDuration());
  heartbeat.Beat();
  while (heartbeat.overdue() < absl::Milliseconds(2)) {
  }
  heartbeat.Rest();
  EXPECT_EQ(heartbeat.overdue(), absl::ZeroDuration());
}

TEST(LivenessMonitorTest, TellsEveryChangeOnce) {
  std::atomic<int> overdue_ms{0};
  absl::Mutex mutex;
  std::vector<bool> changes;
  LivenessMonitor monitor(
      absl::Milliseconds(100),
      [&] { return absl::Milliseconds(overdue_ms.load()); },
      [&](bool alive) {
        absl::MutexLock lock(&mutex);
        changes.push_back(alive);
      });
  const auto wait_for = [&](size_t count) {
    absl::MutexLock lock(&mutex);
    const auto there = [&] { return changes.size() >= count; };
    EXPECT_TRUE(
        mutex.AwaitWithTimeout(absl::Condition(&there), absl::Seconds(20)));
  };
  overdue_ms = 100;  // just in time
  overdue_ms = 101;
  wait_for(1);
  overdue_ms = 5;
  wait_for(2);
  overdue_ms = 1000;
  wait_for(3);
  absl::MutexLock lock(&mutex);
  EXPECT_EQ(changes, (std::vector<bool>{false, true, false}));
}

}  // namespace
}  // namespace switchyard
