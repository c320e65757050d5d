#include "coordinator/request_lane.h"

#include <gtest/gtest.h>

#include <memory>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"

namespace switchyard {
namespace {

TEST(RequestLaneTest, RunsInOrderOnAThreadOfItsOwn) {
  std::vector<int> order;
  std::thread::id thread;
  {
    RequestLane lane(1000);
    for (int i = 0; i < 10; ++i) {
      EXPECT_TRUE(lane.Post(1, [&, i] {
        order.push_back(i);
        thread = std::this_thread::get_id();
      }));
    }
  }  // what waited has run
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}));
  EXPECT_NE(thread, std::this_thread::get_id());
}

TEST(RequestLaneTest, BoundsTheBytesThatWait) {
  absl::Notification begun;
  absl::Notification go_on;
  int num_run = 0;
  {
    RequestLane lane(100);
    ASSERT_TRUE(lane.Post(1000, [&] {  // more than the bound, but alone
      begun.Notify();
      go_on.WaitForNotification();
    }));
    begun.WaitForNotification();
    const auto count = [&num_run] { ++num_run; };
    EXPECT_TRUE(lane.Post(60, count));
    EXPECT_FALSE(lane.Post(60, count));
    EXPECT_TRUE(lane.Post(40, count));
    EXPECT_FALSE(lane.Post(1, count));
    go_on.Notify();
  }
  EXPECT_EQ(num_run, 2);
}

}  // namespace
}  // namespace switchyard
