#include "worker/collective.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/synchronization/notification.h"
#include "worker/gloo_collective.h"
#include "worker/rendezvous.h"
#include "worker/sockets.h"

// Gloo forgets a getaddrinfo result of 64 bytes when an address does not bind.
extern "C" const char* __lsan_default_suppressions() {
  return "leak:gloo::transport::tcp::CreateDeviceAttr\n";
}

namespace switchyard {
namespace {

using Group = std::vector<std::unique_ptr<Collective>>;

void OnEveryRank(int world_size, const std::function<void(int)>& body) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world_size; ++rank)
    threads.emplace_back(body, rank);
  for (std::thread& thread : threads) thread.join();
}

Group Connect(int world_size,
              absl::Duration operation_timeout = absl::Seconds(30)) {
  std::signal(SIGPIPE, SIG_IGN);  // as every process of ranks does
  RendezvousTable table;
  Group group(world_size);
  OnEveryRank(world_size, [&](int rank) {
    CollectiveOptions options;
    options.rank = rank;
    options.world_size = world_size;
    options.operation_timeout = operation_timeout;
    absl::StatusOr<std::unique_ptr<Collective>> collective =
        MakeGlooCollective(options, table);
    ASSERT_TRUE(collective.ok()) << collective.status();
    group[rank] = *std::move(collective);
  });
  return group;
}

std::vector<std::vector<float>> RandomAddends(int world_size, int64_t size) {
  std::mt19937 bits(static_cast<uint32_t>(size * 8 + world_size));
  std::normal_distribution<float> normal(0, 100);
  std::vector<std::vector<float>> addends(world_size);
  for (std::vector<float>& addend : addends) {
    addend.resize(size);
    for (float& x : addend) x = normal(bits);
  }
  return addends;
}

TEST(LocalCollective, IsTheIdentity) {
  const std::unique_ptr<Collective> local = MakeLocalCollective();
  EXPECT_EQ(local->rank(), 0);
  EXPECT_EQ(local->world_size(), 1);
  std::vector<float> data = {1, 2, 3}, gathered(3);
  EXPECT_TRUE(
      local->AllReduceSum(data.data(), 3, CollectiveType::kFloat32, nullptr)
          .ok());
  EXPECT_TRUE(local
                  ->AllGather(data.data(), gathered.data(), 3,
                              CollectiveType::kFloat32, nullptr)
                  .ok());
  EXPECT_EQ(gathered, (std::vector<float>{1, 2, 3}));
  EXPECT_TRUE(local->Barrier().ok());
  local->Abort();
  EXPECT_TRUE(absl::IsAborted(local->Barrier()));
}

class GlooCollectiveTest : public testing::TestWithParam<int> {};

// Every rank holds the sum in rank order, to the bit, whatever the size.
TEST_P(GlooCollectiveTest, SumsInRankOrder) {
  const int world_size = GetParam();
  const Group group = Connect(world_size);
  for (int64_t size : {0, 1, 2, 3, 5, 1000, 8191, 8192, 8193, 16384, 16385,
                       65537, 262144, 1048583}) {
    const auto addends = RandomAddends(world_size, size);
    std::vector<float> expected = addends[0];
    for (int rank = 1; rank < world_size; ++rank)
      for (int64_t i = 0; i < size; ++i) expected[i] += addends[rank][i];
    OnEveryRank(world_size, [&](int rank) {
      std::vector<float> data = addends[rank];
      const absl::Status status = group[rank]->AllReduceSum(
          data.data(), size, CollectiveType::kFloat32, nullptr);
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_TRUE(size == 0 || std::memcmp(data.data(), expected.data(),
                                           size * sizeof(float)) == 0)
          << "rank " << rank << ", " << size << " elements";
    });
  }
  EXPECT_GT(group[0]->time_spent(), absl::ZeroDuration());
}

TEST_P(GlooCollectiveTest, GathersInRankOrder) {
  const int world_size = GetParam();
  const Group group = Connect(world_size);
  for (int64_t size : {1, 7, 16384, 100001}) {
    const auto inputs = RandomAddends(world_size, size);
    std::vector<float> expected;
    for (const auto& input : inputs)
      expected.insert(expected.end(), input.begin(), input.end());
    for (bool in_place : {false, true}) {
      OnEveryRank(world_size, [&](int rank) {
        std::vector<float> output(world_size * size);
        const float* input = inputs[rank].data();
        if (in_place) {
          std::copy_n(input, size, output.data() + rank * size);
          input = output.data() + rank * size;
        }
        const absl::Status status = group[rank]->AllGather(
            input, output.data(), size, CollectiveType::kFloat32, nullptr);
        ASSERT_TRUE(status.ok()) << status;
        EXPECT_EQ(output, expected) << "rank " << rank;
      });
    }
  }
}

// No rank passes the barrier before the last has reached it.
TEST_P(GlooCollectiveTest, BarrierWaitsForAll) {
  const int world_size = GetParam();
  const Group group = Connect(world_size);
  std::atomic<int> arrived{0};
  OnEveryRank(world_size, [&](int rank) {
    for (int round = 1; round <= 20; ++round) {
      ++arrived;
      ASSERT_TRUE(group[rank]->Barrier().ok());
      EXPECT_GE(arrived, round * world_size);
    }
  });
}

TEST_P(GlooCollectiveTest, AVanishedPeerFailsTheOthersAtOnce) {
  const int world_size = GetParam();
  Group group = Connect(world_size);
  const int vanishing = world_size - 1;
  OnEveryRank(world_size, [&](int rank) {
    if (rank == vanishing) {
      group[rank].reset();
      return;
    }
    std::vector<float> data(100000, 1.0f);
    const absl::Time start = absl::Now();
    absl::Status status;
    for (int i = 0; i < 4 && status.ok(); ++i) {
      status = group[rank]->AllReduceSum(data.data(), data.size(),
                                         CollectiveType::kFloat32, nullptr);
    }
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_LT(absl::Now() - start, absl::Seconds(5));
    EXPECT_EQ(group[rank]->Barrier(), status) << "failures are final";
    group[rank]->Abort();  // as the worker does: its peers learn of it
  });
}

TEST_P(GlooCollectiveTest, AbortWakesAPendingOperation) {
  const int world_size = GetParam();
  const Group group = Connect(world_size);
  absl::Notification entering;
  std::thread blocked([&] {
    entering.Notify();
    const absl::Status status = group[0]->Barrier();
    EXPECT_TRUE(absl::IsAborted(status)) << status;
  });
  entering.WaitForNotification();
  group[0]->Abort();
  group[0]->Abort();
  blocked.join();
  OnEveryRank(GetParam(), [&](int rank) {
    if (rank == 0) return;
    absl::Status status = group[rank]->Barrier();
    if (status.ok()) status = group[rank]->Barrier();  // rank 0 sent for one
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    group[rank]->Abort();
  });
}

TEST_P(GlooCollectiveTest, ASilentPeerMissesTheDeadline) {
  const Group group = Connect(GetParam(), absl::Seconds(2));
  const absl::Status status = group[0]->Barrier();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "rank 1")) << status;
}

INSTANTIATE_TEST_SUITE_P(WorldSizes, GlooCollectiveTest, testing::Values(2, 4));

TEST(MakeGlooCollective, FailsWhenAPeerNeverComes) {
  RendezvousTable table;
  CollectiveOptions options;
  options.world_size = 2;
  options.connect_timeout = absl::Milliseconds(200);
  const absl::Status status = MakeGlooCollective(options, table).status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
}

TEST(MakeGlooCollective, EndsWhenTheRendezvousIsCancelled) {
  RendezvousTable table;
  CollectiveOptions options;
  options.world_size = 2;
  options.rank = 1;
  std::thread connecting([&] {
    const absl::Status status = MakeGlooCollective(options, table).status();
    EXPECT_TRUE(absl::IsCancelled(status)) << status;
  });
  table.Cancel();
  connecting.join();
}

TEST(MakeGlooCollective, RefusesAnAddressThatIsNotLocal) {
  RendezvousTable table;
  CollectiveOptions options;
  options.world_size = 2;
  options.local_host = "203.0.113.7";  // TEST-NET-3: nobody's
  const absl::Status status = MakeGlooCollective(options, table).status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "203.0.113.7")) << status;
}

TEST(LocalHostTowards, FindsTheInterface) {
  EXPECT_EQ(LocalHostTowards("127.0.0.1:80").value(), "127.0.0.1");
  EXPECT_EQ(LocalHostTowards("127.0.0.1").value(), "127.0.0.1");
  const absl::Status status =
      LocalHostTowards("no-such-host.invalid:80").status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "no-such-host.invalid"));
}

TEST(RendezvousTable, HoldsWhatItIsGivenOnce) {
  RendezvousTable table;
  EXPECT_TRUE(table.Put("a", "1").ok());
  EXPECT_TRUE(table.Put("a", "1").ok());
  EXPECT_TRUE(absl::IsAlreadyExists(table.Put("a", "2")));
  EXPECT_EQ(table.Get("a", absl::ZeroDuration()).value(), "1");
  EXPECT_TRUE(
      absl::IsDeadlineExceeded(table.Get("b", absl::Milliseconds(1)).status()));
  const std::string large(RendezvousTable::kMaxValueBytes + 1, 'x');
  EXPECT_TRUE(absl::IsResourceExhausted(table.Put("large", large)));
}

TEST(RendezvousTable, CallsWaitersOnce) {
  RendezvousTable table;
  std::vector<std::string> calls;
  const auto record = [&](const std::string& who) {
    return [&calls, who](absl::StatusOr<std::string> value) {
      calls.push_back(who + (value.ok() ? "=" + *value : "!"));
    };
  };
  table.GetAsync("a", record("first"));
  const uint64_t forgotten = table.GetAsync("a", record("forgotten"));
  table.GetAsync("b", record("never set"));
  table.Forget(forgotten);
  EXPECT_TRUE(table.Put("a", "1").ok());
  table.GetAsync("a", record("late"));
  table.Forget(forgotten);
  table.Cancel();
  EXPECT_EQ(calls, (std::vector<std::string>{"forgotten!", "first=1", "late=1",
                                             "never set!"}));
}

}  // namespace
}  // namespace switchyard
