#include "rpc/health_server.h"

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "rpc/host_port.h"

namespace switchyard {

struct HealthServer::Impl {
  // Answers what is not health with UNIMPLEMENTED; and without a service of the
  // caller's gRPC builds no server.
  grpc::CallbackGenericService others;
  std::unique_ptr<grpc::Server> server;
  std::string address;
  int port = 0;
};

absl::StatusOr<std::unique_ptr<HealthServer>> HealthServer::Start(
    const std::string& host, int port,
    const std::vector<std::string>& services) {
  auto impl = std::make_unique<Impl>();
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // A probe's messages are tiny, and so is what it may cost.
  builder.SetMaxReceiveMessageSize(4096);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 16);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, 5000);
  builder.RegisterCallbackGenericService(&impl->others);
  const std::string wanted = JoinHostPort(host, port);
  builder.AddListeningPort(wanted, grpc::InsecureServerCredentials(),
                           &impl->port);
  impl->server = builder.BuildAndStart();
  if (impl->server == nullptr || impl->port == 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", wanted,
                     " for health checks: the port is taken, or the address "
                     "is not this machine's"));
  }
  impl->address = JoinHostPort(host, impl->port);
  for (const std::string& service : services) {
    impl->server->GetHealthCheckService()->SetServingStatus(service, false);
  }
  return std::unique_ptr<HealthServer>(new HealthServer(std::move(impl)));
}

HealthServer::HealthServer(std::unique_ptr<Impl> impl)
    : impl_(std::move(impl)) {}

HealthServer::~HealthServer() {
  impl_->server->Shutdown(std::chrono::system_clock::now());
}

int HealthServer::port() const { return impl_->port; }

const std::string& HealthServer::address() const { return impl_->address; }

void HealthServer::Set(const std::string& service, bool serving) {
  impl_->server->GetHealthCheckService()->SetServingStatus(service, serving);
}

}  // namespace switchyard
