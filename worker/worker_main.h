// One rank as a process: the body of `switchyard worker`.
#ifndef SWITCHYARD_WORKER_WORKER_MAIN_H_
#define SWITCHYARD_WORKER_WORKER_MAIN_H_

#include <functional>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "log/log.h"
#include "rpc/credentials.h"
#include "worker/step_executor.h"

namespace switchyard {

struct WorkerOptions {
  std::string listen = "127.0.0.1";  // address
  int port = 9000;                   // 0 picks one
  std::optional<int> health_port;    // 0 picks one; none: no such port
  std::string device = "auto";       // auto, cpu, cuda or cuda:N
  int num_threads = 0;               // of the CPU device; 0: its choice
  bool own_all_reduce = true;        // see PeerCollectiveOptions
  absl::Duration collective_timeout = absl::Seconds(20);
  ClientFiles group;  // see WorkerServiceOptions
  bool exit_with_parent = false;
  LogFormat log_format = LogFormat::kText;
  LogLevel log_level = LogLevel::kInfo;
};

// Makes the backend of a device. kInvalidArgument or kUnavailable names the
// device that is unknown or not there.
using WorkerBackendFactory =
    std::function<absl::StatusOr<WorkerBackend>(const WorkerOptions&)>;

// Serves one group and returns the process's exit code: 0 after a clean
// shutdown (by the coordinator or SIGTERM), 1 otherwise, with the reason in the
// log. Prints `health on HOST:PORT`, if it has such a port, and
// `worker listening on HOST:PORT` on stdout when it is ready. Call it from the
// main thread, before other threads start: it blocks SIGTERM and SIGINT in all
// of them.
int WorkerMain(const WorkerOptions& options,
               const WorkerBackendFactory& make_backend);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_WORKER_MAIN_H_
