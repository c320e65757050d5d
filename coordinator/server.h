// The coordinator's two gRPC ports: clients on one, operators on the other.
#ifndef SWITCHYARD_COORDINATOR_SERVER_H_
#define SWITCHYARD_COORDINATOR_SERVER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/engine.h"
#include "coordinator/served_model.h"
#include "rpc/credentials.h"

namespace switchyard {

// What one connection may do, on either port.
struct ConnectionLimits {
  int max_message_bytes = 8 << 20;  // a prompt of two million tokens
  int max_concurrent_streams = 1024;
  int max_header_bytes = 16 << 10;
  // Clients that ping more often, a few times, are disconnected.
  absl::Duration min_ping_interval = absl::Seconds(10);
  // For TLS and HTTP/2 to be agreed on; then the connection is closed.
  absl::Duration handshake_timeout = absl::Seconds(10);
};

struct ServerOptions {
  std::string host = "127.0.0.1";
  int port = 8000;  // 0: any free one
  int admin_port = 8001;
  TlsFiles tls;                  // of both ports; empty: plaintext
  std::string api_token_file;    // empty: no token is needed
  std::string admin_token_file;  // empty: no token is needed
  ConnectionLimits limits;
};

// The names that health checks ask for.
inline constexpr char kGenerationServiceName[] =
    "switchyard.v1.GenerationService";
inline constexpr char kAdminServiceName[] = "switchyard.v1.AdminService";

// Client port: GenerationService, grpc.health.v1.Health (`""` is SERVING while
// the step loop makes progress, the service's name while requests are accepted)
// and reflection. Admin port: AdminService, health and reflection. Health and
// reflection need no token.
class Server {
 public:
  // Listens and serves. Unavailable names an address that cannot be listened
  // on, InvalidArgument a file of certificates or tokens that is no good.
  // `engine` and `model` are borrowed.
  static absl::StatusOr<std::unique_ptr<Server>> Start(
      const ServerOptions& options, Engine* engine, const ServedModel* model);
  // What of `options` can be known to be no good before there is an engine: the
  // files, as Start would say.
  static absl::Status Check(const ServerOptions& options);
  ~Server();  // Shutdown(0)

  std::string address() const;  // host:port, as bound
  std::string admin_address() const;

  // From here on the services are NOT_SERVING for health checks, and nothing
  // else changes.
  void AnnounceDraining();
  // What health checks hear of `""`; true at first.
  void SetAlive(bool alive);

  // Gives the streams that were admitted, and then the clients' connections,
  // up to `patience` each to end; stops, and cuts the calls that are left.
  // Clients see UNAVAILABLE. REQUIRES: the engine ends its streams meanwhile,
  // or has.
  void Shutdown(absl::Duration patience);

 private:
  struct Impl;
  explicit Server(std::unique_ptr<Impl> impl);

  const std::unique_ptr<Impl> impl_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_SERVER_H_
