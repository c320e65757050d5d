// A group of workers that run no model, for the tests of the worker group.
#ifndef SWITCHYARD_TESTS_COORDINATOR_WORKER_GROUP_FIXTURE_H_
#define SWITCHYARD_TESTS_COORDINATOR_WORKER_GROUP_FIXTURE_H_

#include <gtest/gtest.h>
#include <signal.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "coordinator/worker_group.h"
#include "tests/worker/fake_step_executor.h"
#include "worker/worker_service.h"

namespace switchyard {

inline constexpr absl::Duration kSoon = absl::Seconds(20);

inline v1::StepPlan Plan(uint64_t step_id) {
  v1::StepPlan plan;
  plan.set_step_id(step_id);
  plan.add_batch()->set_sequence_id(step_id * 10);
  return plan;
}

// Lost for the reason given, for every later call.
inline void ExpectLost(StepRunner& group,
                       const std::vector<std::string>& words) {
  const absl::Status status = group.health();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  for (const std::string& word : words)
    EXPECT_TRUE(absl::StrContains(status.message(), word)) << status;
  EXPECT_EQ(group.Submit(Plan(99)), status);
  EXPECT_EQ(group.PreparePlacement(1, {}), status);
  EXPECT_EQ(group.CommitPlacement(1), status);
  EXPECT_EQ(group.AbortPlacement(1), status);
}

// Workers in this process.
class WorkerGroupTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { signal(SIGPIPE, SIG_IGN); }

  void StartWorkers(int world_size) {
    for (int r = 0; r < world_size; ++r)
      fakes_.push_back(std::make_unique<FakeRank>());
    for (int r = 0; r < world_size; ++r) StartWorker(r);
    options_.configure.set_config_fingerprint(42);
  }

  std::unique_ptr<WorkerService> MakeWorker(int rank, int port) {
    WorkerServiceOptions options;
    options.port = port;
    auto service =
        WorkerService::Start(FakeBackend(*fakes_[rank]), options, nullptr);
    EXPECT_TRUE(service.ok()) << service.status();
    return service.ok() ? *std::move(service) : nullptr;
  }

  void StartWorker(int rank) {
    std::unique_ptr<WorkerService> service = MakeWorker(rank, 0);
    ASSERT_NE(service, nullptr);
    options_.addresses.push_back(absl::StrCat("127.0.0.1:", service->port()));
    workers_.push_back(std::move(service));
  }

  void StartGroup(int world_size) {
    StartWorkers(world_size);
    JoinGroup();
  }

  // Of the workers that run.
  void JoinGroup() {
    auto group = WorkerGroup::Start(options_);
    ASSERT_TRUE(group.ok()) << group.status();
    group_ = *std::move(group);
    group_->SetFailureCallback([this](const absl::Status& why) {
      failure_ = why;
      failed_.Notify();
    });
  }

  void RunStep(uint64_t step_id) {
    ASSERT_TRUE(group_->Submit(Plan(step_id)).ok());
    const absl::StatusOr<StepOutcome> outcome = group_->NextResult();
    ASSERT_TRUE(outcome.ok()) << outcome.status();
    EXPECT_EQ(outcome->result.step_id(), step_id);
  }

  // What the failure callback was told.
  absl::Status Failure() {
    EXPECT_TRUE(failed_.WaitForNotificationWithTimeout(kSoon));
    return failure_;
  }

  std::vector<std::unique_ptr<FakeRank>> fakes_;
  std::vector<std::unique_ptr<WorkerService>> workers_;
  WorkerGroupOptions options_;
  absl::Status failure_;
  absl::Notification failed_;
  std::unique_ptr<WorkerGroup> group_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_TESTS_COORDINATOR_WORKER_GROUP_FIXTURE_H_
