#include "worker/worker_service.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "switchyard/v1/worker.grpc.pb.h"
#include "tests/worker/fake_step_executor.h"

namespace switchyard {
namespace {

constexpr absl::Duration kSoon = absl::Seconds(20);

class WorkerServiceTest : public testing::Test {
 protected:
  void StartWorker(WorkerServiceOptions options = {}) {
    auto service = WorkerService::Start(FakeBackend(rank_), options,
                                        [this] { over_.Notify(); });
    ASSERT_TRUE(service.ok()) << service.status();
    service_ = *std::move(service);
    channel_ = grpc::CreateChannel(absl::StrCat("127.0.0.1:", service_->port()),
                                   grpc::InsecureChannelCredentials());
    stub_ = v1::WorkerService::NewStub(channel_);
  }

  static v1::ConfigureRequest GoodRequest() {
    v1::ConfigureRequest request;
    request.set_world_size(1);
    request.set_config_fingerprint(42);
    return request;
  }

  grpc::Status Configure(const v1::ConfigureRequest& request) {
    grpc::ClientContext context;
    v1::ConfigureResponse response;
    return stub_->Configure(&context, request, &response);
  }

  grpc::Status AllocateCache() {
    grpc::ClientContext context;
    v1::AllocateCacheRequest request;
    request.set_arena_bytes(4096);
    v1::AllocateCacheResponse response;
    return stub_->AllocateCache(&context, request, &response);
  }

  v1::GetStatusResponse GetStatus() {
    grpc::ClientContext context;
    v1::GetStatusResponse response;
    EXPECT_TRUE(
        stub_->GetStatus(&context, v1::GetStatusRequest(), &response).ok());
    return response;
  }

  void MakeReady() {
    StartWorker();
    ASSERT_TRUE(Configure(GoodRequest()).ok());
    ASSERT_TRUE(AllocateCache().ok());
  }

  absl::Status Outcome() {
    EXPECT_TRUE(over_.WaitForNotificationWithTimeout(kSoon));
    return service_->session().outcome().value();
  }

  static v1::StepPlan Plan(uint64_t step_id) {
    v1::StepPlan plan;
    plan.set_step_id(step_id);
    plan.set_epoch(7);
    plan.add_batch()->set_sequence_id(100 + step_id);
    return plan;
  }

  FakeRank rank_;
  absl::Notification over_;
  std::unique_ptr<WorkerService> service_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::WorkerService::Stub> stub_;
};

TEST_F(WorkerServiceTest, RunsStepsInOrderWithSeveralInFlight) {
  MakeReady();
  grpc::ClientContext context;
  auto stream = stub_->Execute(&context);
  for (uint64_t id = 1; id <= 4; ++id) ASSERT_TRUE(stream->Write(Plan(id)));
  for (uint64_t id = 1; id <= 4; ++id) {
    v1::StepResult result;
    ASSERT_TRUE(stream->Read(&result));
    EXPECT_EQ(result.step_id(), id);
    EXPECT_EQ(result.code(), 0) << result.message();
    ASSERT_EQ(result.tokens_size(), 1);
    EXPECT_EQ(result.tokens(0).sequence_id(), 100 + id);
    EXPECT_EQ(result.tokens(0).token_id(), 1);
    EXPECT_GT(result.execute_ms(), 0);
  }
  EXPECT_EQ(GetStatus().last_step_id(), 4);
  EXPECT_EQ(GetStatus().epoch(), 7);
  EXPECT_EQ(GetStatus().phase(), v1::GetStatusResponse::PHASE_READY);

  grpc::ClientContext shutdown;
  v1::ShutdownResponse response;
  EXPECT_TRUE(
      stub_->Shutdown(&shutdown, v1::ShutdownRequest(), &response).ok());
  EXPECT_TRUE(Outcome().ok());
  v1::StepResult none;
  EXPECT_FALSE(stream->Read(&none));
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(WorkerServiceTest, RefusesMalformedRequestsAndStaysIdle) {
  StartWorker();
  v1::ConfigureRequest request = GoodRequest();
  request.set_world_size(0);
  grpc::Status status = Configure(request);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(absl::StrContains(status.error_message(), "world_size"));
  request.set_world_size(2);
  request.set_rank(2);
  status = Configure(request);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(absl::StrContains(status.error_message(), "rank"));
  request.set_rank(1);
  status = Configure(request);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(absl::StrContains(status.error_message(), "rendezvous_address"));
  EXPECT_EQ(GetStatus().phase(), v1::GetStatusResponse::PHASE_IDLE);
  EXPECT_TRUE(Configure(GoodRequest()).ok());
}

TEST_F(WorkerServiceTest, RefusesCallsOutOfTurn) {
  StartWorker();
  EXPECT_EQ(AllocateCache().error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
  grpc::ClientContext early;
  auto too_early = stub_->Execute(&early);
  v1::StepResult none;
  EXPECT_FALSE(too_early->Read(&none));
  EXPECT_EQ(too_early->Finish().error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
  grpc::ClientContext control;
  v1::CommitPlacementResponse response;
  EXPECT_EQ(
      stub_->CommitPlacement(&control, v1::CommitPlacementRequest(), &response)
          .error_code(),
      grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_TRUE(Configure(GoodRequest()).ok());
  EXPECT_TRUE(AllocateCache().ok());
}

TEST_F(WorkerServiceTest, ServesOneCoordinator) {
  MakeReady();
  grpc::ClientContext context;
  auto stream = stub_->Execute(&context);
  ASSERT_TRUE(stream->Write(Plan(1)));
  v1::StepResult result;
  ASSERT_TRUE(stream->Read(&result));

  EXPECT_EQ(Configure(GoodRequest()).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
  grpc::ClientContext second;
  auto intruder = stub_->Execute(&second);
  EXPECT_EQ(intruder->Finish().error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);

  ASSERT_TRUE(stream->Write(Plan(2)));
  ASSERT_TRUE(stream->Read(&result));
  EXPECT_EQ(result.code(), 0);
  EXPECT_FALSE(over_.HasBeenNotified());
}

TEST_F(WorkerServiceTest, AFailedStepIsReportedAndEndsTheGroup) {
  rank_.on_step = [](const v1::StepPlan& plan) {
    return plan.step_id() == 2 ? absl::InternalError("the kernel broke")
                               : absl::OkStatus();
  };
  MakeReady();
  grpc::ClientContext context;
  auto stream = stub_->Execute(&context);
  for (uint64_t id = 1; id <= 3; ++id) stream->Write(Plan(id));
  v1::StepResult result;
  ASSERT_TRUE(stream->Read(&result));
  EXPECT_EQ(result.code(), 0);
  ASSERT_TRUE(stream->Read(&result));
  EXPECT_EQ(result.step_id(), 2);
  EXPECT_EQ(result.code(), static_cast<int>(absl::StatusCode::kInternal));
  EXPECT_EQ(result.message(), "the kernel broke");
  while (stream->Read(&result)) EXPECT_NE(result.code(), 0);
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(absl::IsInternal(Outcome()));
  absl::MutexLock lock(&rank_.mutex);
  EXPECT_EQ(rank_.steps, std::vector<uint64_t>{1});
}

// The device of the fake is at work on the first step until the second one has
// been launched.
TEST_F(WorkerServiceTest, LaunchesTheNextStepWhileOneIsUnderWay) {
  std::atomic<int> most{0};
  rank_.is_ready = [&most](int num_steps) {
    if (num_steps > most) most = num_steps;
    return most == 2;
  };
  MakeReady();
  grpc::ClientContext context;
  auto stream = stub_->Execute(&context);
  for (uint64_t id = 1; id <= 4; ++id) ASSERT_TRUE(stream->Write(Plan(id)));
  v1::StepResult result;
  for (uint64_t id = 1; id <= 4; ++id) {
    ASSERT_TRUE(stream->Read(&result));
    EXPECT_EQ(result.step_id(), id);
    EXPECT_EQ(result.code(), 0);
    ASSERT_EQ(result.tokens_size(), 1);
    EXPECT_EQ(result.tokens(0).sequence_id(), 100 + id);
  }
  EXPECT_EQ(most, 2);
}

// A step that never ends does not keep the session from ending.
TEST_F(WorkerServiceTest, EndsWhileAStepIsUnderWay) {
  absl::Notification both;  // steps are under way
  rank_.is_ready = [&both](int num_steps) {
    if (num_steps == 2 && !both.HasBeenNotified()) both.Notify();
    return false;
  };
  MakeReady();
  grpc::ClientContext context;
  auto stream = stub_->Execute(&context);
  ASSERT_TRUE(stream->Write(Plan(1)));
  ASSERT_TRUE(stream->Write(Plan(2)));
  ASSERT_TRUE(both.WaitForNotificationWithTimeout(kSoon));
  service_->session().End(absl::UnavailableError("a peer is gone"));
  v1::StepResult result;
  for (uint64_t id = 1; id <= 2; ++id) {
    ASSERT_TRUE(stream->Read(&result));
    EXPECT_EQ(result.step_id(), id);
    EXPECT_NE(result.code(), 0);
    EXPECT_TRUE(absl::StrContains(result.message(), "a peer is gone"));
  }
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(WorkerServiceTest, WarmsAPlacementBetweenSteps) {
  MakeReady();
  grpc::ClientContext context;
  v1::PreparePlacementRequest request;
  request.set_epoch(7);
  request.add_mixer_names("gdn");
  v1::PreparePlacementResponse response;
  ASSERT_TRUE(stub_->PreparePlacement(&context, request, &response).ok());
  absl::MutexLock lock(&rank_.mutex);
  EXPECT_EQ(rank_.prepared_epoch, 7);
  EXPECT_EQ(rank_.num_warmed, 3);
}

TEST_F(WorkerServiceTest, ASkippedStepIsAnError) {
  MakeReady();
  grpc::ClientContext context;
  auto stream = stub_->Execute(&context);
  ASSERT_TRUE(stream->Write(Plan(2)));
  v1::StepResult result;
  ASSERT_TRUE(stream->Read(&result));
  EXPECT_EQ(result.code(),
            static_cast<int>(absl::StatusCode::kInvalidArgument));
}

TEST_F(WorkerServiceTest, EndsWithItsCoordinator) {
  MakeReady();
  grpc::ClientContext context;
  auto stream = stub_->Execute(&context);
  ASSERT_TRUE(stream->Write(Plan(1)));
  v1::StepResult result;
  ASSERT_TRUE(stream->Read(&result));
  context.TryCancel();
  EXPECT_TRUE(absl::IsUnavailable(Outcome()));
}

TEST_F(WorkerServiceTest, ReportsProgressWhileLoading) {
  absl::Notification loaded;
  absl::Notification go_on;
  rank_.on_load = [&](LoadProgress& progress) {
    progress.bytes_total = 10;
    progress.bytes_loaded = 4;
    loaded.Notify();
    go_on.WaitForNotification();
    return absl::OkStatus();
  };
  StartWorker();
  std::thread coordinator([&] { EXPECT_TRUE(Configure(GoodRequest()).ok()); });
  loaded.WaitForNotification();
  const v1::GetStatusResponse status = GetStatus();
  EXPECT_EQ(status.phase(), v1::GetStatusResponse::PHASE_LOADING);
  EXPECT_EQ(status.bytes_loaded(), 4);
  EXPECT_EQ(status.bytes_total(), 10);
  // A second coordinator that comes and gives up disturbs nobody.
  EXPECT_EQ(Configure(GoodRequest()).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
  go_on.Notify();
  coordinator.join();
  EXPECT_FALSE(over_.HasBeenNotified());
  service_.reset();  // before go_on
}

TEST_F(WorkerServiceTest, AFailedLoadEndsTheWorker) {
  StartWorker();
  v1::ConfigureRequest request = GoodRequest();
  request.set_config_fingerprint(43);
  const grpc::Status status = Configure(request);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_TRUE(absl::StrContains(status.error_message(), "fingerprint"));
  EXPECT_TRUE(absl::IsFailedPrecondition(Outcome()));
  EXPECT_EQ(GetStatus().phase(), v1::GetStatusResponse::PHASE_FAILED);
}

TEST_F(WorkerServiceTest, ACancelledConfigureEndsTheWorker) {
  absl::Notification loading;
  absl::Notification go_on;
  rank_.on_load = [&](LoadProgress&) {
    loading.Notify();
    go_on.WaitForNotification();
    return absl::OkStatus();
  };
  StartWorker();
  grpc::ClientContext context;
  std::thread coordinator([&] {
    v1::ConfigureResponse response;
    EXPECT_EQ(stub_->Configure(&context, GoodRequest(), &response).error_code(),
              grpc::StatusCode::CANCELLED);
  });
  loading.WaitForNotification();
  context.TryCancel();
  coordinator.join();
  EXPECT_TRUE(absl::IsCancelled(Outcome()));
  go_on.Notify();
  service_.reset();  // before go_on
}

TEST_F(WorkerServiceTest, AForgottenWorkerEnds) {
  WorkerServiceOptions options;
  options.session.contact_timeout = absl::Milliseconds(50);
  StartWorker(options);
  ASSERT_TRUE(Configure(GoodRequest()).ok());
  EXPECT_TRUE(absl::IsUnavailable(Outcome()));
}

TEST_F(WorkerServiceTest, KeepsTheRendezvous) {
  StartWorker();
  const auto table =
      MakeRemoteRendezvous(absl::StrCat("127.0.0.1:", service_->port()));
  const absl::Status nobody =
      table->Get("key", absl::Milliseconds(50)).status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(nobody)) << nobody;
  std::thread waiter(
      [&] { EXPECT_EQ(table->Get("key", kSoon).value(), "value"); });
  EXPECT_TRUE(table->Put("key", "value").ok());
  waiter.join();
  EXPECT_EQ(table->Get("key", kSoon).value(), "value");
  EXPECT_TRUE(absl::IsAlreadyExists(table->Put("key", "another")));
  std::thread pending([&] {
    EXPECT_TRUE(absl::IsCancelled(table->Get("never", kSoon).status()));
  });
  table->Cancel();
  pending.join();
}

TEST_F(WorkerServiceTest, NamesAnAddressItCannotListenOn) {
  StartWorker();
  WorkerServiceOptions options;
  options.port = service_->port();
  FakeRank other;
  const absl::Status status =
      WorkerService::Start(FakeBackend(other), options, nullptr).status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_TRUE(absl::StrContains(status.message(),
                                absl::StrCat("127.0.0.1:", service_->port())));
}

}  // namespace
}  // namespace switchyard
