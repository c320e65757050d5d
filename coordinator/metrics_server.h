// The port that Prometheus scrapes.
#ifndef SWITCHYARD_COORDINATOR_METRICS_SERVER_H_
#define SWITCHYARD_COORDINATOR_METRICS_SERVER_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "coordinator/metrics.h"

namespace switchyard {

struct MetricsServerOptions {
  std::string host = "127.0.0.1";
  int port = 8003;  // 0: any free one
};

// Plain HTTP: GET /metrics, in Prometheus' text format; nothing else is there.
class MetricsServer {
 public:
  // `metrics` is borrowed. Unavailable names an address that cannot be listened
  // on.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(
      const MetricsServerOptions& options, const Metrics* metrics);
  virtual ~MetricsServer() = default;  // stops listening

  virtual const std::string& address() const = 0;  // host:port, as bound

 protected:
  MetricsServer() = default;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_METRICS_SERVER_H_
