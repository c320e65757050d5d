// The client's side of the rendezvous.
#include <grpcpp/grpcpp.h>

#include <memory>
#include <set>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/grpc_status.h"
#include "switchyard/v1/worker.grpc.pb.h"
#include "worker/rendezvous.h"

namespace switchyard {
namespace {

constexpr absl::Duration kPutTimeout = absl::Seconds(30);

class RemoteRendezvous final : public Rendezvous {
 public:
  RemoteRendezvous(const std::string& address,
                   const ClientCredentials& credentials)
      : address_(address) {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    stub_ = v1::WorkerService::NewStub(
        OpenChannel(address, credentials, arguments));
  }

  absl::Status Put(const std::string& key, const std::string& value) override {
    v1::PutRendezvousRequest request;
    request.set_key(key);
    request.set_value(value);
    v1::PutRendezvousResponse response;
    return Call(kPutTimeout, [&](grpc::ClientContext& context) {
      return stub_->PutRendezvous(&context, request, &response);
    });
  }

  absl::StatusOr<std::string> Get(const std::string& key,
                                  absl::Duration timeout) override {
    v1::GetRendezvousRequest request;
    request.set_key(key);
    v1::GetRendezvousResponse response;
    absl::Status status = Call(timeout, [&](grpc::ClientContext& context) {
      return stub_->GetRendezvous(&context, request, &response);
    });
    if (absl::IsDeadlineExceeded(status)) {
      return absl::DeadlineExceededError(
          absl::StrCat("no rank has set rendezvous key \"", key, "\" within ",
                       absl::FormatDuration(timeout)));
    }
    if (!status.ok()) return status;
    return std::move(*response.mutable_value());
  }

  void Cancel() override {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
    for (grpc::ClientContext* context : pending_) context->TryCancel();
  }

 private:
  template <typename Rpc>
  absl::Status Call(absl::Duration timeout, Rpc rpc) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
    context.set_wait_for_ready(true);
    {
      absl::MutexLock lock(&mutex_);
      if (cancelled_)
        return absl::CancelledError("the rendezvous was cancelled");
      pending_.insert(&context);
    }
    const absl::Status status = FromGrpcStatus(rpc(context));
    absl::MutexLock lock(&mutex_);
    pending_.erase(&context);
    if (status.ok()) return status;
    return absl::Status(status.code(),
                        absl::StrCat("rendezvous with rank 0 at ", address_,
                                     ": ", status.message()));
  }

  const std::string address_;
  std::unique_ptr<v1::WorkerService::Stub> stub_;
  absl::Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  std::set<grpc::ClientContext*> pending_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

std::unique_ptr<Rendezvous> MakeRemoteRendezvous(
    const std::string& address, const ClientCredentials& credentials) {
  return std::make_unique<RemoteRendezvous>(address, credentials);
}

}  // namespace switchyard
