#include "worker/worker_service.h"

#include <grpcpp/grpcpp.h>

#include <deque>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/status.h"
#include "proto/grpc_status.h"
#include "rpc/credentials.h"
#include "rpc/health_server.h"
#include "rpc/host_port.h"
#include "rpc/tokens.h"
#include "switchyard/v1/worker.grpc.pb.h"
#include "worker/worker_log.h"

namespace switchyard {
namespace {

constexpr char kName[] = "switchyard.v1.WorkerService";

// The persistent stream of steps: plans in, results out, in order. gRPC's
// Start* and Finish may run reactions before they return, so they are called
// without the lock.
class StepStream final
    : public grpc::ServerBidiReactor<v1::StepPlan, v1::StepResult> {
 public:
  explicit StepStream(WorkerSession& session) : session_(session) {}

  // `self` keeps the stream alive until gRPC is done with it.
  void Start(std::shared_ptr<StepStream> self) {
    self_ = std::move(self);
    StartSendInitialMetadata();  // tells the coordinator that it is accepted
    StartRead(&plan_);
  }

  // No more steps will run: ends the stream when the results under way have
  // been written.
  void Close(const absl::Status& why) {
    {
      absl::MutexLock lock(&mutex_);
      if (!closed_) end_ = why;
      closed_ = true;
    }
    Advance();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return CoordinatorIsGone();
    {
      absl::MutexLock lock(&mutex_);
      if (closed_) return;
      ++num_executing_;
    }
    LogPlan(plan_);
    session_.Execute(std::move(plan_), [self = self_](v1::StepResult result) {
      LogResult(result, self->session_.outcome().has_value());
      {
        absl::MutexLock lock(&self->mutex_);
        self->results_.push_back(std::move(result));
        --self->num_executing_;
      }
      self->Advance();
    });
    plan_.Clear();
    StartRead(&plan_);
  }

  void OnWriteDone(bool) override {
    {
      absl::MutexLock lock(&mutex_);
      results_.pop_front();
      writing_ = false;
    }
    Advance();
  }

  void OnCancel() override { CoordinatorIsGone(); }

  void OnDone() override { self_.reset(); }

 private:
  void CoordinatorIsGone() {
    const absl::Status why =
        absl::UnavailableError("the coordinator ended its stream of steps");
    session_.End(why);  // which closes the stream, unless it was over before
    Close(why);
  }

  // Starts whatever is due: the next write, or the end.
  void Advance() {
    const v1::StepResult* write = nullptr;
    {
      absl::MutexLock lock(&mutex_);
      if (writing_ || finished_) return;
      if (!results_.empty()) {
        write = &results_.front();
        writing_ = true;
      } else if (closed_ && num_executing_ == 0) {
        finished_ = true;
      } else {
        return;
      }
    }
    if (write != nullptr)
      StartWrite(write);
    else
      Finish(ToGrpcStatus(end_));
  }

  WorkerSession& session_;
  std::shared_ptr<StepStream> self_;
  v1::StepPlan plan_;  // being read

  absl::Mutex mutex_;
  std::deque<v1::StepResult> results_ ABSL_GUARDED_BY(mutex_);
  int num_executing_ ABSL_GUARDED_BY(mutex_) = 0;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status end_;  // constant once closed
};

// A stream that came out of turn: it is told why.
class RefusedStream final
    : public grpc::ServerBidiReactor<v1::StepPlan, v1::StepResult> {
 public:
  explicit RefusedStream(const absl::Status& why) { Finish(ToGrpcStatus(why)); }
  void OnDone() override { delete this; }
};

// A coordinator that gives up while the model loads takes the session with it.
class ConfigureCall final : public grpc::ServerUnaryReactor {
 public:
  // `on_ready` is called when the session is configured.
  ConfigureCall(WorkerSession& session, const v1::ConfigureRequest& request,
                v1::ConfigureResponse* response, std::function<void()> on_ready)
      : session_(session) {
    // The request and this call may be gone when Configure returns.
    const v1::ConfigureRequest wanted = request;
    const absl::Status refusal = session.Configure(
        request, [this, response, on_ready = std::move(on_ready)](
                     absl::StatusOr<v1::ConfigureResponse> result) {
          if (result.ok()) {
            *response = *std::move(result);
            on_ready();
          }
          Finish(ToGrpcStatus(result.status()));
        });
    accepted_ = refusal.ok();
    if (refusal.ok()) LogConfigured(wanted);
    if (!accepted_) Finish(ToGrpcStatus(refusal));
  }

  void OnCancel() override {
    if (!accepted_) return;  // the session is another coordinator's
    session_.End(absl::CancelledError(
        "the coordinator went away while the worker was loading"));
  }
  void OnDone() override { delete this; }

 private:
  WorkerSession& session_;
  bool accepted_ = false;
};

// Waits in the table until the key is there or the caller goes away.
class GetRendezvousCall final : public grpc::ServerUnaryReactor {
 public:
  GetRendezvousCall(RendezvousTable& table, const std::string& key,
                    v1::GetRendezvousResponse* response)
      : table_(table), wait_(std::make_shared<Wait>()) {
    // The call may be over, and deleted, before GetAsync returns.
    const std::shared_ptr<Wait> wait = wait_;
    const uint64_t ticket = table.GetAsync(
        key, [this, response](absl::StatusOr<std::string> value) {
          if (value.ok()) response->set_value(*std::move(value));
          Finish(ToGrpcStatus(value.status()));
        });
    absl::MutexLock lock(&wait->mutex);
    wait->ticket = ticket;
    if (!wait->cancelled) return;
    table.Forget(ticket);
  }

  void OnCancel() override {
    uint64_t ticket;
    {
      absl::MutexLock lock(&wait_->mutex);
      wait_->cancelled = true;
      ticket = wait_->ticket;
    }
    if (ticket != 0) table_.Forget(ticket);
  }
  void OnDone() override { delete this; }

 private:
  struct Wait {
    absl::Mutex mutex;
    uint64_t ticket = 0;
    bool cancelled = false;
  };

  RendezvousTable& table_;
  const std::shared_ptr<Wait> wait_;
};

class Service final : public WorkerService,
                      private v1::WorkerService::CallbackService {
 public:
  Service(WorkerBackend backend, const WorkerServiceOptions& options,
          std::function<void()> on_over)
      : options_(options),
        on_over_(std::move(on_over)),
        session_(std::move(backend), options.session,
                 [this] { SessionIsOver(); }) {}

  ~Service() override {
    session_.End(absl::CancelledError("the worker was stopped"));
    if (server_ == nullptr) return;
    server_->Shutdown(
        absl::ToChronoTime(absl::Now() + options_.shutdown_grace));
  }

  absl::Status Listen() {
    if (options_.health_port.has_value()) {
      SY_ASSIGN_OR_RETURN(
          health_,
          HealthServer::Start(options_.host, *options_.health_port, {kName}));
    }
    const ClientFiles& group = options_.session.group;
    if (!group.token_file.empty()) {
      SY_ASSIGN_OR_RETURN(tokens_, TokenSet::Load(group.token_file, nullptr));
    }
    SY_ASSIGN_OR_RETURN(
        const std::shared_ptr<grpc::ServerCredentials> credentials,
        MakeServerCredentials(group.tls));
    const std::string address = JoinHostPort(options_.host, options_.port);
    grpc::ServerBuilder builder;
    builder.RegisterService(this);
    builder.SetMaxReceiveMessageSize(-1);  // of our own coordinator
    builder.SetMaxSendMessageSize(-1);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    // The coordinator pings idle connections, to find dead machines.
    builder.AddChannelArgument(
        GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1000);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
    builder.AddListeningPort(address, credentials, &port_);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port_ == 0)
      return absl::UnavailableError(absl::StrCat("cannot listen on ", address));
    return absl::OkStatus();
  }

  int port() const override { return port_; }
  std::optional<int> health_port() const override {
    if (health_ == nullptr) return std::nullopt;
    return health_->port();
  }
  WorkerSession& session() override { return session_; }

 private:
  grpc::ServerUnaryReactor* Configure(
      grpc::CallbackServerContext* context, const v1::ConfigureRequest* request,
      v1::ConfigureResponse* response) override {
    if (auto* refusal = Refuse(context)) return refusal;
    return new ConfigureCall(session_, *request, response,
                             [this] { SetReady(true); });
  }

  grpc::ServerUnaryReactor* AllocateCache(
      grpc::CallbackServerContext* context,
      const v1::AllocateCacheRequest* request,
      v1::AllocateCacheResponse*) override {
    if (auto* refusal = Refuse(context)) return refusal;
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    session_.AllocateCache(request->arena_bytes(), FinishWith(reactor));
    return reactor;
  }

  grpc::ServerBidiReactor<v1::StepPlan, v1::StepResult>* Execute(
      grpc::CallbackServerContext* context) override {
    if (absl::Status status = CheckToken(tokens_.get(), *context);
        !status.ok()) {
      return new RefusedStream(status);
    }
    const absl::Status opened = session_.OpenStream();
    if (!opened.ok()) return new RefusedStream(opened);
    auto stream = std::make_shared<StepStream>(session_);
    {
      absl::MutexLock lock(&mutex_);
      stream_ = stream;
    }
    stream->Start(stream);
    // The session may have ended before SessionIsOver could see the stream.
    if (session_.outcome().has_value()) stream->Close(EndOfStream());
    return stream.get();
  }

  grpc::ServerUnaryReactor* PreparePlacement(
      grpc::CallbackServerContext* context,
      const v1::PreparePlacementRequest* request,
      v1::PreparePlacementResponse*) override {
    if (auto* refusal = Refuse(context)) return refusal;
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    session_.PreparePlacement(
        request->epoch(),
        std::vector<std::string>(request->mixer_names().begin(),
                                 request->mixer_names().end()),
        LogAndFinish("prepare", request->epoch(), reactor));
    return reactor;
  }

  grpc::ServerUnaryReactor* CommitPlacement(
      grpc::CallbackServerContext* context,
      const v1::CommitPlacementRequest* request,
      v1::CommitPlacementResponse*) override {
    if (auto* refusal = Refuse(context)) return refusal;
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    session_.CommitPlacement(request->epoch(),
                             LogAndFinish("commit", request->epoch(), reactor));
    return reactor;
  }

  grpc::ServerUnaryReactor* AbortPlacement(
      grpc::CallbackServerContext* context,
      const v1::AbortPlacementRequest* request,
      v1::AbortPlacementResponse*) override {
    if (auto* refusal = Refuse(context)) return refusal;
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    session_.AbortPlacement(request->epoch(),
                            LogAndFinish("abort", request->epoch(), reactor));
    return reactor;
  }

  grpc::ServerUnaryReactor* GetStatus(
      grpc::CallbackServerContext* context, const v1::GetStatusRequest*,
      v1::GetStatusResponse* response) override {
    if (auto* refusal = Refuse(context)) return refusal;
    *response = session_.GetStatus();
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

  grpc::ServerUnaryReactor* Shutdown(grpc::CallbackServerContext* context,
                                     const v1::ShutdownRequest*,
                                     v1::ShutdownResponse*) override {
    if (auto* refusal = Refuse(context)) return refusal;
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    session_.End(absl::OkStatus());
    return reactor;
  }

  grpc::ServerUnaryReactor* PutRendezvous(
      grpc::CallbackServerContext* context,
      const v1::PutRendezvousRequest* request,
      v1::PutRendezvousResponse*) override {
    if (auto* refusal = Refuse(context)) return refusal;
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(ToGrpcStatus(
        session_.rendezvous().Put(request->key(), request->value())));
    return reactor;
  }

  grpc::ServerUnaryReactor* GetRendezvous(
      grpc::CallbackServerContext* context,
      const v1::GetRendezvousRequest* request,
      v1::GetRendezvousResponse* response) override {
    if (auto* refusal = Refuse(context)) return refusal;
    return new GetRendezvousCall(session_.rendezvous(), request->key(),
                                 response);
  }

  // Of a call without a token of the group; null: it may go on.
  grpc::ServerUnaryReactor* Refuse(grpc::CallbackServerContext* context) {
    const absl::Status status = CheckToken(tokens_.get(), *context);
    if (status.ok()) return nullptr;
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(ToGrpcStatus(status));
    return reactor;
  }

  void SetReady(bool ready) {
    if (health_ != nullptr) health_->Set(kName, ready);
  }

  static WorkerSession::DoneStatus FinishWith(
      grpc::ServerUnaryReactor* reactor) {
    return [reactor](absl::Status status) {
      reactor->Finish(ToGrpcStatus(status));
    };
  }

  static WorkerSession::DoneStatus LogAndFinish(
      const char* phase, uint64_t epoch, grpc::ServerUnaryReactor* reactor) {
    return [phase, epoch, reactor](absl::Status status) {
      LogPlacementChange(phase, epoch, status);
      reactor->Finish(ToGrpcStatus(status));
    };
  }

  void SessionIsOver() {
    SetReady(false);
    std::shared_ptr<StepStream> stream;
    {
      absl::MutexLock lock(&mutex_);
      stream = stream_.lock();
    }
    if (stream != nullptr) stream->Close(EndOfStream());
    if (on_over_ != nullptr) on_over_();
  }

  absl::Status EndOfStream() const {
    const absl::Status reason = *session_.outcome();
    if (reason.ok()) return reason;
    return absl::UnavailableError(
        absl::StrCat("the worker's group is over: ", reason.message()));
  }

  const WorkerServiceOptions options_;
  const std::function<void()> on_over_;
  std::unique_ptr<HealthServer> health_;  // null: there is none
  std::unique_ptr<TokenSet> tokens_;      // null: anybody may call
  int port_ = 0;
  absl::Mutex mutex_;
  std::weak_ptr<StepStream> stream_ ABSL_GUARDED_BY(mutex_);
  WorkerSession session_;  // outlives the server's calls
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerService>> WorkerService::Start(
    WorkerBackend backend, const WorkerServiceOptions& options,
    std::function<void()> on_over) {
  auto service = std::make_unique<Service>(std::move(backend), options,
                                           std::move(on_over));
  absl::Status listening = service->Listen();
  if (!listening.ok()) return listening;
  return service;
}

}  // namespace switchyard
