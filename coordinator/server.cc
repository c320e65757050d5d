#include "coordinator/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/admin_service.h"
#include "coordinator/generation_service.h"
#include "kernels/status.h"
#include "rpc/host_port.h"

namespace switchyard {
namespace {

// Room for a prompt of a million tokens.
constexpr int kMaxRequestBytes = 32 << 20;

struct Listener {
  std::unique_ptr<grpc::Server> server;
  std::string address;
};

absl::StatusOr<Listener> Listen(const std::string& host, int port,
                                grpc::Service* service,
                                const char* service_name) {
  grpc::ServerBuilder builder;
  // Two servers must not share a port by accident.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.SetMaxReceiveMessageSize(kMaxRequestBytes);
  builder.RegisterService(service);
  int bound_port = 0;
  const std::string wanted = JoinHostPort(host, port);
  builder.AddListeningPort(wanted, grpc::InsecureServerCredentials(),
                           &bound_port);
  Listener listener;
  listener.server = builder.BuildAndStart();
  if (listener.server == nullptr || bound_port == 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", wanted,
                     ": the port is taken, or the address is not this "
                     "machine's"));
  }
  listener.address = JoinHostPort(host, bound_port);
  listener.server->GetHealthCheckService()->SetServingStatus(service_name,
                                                             true);
  return listener;
}

}  // namespace

struct Server::Impl {
  Impl(Engine* engine, const ServedModel* model)
      : generation(engine, model), admin(engine, model) {}

  GenerationService generation;
  AdminService admin;
  Listener client_port;
  Listener admin_port;
};

absl::StatusOr<std::unique_ptr<Server>> Server::Start(
    const ServerOptions& options, Engine* engine, const ServedModel* model) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  auto impl = std::make_unique<Impl>(engine, model);
  SY_ASSIGN_OR_RETURN(impl->client_port, Listen(options.host, options.port,
                                                impl->generation.service(),
                                                kGenerationServiceName));
  SY_ASSIGN_OR_RETURN(impl->admin_port,
                      Listen(options.host, options.admin_port,
                             impl->admin.service(), kAdminServiceName));
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Server::~Server() { Shutdown(absl::ZeroDuration()); }

std::string Server::address() const { return impl_->client_port.address; }

std::string Server::admin_address() const { return impl_->admin_port.address; }

void Server::AnnounceDraining() {
  impl_->client_port.server->GetHealthCheckService()->SetServingStatus(
      kGenerationServiceName, false);
  impl_->admin_port.server->GetHealthCheckService()->SetServingStatus(
      kAdminServiceName, false);
}

void Server::SetAlive(bool alive) {
  impl_->client_port.server->GetHealthCheckService()->SetServingStatus("",
                                                                       alive);
  impl_->admin_port.server->GetHealthCheckService()->SetServingStatus("",
                                                                      alive);
}

void Server::Shutdown(absl::Duration patience) {
  const auto deadline =
      std::chrono::system_clock::now() + absl::ToChronoMicroseconds(patience);
  impl_->client_port.server->Shutdown(deadline);
  impl_->admin_port.server->Shutdown(deadline);
}

}  // namespace switchyard
