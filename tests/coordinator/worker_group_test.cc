#include "coordinator/worker_group.h"

#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "tests/coordinator/worker_group_fixture.h"

namespace switchyard {
namespace {

class WorldSizeTest : public WorkerGroupTest,
                      public testing::WithParamInterface<int> {};

TEST_P(WorldSizeTest, RunsSteps) {
  const int world_size = GetParam();
  StartGroup(world_size);
  const uint32_t sum = world_size * (world_size + 1) / 2;
  ASSERT_TRUE(group_->Submit(Plan(1)).ok());
  for (uint64_t id = 1; id <= 200; ++id) {
    ASSERT_TRUE(group_->Submit(Plan(id + 1)).ok());  // two in flight
    const absl::StatusOr<StepOutcome> outcome = group_->NextResult();
    ASSERT_TRUE(outcome.ok()) << outcome.status();
    EXPECT_EQ(outcome->result.step_id(), id);
    ASSERT_EQ(outcome->result.tokens_size(), 1);
    EXPECT_EQ(outcome->result.tokens(0).sequence_id(), id * 10);
    EXPECT_EQ(outcome->result.tokens(0).token_id(), sum);
    EXPECT_GT(outcome->execute_time, absl::ZeroDuration());
    EXPECT_GE(outcome->round_trip, outcome->execute_time);
  }
  ASSERT_TRUE(group_->NextResult().ok());
  group_->Shutdown();
  for (auto& worker : workers_)
    EXPECT_TRUE(worker->session().outcome().value().ok());
  EXPECT_FALSE(failed_.HasBeenNotified());
  ExpectLost(*group_, {"shutting down"});
  EXPECT_TRUE(group_->health().GetPayload(kShutDownPayload).has_value());
}

INSTANTIATE_TEST_SUITE_P(WorldSizes, WorldSizeTest, testing::Values(1, 2, 4));

TEST_F(WorkerGroupTest, TakesTheCacheThatEveryRankHas) {
  StartWorkers(2);
  fakes_[1]->available_cache_bytes = 10000;
  auto group = WorkerGroup::Start(options_);
  ASSERT_TRUE(group.ok()) << group.status();
  EXPECT_EQ((*group)->facts().cache_bytes, 9984) << "whole units of 256";
  EXPECT_EQ((*group)->facts().kv_element_bytes, 4);
  ASSERT_EQ((*group)->facts().ranks.size(), 2);
  EXPECT_EQ((*group)->facts().ranks[1].address, options_.addresses[1]);
  EXPECT_EQ((*group)->facts().ranks[1].device, "fake");
  for (auto& fake : fakes_) {
    absl::MutexLock lock(&fake->mutex);
    EXPECT_EQ(fake->arena_bytes, 9984);
  }
}

TEST_F(WorkerGroupTest, RefusesACacheThatDoesNotFit) {
  StartWorkers(2);
  fakes_[1]->available_cache_bytes = 10000;
  options_.cache_bytes = 20000;
  const absl::Status status = WorkerGroup::Start(options_).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), options_.addresses[1]));
  // The failed start leaves no worker configured.
  for (auto& worker : workers_)
    EXPECT_TRUE(worker->session().outcome().value().ok());
}

TEST_F(WorkerGroupTest, RefusesRanksThatDisagree) {
  StartWorkers(2);
  fakes_[1]->kv_element_bytes = 2;
  const absl::Status status = WorkerGroup::Start(options_).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "rank 1 at"));
}

TEST_F(WorkerGroupTest, NamesTheRankThatReadsAnotherModel) {
  StartWorkers(2);
  fakes_[1]->fingerprint = 43;
  const absl::Status status = WorkerGroup::Start(options_).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_TRUE(absl::StrContains(
      status.message(), absl::StrCat("rank 1 at ", options_.addresses[1])));
  EXPECT_TRUE(absl::StrContains(status.message(), "config_fingerprint"));
}

TEST_F(WorkerGroupTest, NamesTheWorkerThatIsNotThere) {
  StartWorkers(2);
  workers_[1].reset();
  options_.connect_timeout = absl::Milliseconds(300);
  const absl::Status status = WorkerGroup::Start(options_).status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_TRUE(absl::StrContains(
      status.message(), absl::StrCat("rank 1 at ", options_.addresses[1])));
  EXPECT_FALSE(absl::StrContains(status.message(), "rank 0"));
  EXPECT_FALSE(workers_[0]->session().outcome().has_value()) << "still idle";
}

TEST_F(WorkerGroupTest, RefusesMeaninglessAddresses) {
  EXPECT_TRUE(absl::IsInvalidArgument(WorkerGroup::Start(options_).status()));
  options_.addresses = {"127.0.0.1:1", "127.0.0.1:1"};
  EXPECT_TRUE(absl::IsInvalidArgument(WorkerGroup::Start(options_).status()));
}

TEST_F(WorkerGroupTest, LeavesAnotherCoordinatorsGroupAlone) {
  StartGroup(2);
  RunStep(1);
  options_.connect_timeout = absl::Milliseconds(300);
  const absl::Status status = WorkerGroup::Start(options_).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "another group"));
  EXPECT_TRUE(absl::StrContains(status.message(), options_.addresses[0]));
  EXPECT_TRUE(absl::StrContains(status.message(), options_.addresses[1]));
  RunStep(2);
}

// A coordinator that is restarted faster than its workers.
TEST_F(WorkerGroupTest, WaitsForWorkersThatLeaveAnEarlierGroup) {
  StartGroup(2);
  RunStep(1);
  options_.connect_timeout = kSoon;
  absl::Notification configured;
  absl::StatusOr<std::unique_ptr<WorkerGroup>> next;
  std::thread coordinator([&] {
    next = WorkerGroup::Start(options_);
    configured.Notify();
  });
  RunStep(2);
  EXPECT_FALSE(configured.HasBeenNotified());
  group_.reset();
  for (int rank = 0; rank < 2; ++rank) {
    const int port = workers_[rank]->port();
    workers_[rank].reset();  // its process ends, and is started again
    fakes_[rank] = std::make_unique<FakeRank>();
    workers_[rank] = MakeWorker(rank, port);
    ASSERT_NE(workers_[rank], nullptr);
  }
  coordinator.join();
  ASSERT_TRUE(next.ok()) << next.status();
  group_ = *std::move(next);
  RunStep(1);
}

TEST_F(WorkerGroupTest, ReportsProgress) {
  StartWorkers(2);
  absl::Notification seen;
  for (auto& fake : fakes_) {
    fake->on_load = [&](LoadProgress& progress) {
      progress.bytes_total = 100;
      progress.bytes_loaded = 50;
      seen.WaitForNotification();
      return absl::OkStatus();
    };
  }
  options_.on_progress = [&](uint64_t loaded, uint64_t total) {
    EXPECT_LE(loaded, total);
    if (loaded == 100 && total == 200 && !seen.HasBeenNotified()) seen.Notify();
  };
  EXPECT_TRUE(WorkerGroup::Start(options_).ok());
}

TEST_F(WorkerGroupTest, ARankThatFailsLosesTheGroup) {
  StartGroup(4);
  fakes_[2]->on_step = [](const v1::StepPlan& plan) {
    return plan.step_id() == 3 ? absl::InternalError("the kernel broke")
                               : absl::OkStatus();
  };
  RunStep(1);
  RunStep(2);
  ASSERT_TRUE(group_->Submit(Plan(3)).ok());
  EXPECT_FALSE(group_->NextResult().ok());
  EXPECT_EQ(Failure(), group_->health());
  ExpectLost(*group_,
             {"rank 2", options_.addresses[2], "step 3", "the kernel broke"});
  EXPECT_FALSE(group_->NextResult().ok());
  workers_.clear();  // none of them hangs
}

TEST_F(WorkerGroupTest, ARankThatVanishesLosesTheGroup) {
  StartGroup(2);
  RunStep(1);
  workers_[1].reset();  // idle: nobody waits for it
  const absl::Time start = absl::Now();
  EXPECT_TRUE(absl::IsUnavailable(Failure()));
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  ExpectLost(*group_, {"rank 1", options_.addresses[1], "step 1"});
}

TEST_F(WorkerGroupTest, ARankThatHangsMissesTheDeadline) {
  absl::Notification go_on;
  options_.step_timeout = absl::Milliseconds(500);
  StartGroup(2);
  fakes_[1]->on_step = [&](const v1::StepPlan& plan) {
    if (plan.step_id() == 2) go_on.WaitForNotification();
    return absl::OkStatus();
  };
  RunStep(1);
  ASSERT_TRUE(group_->Submit(Plan(2)).ok());
  EXPECT_FALSE(group_->NextResult().ok());
  ExpectLost(*group_, {"step 2", "deadline", options_.addresses[1]});
  go_on.Notify();
  workers_.clear();  // before go_on
}

TEST_F(WorkerGroupTest, ASilentRankIsBlamedForItsPeersWait) {
  absl::Notification go_on;
  StartGroup(4);
  for (int r = 0; r < 4; ++r) {
    fakes_[r]->on_step = [r, &go_on](const v1::StepPlan& plan) {
      if (plan.step_id() != 2) return absl::OkStatus();
      if (r == 2) {
        go_on.WaitForNotification();
        return absl::OkStatus();
      }
      return absl::DeadlineExceededError("waited 1s: a peer is silent");
    };
  }
  RunStep(1);
  ASSERT_TRUE(group_->Submit(Plan(2)).ok());
  EXPECT_FALSE(group_->NextResult().ok());
  ExpectLost(*group_, {"step 2", "waited 1s",
                       "no answer from rank 2 at " + options_.addresses[2]});
  EXPECT_EQ(group_->health().GetPayload(kLostRankPayload), absl::Cord("2"));
  go_on.Notify();
  workers_.clear();  // before go_on
}

TEST_F(WorkerGroupTest, CommitsAPlacementOnEveryRank) {
  StartGroup(2);
  EXPECT_TRUE(group_->PreparePlacement(5, {"attention", "gdn"}).ok());
  RunStep(1);  // steps go on in between
  EXPECT_TRUE(group_->CommitPlacement(5).ok());
  for (auto& fake : fakes_) {
    absl::MutexLock lock(&fake->mutex);
    EXPECT_EQ(fake->committed_epoch, 5);
  }
  RunStep(2);
}

TEST_F(WorkerGroupTest, ARefusedPlacementChangesNothing) {
  StartGroup(2);
  fakes_[1]->refused_mixer = "kda";
  const absl::Status status = group_->PreparePlacement(5, {"gdn", "kda"});
  EXPECT_TRUE(absl::IsAborted(status)) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "rank 1")) << status;
  EXPECT_TRUE(absl::StrContains(status.message(), "\"kda\"")) << status;
  for (auto& fake : fakes_) {
    absl::MutexLock lock(&fake->mutex);
    EXPECT_EQ(fake->prepared_epoch, 0);
    EXPECT_EQ(fake->committed_epoch, 0);
  }
  RunStep(1);
  EXPECT_TRUE(group_->PreparePlacement(6, {"gdn", "gdn"}).ok());
  EXPECT_TRUE(group_->AbortPlacement(6).ok());
  RunStep(2);
}

TEST_F(WorkerGroupTest, ACommitThatFailsLosesTheGroup) {
  StartGroup(2);
  EXPECT_FALSE(group_->CommitPlacement(5).ok()) << "nobody prepared it";
  ExpectLost(*group_, {"rank 0", "epoch 5"});
  EXPECT_EQ(Failure(), group_->health());
}

}  // namespace
}  // namespace switchyard
