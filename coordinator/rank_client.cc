#include "coordinator/rank_client.h"

#include <grpcpp/grpcpp.h>

#include <deque>
#include <set>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "kernels/check.h"
#include "proto/grpc_status.h"
#include "switchyard/v1/worker.grpc.pb.h"

namespace switchyard {
namespace {

// Start* may run reactions before they return: no lock is held around them.
class Stream final
    : public grpc::ClientBidiReactor<v1::StepPlan, v1::StepResult> {
 public:
  explicit Stream(RankClient::StreamCallbacks callbacks)
      : callbacks_(std::move(callbacks)) {}

  void Start(v1::WorkerService::Stub& stub) {
    stub.async()->Execute(&context_, this);
    StartRead(&result_);
    AddHold();  // Write comes from outside of the reactions
    StartCall();
  }

  void Write(std::shared_ptr<const v1::StepPlan> plan) {
    {
      absl::MutexLock lock(&mutex_);
      if (ended_) return;
      plans_.push_back(std::move(plan));
      if (plans_.size() > 1) return;  // after the one being written
      ++num_starting_;
    }
    StartFront();
  }

  void Cancel() { context_.TryCancel(); }

  void WaitUntilDone() {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(&done_));
  }

  void OnReadInitialMetadataDone(bool ok) override {
    if (ok) callbacks_.on_open();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return EndWrites();
    callbacks_.on_result(std::move(result_));
    result_.Clear();
    StartRead(&result_);
  }

  void OnWriteDone(bool ok) override {
    {
      absl::MutexLock lock(&mutex_);
      plans_.pop_front();
      if (!ok || ended_ || plans_.empty()) return;
      ++num_starting_;
    }
    StartFront();
  }

  void OnDone(const grpc::Status& status) override {
    callbacks_.on_end(FromGrpcStatus(status));
    absl::MutexLock lock(&mutex_);
    done_ = true;
  }

 private:
  void StartFront() {
    const v1::StepPlan* plan;
    {
      absl::MutexLock lock(&mutex_);
      plan = plans_.front().get();
    }
    StartWrite(plan);
    bool release;
    {
      absl::MutexLock lock(&mutex_);
      release = --num_starting_ == 0 && ended_ && !released_;
      released_ |= release;
    }
    if (release) RemoveHold();
  }

  // No more writes; releases the hold once none is being started.
  void EndWrites() {
    bool release;
    {
      absl::MutexLock lock(&mutex_);
      ended_ = true;
      release = num_starting_ == 0 && !released_;
      released_ |= release;
    }
    if (release) RemoveHold();
  }

  const RankClient::StreamCallbacks callbacks_;
  grpc::ClientContext context_;
  v1::StepResult result_;  // being read

  absl::Mutex mutex_;
  // The front is being written.
  std::deque<std::shared_ptr<const v1::StepPlan>> plans_
      ABSL_GUARDED_BY(mutex_);
  int num_starting_ ABSL_GUARDED_BY(mutex_) = 0;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool released_ ABSL_GUARDED_BY(mutex_) = false;
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
};

void KeepForever(std::shared_ptr<grpc::Channel> channel) {
  static auto* const mutex = new absl::Mutex;
  static auto* const kept = new std::vector<std::shared_ptr<grpc::Channel>>;
  absl::MutexLock lock(mutex);
  kept->push_back(std::move(channel));
}

class GrpcRankClient final : public RankClient {
 public:
  GrpcRankClient(const std::string& address,
                 const ClientCredentials& credentials) {
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);  // of our own workers
    arguments.SetMaxSendMessageSize(-1);
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    // A worker may start a moment after its coordinator.
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
    arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 50);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 500);
    // Its name may not be there yet, or get a new address (default: 30 s).
    arguments.SetInt(GRPC_ARG_DNS_MIN_TIME_BETWEEN_RESOLUTIONS_MS, 1000);
    // A machine that is gone closes no connection; unanswered pings do.
    arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 10000);
    arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10000);
    arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
    channel_ = OpenChannel(address, credentials, arguments);
    stub_ = v1::WorkerService::NewStub(channel_);
    // gRPC 1.51 keeps one completion queue for all callback calls and tears it
    // down with the last channel, where it aborts if a cancelled call still
    // reports. A process coordinates one group: its channels stay.
    KeepForever(channel_);
    channel_->GetState(/*try_to_connect=*/true);
  }

  ~GrpcRankClient() override {
    Cancel();
    Stream* stream;
    {
      absl::MutexLock lock(&mutex_);
      stream = stream_.get();
    }
    if (stream != nullptr) stream->WaitUntilDone();
    absl::MutexLock lock(&mutex_);
    const auto idle = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return calls_.empty();
    };
    mutex_.Await(absl::Condition(&idle));
  }

  bool WaitUntilConnected(absl::Time deadline) override {
    return channel_->WaitForConnected(absl::ToChronoTime(deadline));
  }

  bool WaitUntilDisconnected(absl::Time deadline) override {
    while (channel_->GetState(/*try_to_connect=*/false) == GRPC_CHANNEL_READY) {
      if (!channel_->WaitForStateChange(GRPC_CHANNEL_READY,
                                        absl::ToChronoTime(deadline))) {
        return false;
      }
    }
    return true;
  }

  void Configure(const v1::ConfigureRequest& request,
                 std::function<void(absl::StatusOr<v1::ConfigureResponse>)>
                     done) override {
    Call<v1::ConfigureResponse>(&Async::Configure, request,
                                absl::InfiniteDuration(), std::move(done));
  }

  void AllocateCache(uint64_t arena_bytes, absl::Duration timeout,
                     Done done) override {
    v1::AllocateCacheRequest request;
    request.set_arena_bytes(arena_bytes);
    CallForStatus<v1::AllocateCacheResponse>(&Async::AllocateCache, request,
                                             timeout, std::move(done));
  }

  void PreparePlacement(uint64_t epoch,
                        const std::vector<std::string>& mixer_names,
                        absl::Duration timeout, Done done) override {
    v1::PreparePlacementRequest request;
    request.set_epoch(epoch);
    for (const std::string& name : mixer_names) request.add_mixer_names(name);
    CallForStatus<v1::PreparePlacementResponse>(
        &Async::PreparePlacement, request, timeout, std::move(done));
  }

  void CommitPlacement(uint64_t epoch, absl::Duration timeout,
                       Done done) override {
    v1::CommitPlacementRequest request;
    request.set_epoch(epoch);
    CallForStatus<v1::CommitPlacementResponse>(&Async::CommitPlacement, request,
                                               timeout, std::move(done));
  }

  void AbortPlacement(uint64_t epoch, absl::Duration timeout,
                      Done done) override {
    v1::AbortPlacementRequest request;
    request.set_epoch(epoch);
    CallForStatus<v1::AbortPlacementResponse>(&Async::AbortPlacement, request,
                                              timeout, std::move(done));
  }

  void Shutdown(absl::Duration timeout, Done done) override {
    CallForStatus<v1::ShutdownResponse>(&Async::Shutdown, v1::ShutdownRequest(),
                                        timeout, std::move(done));
  }

  absl::StatusOr<v1::GetStatusResponse> GetStatus(
      absl::Duration timeout) override {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
    v1::GetStatusResponse response;
    const grpc::Status status =
        stub_->GetStatus(&context, v1::GetStatusRequest(), &response);
    if (!status.ok()) return FromGrpcStatus(status);
    return response;
  }

  void OpenStream(StreamCallbacks callbacks) override {
    Stream* stream;
    {
      absl::MutexLock lock(&mutex_);
      SY_CHECK(stream_ == nullptr);
      stream_ = std::make_unique<Stream>(std::move(callbacks));
      stream = stream_.get();
    }
    stream->Start(*stub_);
  }

  void Write(std::shared_ptr<const v1::StepPlan> plan) override {
    Stream* stream;
    {
      absl::MutexLock lock(&mutex_);
      stream = stream_.get();
    }
    SY_CHECK(stream != nullptr);
    stream->Write(std::move(plan));
  }

  void Cancel() override {
    absl::MutexLock lock(&mutex_);
    if (stream_ != nullptr) stream_->Cancel();
    for (grpc::ClientContext* context : calls_) context->TryCancel();
  }

 private:
  using Async = v1::WorkerService::StubInterface::async_interface;

  template <typename Response, typename Request>
  void Call(void (Async::*method)(grpc::ClientContext*, const Request*,
                                  Response*, std::function<void(grpc::Status)>),
            const Request& request, absl::Duration timeout,
            std::function<void(absl::StatusOr<Response>)> done) {
    struct Pending {
      grpc::ClientContext context;
      Request request;
      Response response;
    };
    auto call = std::make_shared<Pending>();
    call->request = request;
    if (timeout != absl::InfiniteDuration())
      call->context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
    {
      absl::MutexLock lock(&mutex_);
      calls_.insert(&call->context);
    }
    (stub_->async()->*method)(
        &call->context, &call->request, &call->response,
        [this, call, done = std::move(done)](grpc::Status status) {
          if (status.ok())
            done(std::move(call->response));
          else
            done(FromGrpcStatus(status));
          absl::MutexLock lock(&mutex_);
          calls_.erase(&call->context);
        });
  }

  // The same, for responses that say nothing.
  template <typename Response, typename Request>
  void CallForStatus(void (Async::*method)(grpc::ClientContext*, const Request*,
                                           Response*,
                                           std::function<void(grpc::Status)>),
                     const Request& request, absl::Duration timeout,
                     Done done) {
    Call<Response, Request>(
        method, request, timeout,
        [done = std::move(done)](const absl::StatusOr<Response>& response) {
          done(response.status());
        });
  }

  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::WorkerService::Stub> stub_;
  absl::Mutex mutex_;
  std::unique_ptr<Stream> stream_ ABSL_GUARDED_BY(mutex_);
  std::set<grpc::ClientContext*> calls_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

std::unique_ptr<RankClient> RankClient::Create(
    const std::string& address, const ClientCredentials& credentials) {
  return std::make_unique<GrpcRankClient>(address, credentials);
}

}  // namespace switchyard
