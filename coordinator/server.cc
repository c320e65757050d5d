#include "coordinator/server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/support/server_interceptor.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "coordinator/admin_service.h"
#include "coordinator/generation_service.h"
#include "coordinator/log.h"
#include "coordinator/unknown_methods.h"
#include "kernels/status.h"
#include "rpc/credentials.h"
#include "rpc/hang_up.h"
#include "rpc/host_port.h"
#include "rpc/tokens.h"

namespace switchyard {
namespace {

// A peer that is gone without a word is noticed after these.
constexpr int kPeerPingMs = 60 * 1000;
constexpr int kPeerPingTimeoutMs = 20 * 1000;

// As gRPC takes them; the longest it takes is 24 days.
int Milliseconds(absl::Duration duration) {
  return static_cast<int>(std::min<int64_t>(absl::ToInt64Milliseconds(duration),
                                            std::numeric_limits<int>::max()));
}

void Limit(const ConnectionLimits& limits, grpc::ServerBuilder* builder) {
  builder->SetMaxReceiveMessageSize(limits.max_message_bytes);
  builder->AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS,
                              limits.max_concurrent_streams);
  builder->AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE,
                              limits.max_header_bytes);
  builder->AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS,
                              Milliseconds(limits.handshake_timeout));
  // Pings of an idle client count like those of a busy one.
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder->AddChannelArgument(
      GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
      Milliseconds(limits.min_ping_interval));
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kPeerPingMs);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS,
                              kPeerPingTimeoutMs);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
}

// gRPC's blocking services answer a message that cannot be parsed with INTERNAL
// and no word; nothing of ours does.
class MalformedIsInvalid final : public grpc::experimental::Interceptor {
 public:
  void Intercept(grpc::experimental::InterceptorBatchMethods* call) override {
    if (call->QueryInterceptionHookPoint(
            grpc::experimental::InterceptionHookPoints::PRE_SEND_STATUS)) {
      const grpc::Status status = call->GetSendStatus();
      if (status.error_code() == grpc::StatusCode::INTERNAL &&
          status.error_message().empty()) {
        call->ModifySendStatus(
            grpc::Status(grpc::StatusCode::INVALID_ARGUMENT,
                         "the message cannot be parsed; are all its strings "
                         "UTF-8?"));
      }
    }
    call->Proceed();
  }
};

class MalformedIsInvalidFactory final
    : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo*) override {
    return new MalformedIsInvalid;
  }
};

void CheckMessages(grpc::ServerBuilder* builder) {
  std::vector<
      std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>>
      interceptors;
  interceptors.push_back(std::make_unique<MalformedIsInvalidFactory>());
  builder->experimental().SetInterceptorCreators(std::move(interceptors));
}

absl::StatusOr<std::unique_ptr<TokenSet>> LoadTokens(const std::string& path) {
  if (path.empty()) return nullptr;
  return TokenSet::Load(path, [path](const absl::Status& status) {
    if (status.ok()) {
      Log(LogLevel::kInfo, absl::StrCat("read ", path, " again"));
    } else {
      Log(LogLevel::kWarning,
          absl::StrCat("keeping the tokens from before: ", status.message()));
    }
  });
}

struct Listener {
  std::unique_ptr<grpc::Server> server;
  std::string address;
  int port = 0;
};

absl::StatusOr<Listener> Listen(const ServerOptions& options, int port,
                                grpc::Service* service,
                                UnknownMethods* unknown_methods,
                                const char* service_name, bool is_blocking) {
  SY_ASSIGN_OR_RETURN(
      const std::shared_ptr<grpc::ServerCredentials> credentials,
      MakeServerCredentials(options.tls));
  grpc::ServerBuilder builder;
  Limit(options.limits, &builder);
  if (is_blocking) CheckMessages(&builder);
  // Two servers must not share a port by accident.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.RegisterService(service);
  builder.RegisterCallbackGenericService(unknown_methods);
  int bound_port = 0;
  const std::string wanted = JoinHostPort(options.host, port);
  builder.AddListeningPort(wanted, credentials, &bound_port);
  Listener listener;
  listener.server = builder.BuildAndStart();
  if (listener.server == nullptr || bound_port == 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", wanted,
                     ": the port is taken, or the address is not this "
                     "machine's"));
  }
  listener.address = JoinHostPort(options.host, bound_port);
  listener.port = bound_port;
  listener.server->GetHealthCheckService()->SetServingStatus(service_name,
                                                             true);
  return listener;
}

// What is probably not meant.
void WarnOfOpenPorts(const ServerOptions& options) {
  const bool has_tokens =
      !options.api_token_file.empty() || !options.admin_token_file.empty();
  if (!options.api_token_file.empty() && options.admin_token_file.empty()) {
    Log(LogLevel::kWarning,
        "clients need a token, operators none: --admin-token-file is not set");
  }
  if (has_tokens && options.tls.empty() && options.host != "127.0.0.1" &&
      options.host != "::1" && options.host != "localhost") {
    Log(LogLevel::kWarning,
        "tokens cross the network in clear text: --tls-cert is not set");
  }
}

}  // namespace

struct Server::Impl {
  Impl(Engine* engine, const ServedModel* model, std::unique_ptr<TokenSet> api,
       std::unique_ptr<TokenSet> operators)
      : api_tokens(std::move(api)),
        admin_tokens(std::move(operators)),
        generation(engine, model, api_tokens.get()),
        admin(engine, model, admin_tokens.get()) {}

  const std::unique_ptr<TokenSet> api_tokens;    // null: anybody may call
  const std::unique_ptr<TokenSet> admin_tokens;  // null: anybody may call
  GenerationService generation;
  AdminService admin;
  UnknownMethods unknown_to_clients{
      absl::StrCat("this port serves ", kGenerationServiceName,
                   ", the one of --admin-port ", kAdminServiceName)};
  UnknownMethods unknown_to_operators{
      absl::StrCat("this port serves ", kAdminServiceName,
                   ", the one of --port ", kGenerationServiceName)};
  Listener client_port;
  Listener admin_port;
  bool is_over = false;
};

absl::StatusOr<std::unique_ptr<Server>> Server::Start(
    const ServerOptions& options, Engine* engine, const ServedModel* model) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  SY_ASSIGN_OR_RETURN(std::unique_ptr<TokenSet> api_tokens,
                      LoadTokens(options.api_token_file));
  SY_ASSIGN_OR_RETURN(std::unique_ptr<TokenSet> admin_tokens,
                      LoadTokens(options.admin_token_file));
  WarnOfOpenPorts(options);
  auto impl = std::make_unique<Impl>(engine, model, std::move(api_tokens),
                                     std::move(admin_tokens));
  SY_ASSIGN_OR_RETURN(impl->client_port,
                      Listen(options, options.port, impl->generation.service(),
                             &impl->unknown_to_clients, kGenerationServiceName,
                             /*is_blocking=*/false));
  SY_ASSIGN_OR_RETURN(impl->admin_port,
                      Listen(options, options.admin_port, impl->admin.service(),
                             &impl->unknown_to_operators, kAdminServiceName,
                             /*is_blocking=*/true));
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

absl::Status Server::Check(const ServerOptions& options) {
  SY_RETURN_IF_ERROR(MakeServerCredentials(options.tls).status());
  SY_RETURN_IF_ERROR(LoadTokens(options.api_token_file).status());
  return LoadTokens(options.admin_token_file).status();
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
  if (std::exchange(impl_->is_over, true)) return;
  impl_->generation.WaitForStreams(patience);
  HangUp(impl_->client_port.port, patience);
  const auto deadline =
      std::chrono::system_clock::now() + absl::ToChronoMicroseconds(patience);
  impl_->client_port.server->Shutdown(deadline);
  impl_->admin_port.server->Shutdown(deadline);
}

}  // namespace switchyard
