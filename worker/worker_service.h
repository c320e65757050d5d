// The gRPC face of a worker session: switchyard.v1.WorkerService on a port.
#ifndef SWITCHYARD_WORKER_WORKER_SERVICE_H_
#define SWITCHYARD_WORKER_WORKER_SERVICE_H_

#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/step_executor.h"
#include "worker/worker_session.h"

namespace switchyard {

struct WorkerServiceOptions {
  std::string host = "127.0.0.1";
  int port = 0;  // 0 picks one
  // grpc.health.v1 in plaintext, for probes: `""` is alive, the service's name
  // SERVING from when the model is loaded until the group is over. Unset: none;
  // 0 picks one.
  std::optional<int> health_port;
  // Who may call: `session.group` is what this worker shows to others, and with
  // its files it also checks them: its CA signs the certificates of callers,
  // its token file has the tokens that they bring.
  WorkerSessionOptions session;
  // How long responses under way may take to leave when the service stops.
  absl::Duration shutdown_grace = absl::Seconds(1);
};

// Thread-safe.
class WorkerService {
 public:
  // `on_over` is called once, from an unspecified thread, when the worker's
  // group is over; it may be null and must not destroy the service. Errors:
  // kUnavailable names the address that it cannot listen on, kInvalidArgument a
  // file of certificates or tokens that is no good.
  static absl::StatusOr<std::unique_ptr<WorkerService>> Start(
      WorkerBackend backend, const WorkerServiceOptions& options,
      std::function<void()> on_over);

  virtual ~WorkerService() = default;  // stops the server, ends the session

  virtual int port() const = 0;
  virtual std::optional<int> health_port() const = 0;

  // What the session does; End on it ends the worker.
  virtual WorkerSession& session() = 0;

 protected:
  WorkerService() = default;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_WORKER_SERVICE_H_
