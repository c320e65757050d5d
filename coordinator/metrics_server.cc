#include "coordinator/metrics_server.h"

#include <httplib.h>
#include <sys/socket.h>

#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "rpc/host_port.h"

namespace switchyard {
namespace {

// Scrapers that a slow or silent one cannot hold up.
constexpr int kNumThreads = 32;
// A scraper that does not speak or listen for this long is cut off.
constexpr time_t kPatienceSeconds = 5;
constexpr size_t kMaxBodyBytes = 1024;

class MetricsServerImpl final : public MetricsServer {
 public:
  explicit MetricsServerImpl(const Metrics* metrics) {
    http_.new_task_queue = [] { return new httplib::ThreadPool(kNumThreads); };
    http_.set_read_timeout(kPatienceSeconds);
    http_.set_write_timeout(kPatienceSeconds);
    http_.set_keep_alive_timeout(kPatienceSeconds);
    http_.set_payload_max_length(kMaxBodyBytes);
    // Two servers must not share a port by accident: no SO_REUSEPORT.
    http_.set_socket_options([](socket_t socket) {
      const int yes = 1;
      setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    });
    http_.Get("/metrics", [metrics](const httplib::Request&,
                                    httplib::Response& response) {
      response.set_content(metrics->Scrape(),
                           "text/plain; version=0.0.4; charset=utf-8");
    });
  }

  ~MetricsServerImpl() override {
    if (!thread_.joinable()) return;
    http_.stop();
    thread_.join();
  }

  absl::Status Listen(const MetricsServerOptions& options) {
    int port = options.port;
    if (port == 0) {
      port = http_.bind_to_any_port(options.host);
    } else if (!http_.bind_to_port(options.host, port)) {
      port = -1;
    }
    if (port <= 0) {
      return absl::UnavailableError(absl::StrCat(
          "cannot listen on ", JoinHostPort(options.host, options.port),
          " for metrics: the port is taken, or the address is "
          "not this machine's"));
    }
    address_ = JoinHostPort(options.host, port);
    thread_ = std::thread([this] { http_.listen_after_bind(); });
    // stop() has no effect on a server that does not run yet.
    while (!http_.is_running()) std::this_thread::yield();
    return absl::OkStatus();
  }

  const std::string& address() const override { return address_; }

 private:
  httplib::Server http_;
  std::string address_;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(
    const MetricsServerOptions& options, const Metrics* metrics) {
  auto server = std::make_unique<MetricsServerImpl>(metrics);
  absl::Status listening = server->Listen(options);
  if (!listening.ok()) return listening;
  return server;
}

}  // namespace switchyard
