// The ranks of one tensor-parallel group as one step runner.
//
// Every plan goes to every rank, and a step counts only when all ranks have
// answered it in time without error. The first thing that goes wrong loses the
// group for good: all streams are cancelled, which ends the workers, and every
// later call returns the status that names the rank, its address and the step.
#ifndef SWITCHYARD_COORDINATOR_WORKER_GROUP_H_
#define SWITCHYARD_COORDINATOR_WORKER_GROUP_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/step_runner.h"
#include "rpc/credentials.h"
#include "switchyard/v1/worker.pb.h"

namespace switchyard {

struct WorkerGroupOptions {
  std::vector<std::string> addresses;  // host:port of each worker, by rank
  ClientCredentials credentials;       // shown to them
  // For every rank; rank, world_size and rendezvous_address are filled in.
  v1::ConfigureRequest configure;
  // The cache arena of each rank; 0: as much as the poorest rank has.
  uint64_t cache_bytes = 0;

  absl::Duration connect_timeout = absl::Seconds(30);
  // From Submit, or from the end of the step before, to the last rank's result.
  absl::Duration step_timeout = absl::Seconds(30);
  // For allocating the cache, and for each phase of a placement change.
  absl::Duration control_timeout = absl::Minutes(2);

  // Called several times a second while the ranks load, with sums over them.
  std::function<void(uint64_t bytes_loaded, uint64_t bytes_total)> on_progress;
};

class WorkerGroup : public StepRunner {
 public:
  // Connects, configures all ranks, allocates their caches and opens their
  // streams. An error names the rank and its address; no worker then stays
  // configured. Errors: kUnavailable (a worker is not there), kInvalidArgument
  // (no address, or one twice), kResourceExhausted (cache_bytes do not fit),
  // and what a rank's Configure returns.
  static absl::StatusOr<std::unique_ptr<WorkerGroup>> Start(
      const WorkerGroupOptions& options);

  // Shuts the workers down if that was not done. REQUIRES: no other call runs.
  ~WorkerGroup() override = default;

  // Tells every worker to exit cleanly, and loses the group without calling
  // the failure callback. What is in flight fails. Any thread; idempotent.
  virtual void Shutdown() = 0;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_WORKER_GROUP_H_
