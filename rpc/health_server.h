// grpc.health.v1.Health on a port of its own, in plaintext and without tokens:
// what probes ask, from before there is anything to serve.
#ifndef SWITCHYARD_RPC_HEALTH_SERVER_H_
#define SWITCHYARD_RPC_HEALTH_SERVER_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace switchyard {

// Check and Watch; List-like curiosity about other names gets NOT_FOUND.
// Thread-safe.
class HealthServer {
 public:
  // The process, `""`, is SERVING and every one of `services` NOT_SERVING until
  // Set says otherwise. `port` 0 picks one. kUnavailable names an address that
  // cannot be listened on.
  static absl::StatusOr<std::unique_ptr<HealthServer>> Start(
      const std::string& host, int port,
      const std::vector<std::string>& services);
  ~HealthServer();  // ends every Watch

  int port() const;
  const std::string& address() const;  // host:port, as bound

  void Set(const std::string& service, bool serving);

 private:
  struct Impl;
  explicit HealthServer(std::unique_ptr<Impl> impl);

  const std::unique_ptr<Impl> impl_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_RPC_HEALTH_SERVER_H_
