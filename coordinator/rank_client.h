// The coordinator's end of one rank: its worker's RPCs and its stream of steps.
#ifndef SWITCHYARD_COORDINATOR_RANK_CLIENT_H_
#define SWITCHYARD_COORDINATOR_RANK_CLIENT_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "rpc/credentials.h"
#include "switchyard/v1/worker.pb.h"

namespace switchyard {

// Thread-safe. Callbacks come from gRPC's threads, one call each; they must not
// block and must not destroy the client. No method waits for the worker unless
// it says so.
class RankClient {
 public:
  using Done = std::function<void(absl::Status)>;

  static std::unique_ptr<RankClient> Create(
      const std::string& address, const ClientCredentials& credentials);

  // Cancels what is under way and waits for its callbacks.
  virtual ~RankClient() = default;

  // Waits for a connection. False if there is none by the deadline.
  virtual bool WaitUntilConnected(absl::Time deadline) = 0;
  // Until the connection ends: the worker's process has, or cannot be reached.
  virtual bool WaitUntilDisconnected(absl::Time deadline) = 0;

  // Without a deadline: loading takes as long as it takes.
  virtual void Configure(
      const v1::ConfigureRequest& request,
      std::function<void(absl::StatusOr<v1::ConfigureResponse>)> done) = 0;
  virtual void AllocateCache(uint64_t arena_bytes, absl::Duration timeout,
                             Done done) = 0;
  virtual void PreparePlacement(uint64_t epoch,
                                const std::vector<std::string>& mixer_names,
                                absl::Duration timeout, Done done) = 0;
  virtual void CommitPlacement(uint64_t epoch, absl::Duration timeout,
                               Done done) = 0;
  virtual void AbortPlacement(uint64_t epoch, absl::Duration timeout,
                              Done done) = 0;
  virtual void Shutdown(absl::Duration timeout, Done done) = 0;

  // Waits for the answer.
  virtual absl::StatusOr<v1::GetStatusResponse> GetStatus(
      absl::Duration timeout) = 0;

  struct StreamCallbacks {
    std::function<void()> on_open;                  // the worker accepted it
    std::function<void(v1::StepResult)> on_result;  // in order
    std::function<void(absl::Status)> on_end;  // last; OK: the worker ended it
  };
  // REQUIRES: called once.
  virtual void OpenStream(StreamCallbacks callbacks) = 0;
  // Plans travel in the order of the calls. Nothing happens after the end.
  // REQUIRES: OpenStream was called.
  virtual void Write(std::shared_ptr<const v1::StepPlan> plan) = 0;

  // Cancels every RPC under way and the stream.
  virtual void Cancel() = 0;

 protected:
  RankClient() = default;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_RANK_CLIENT_H_
