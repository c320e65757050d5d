// The life of a coordinator process, from its options to its exit code: the
// body of `switchyard coordinator`, and of `switchyard serve` once its workers
// run.
#ifndef SWITCHYARD_COORDINATOR_COORDINATOR_MAIN_H_
#define SWITCHYARD_COORDINATOR_COORDINATOR_MAIN_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/engine.h"
#include "coordinator/placements.h"
#include "coordinator/sampling_params.h"
#include "coordinator/served_model.h"
#include "coordinator/server.h"
#include "coordinator/stop_requests.h"
#include "model/cache_spec.h"
#include "model/rank_group.h"
#include "rpc/credentials.h"

namespace switchyard {

struct CoordinatorOptions {
  std::string model_dir;
  std::string random_init;   // instead of model_dir: a named shape
  std::string presets_file;  // empty: none
  std::string placement;     // preset or a,b,...; empty: the checkpoint's own
  std::string dtype = "auto";
  std::optional<uint32_t> max_context_tokens;  // default: the model's

  ServerOptions server;
  RequestLimits limits;
  ClientFiles group;       // how the coordinator shows itself to its workers
  int health_port = 8002;  // 0: any free one
  EngineOptions engine;

  int32_t block_size = kDefaultBlockSize;
  std::optional<int64_t> cache_bytes;  // per rank; default: what ranks offer
  bool poison_freed_cache = false;
  bool batch_invariant = false;
  bool cuda_graphs = true;
  int32_t overlap_tokens = kDefaultOverlapTokens;

  // Prometheus scrapes here, on the host of `server`; 0: any free one.
  int metrics_port = 8003;

  std::string log_format = "text";  // ParseLogFormat
  std::string log_level = "info";   // ParseLogLevel

  absl::Duration connect_timeout = absl::Seconds(30);
  absl::Duration step_timeout = absl::Seconds(60);
  absl::Duration drain_timeout = absl::Seconds(30);
  // A step that takes longer is no progress for health checks.
  absl::Duration liveness_timeout = absl::Seconds(60);
};

// What a coordinator reads from disk.
struct CoordinatorModel {
  ServedModel served;
  std::optional<PlacementTable> placements;  // points into `served`
};

// Reads and checks everything that needs no worker: the model's configuration
// and whether it splits over `world_size` ranks, tokenizer, presets, the
// default placement. Errors name the file and the field, or the flag.
absl::StatusOr<std::unique_ptr<CoordinatorModel>> LoadCoordinatorModel(
    const CoordinatorOptions& options, int32_t world_size);

// Connects to the workers (host:port, by rank), serves until SIGTERM or SIGINT,
// or until the group is lost, and returns the exit code: 0 after a clean stop;
// 1, with one line on stderr, otherwise.
//
// It prints `health on HOST:PORT` on stdout before the workers load, and
// `serving on HOST:PORT`, `admin on HOST:PORT` and `metrics on HOST:PORT` when
// it is ready. The first signal takes readiness back, refuses new requests and
// lets running streams end; after drain_timeout, or at a second signal, the
// rest ends with UNAVAILABLE. `stop` is borrowed.
int RunCoordinator(const CoordinatorOptions& options, CoordinatorModel* model,
                   const std::vector<std::string>& workers, StopRequests* stop);

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_COORDINATOR_MAIN_H_
