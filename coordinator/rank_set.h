// The ranks of one group, addressed together: how they are reached, set up and
// asked all at once. It knows nothing of steps.
#ifndef SWITCHYARD_COORDINATOR_RANK_SET_H_
#define SWITCHYARD_COORDINATOR_RANK_SET_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/rank_client.h"
#include "rpc/credentials.h"
#include "switchyard/v1/worker.pb.h"

namespace switchyard {

// Every method waits for what it asks, and every error names the rank and its
// address. Set up by one thread; afterwards thread-safe.
class RankSet {
 public:
  using Progress =
      std::function<void(uint64_t bytes_loaded, uint64_t bytes_total)>;

  explicit RankSet(const std::vector<std::string>& addresses,
                   const ClientCredentials& credentials = {});

  size_t size() const { return clients_.size(); }
  RankClient& operator[](size_t rank) { return *clients_[rank]; }
  const std::string& address(size_t rank) const { return addresses_[rank]; }

  // "rank 1 at 10.0.0.7:9000"
  std::string Name(size_t rank) const;

  // Waits until every rank is there and free. A worker that belongs to another
  // group never is again: its process has to end and start anew first, which
  // this does not hurry. By the deadline: kUnavailable lists the ranks that are
  // not there, kFailedPrecondition those that are not free.
  absl::Status Connect(absl::Duration timeout);

  // Configures all ranks in parallel; `request` lacks only what differs among
  // them. Calls `progress`, which may be null, several times a second. The
  // first failure cancels the others and is returned. By rank.
  absl::StatusOr<std::vector<v1::ConfigureResponse>> Configure(
      const v1::ConfigureRequest& request, const Progress& progress);

  // Makes one call to every rank in parallel. The first error, by rank.
  absl::Status OnEvery(
      const std::function<void(size_t rank, RankClient::Done)>& call);

  // Tells the ranks that this set configured to exit, and no others.
  void Shutdown(absl::Duration timeout);

  void Cancel();

 private:
  absl::StatusOr<bool> IsFree(size_t rank);
  absl::Status Annotate(size_t rank, const absl::Status& status) const;
  void Report(const Progress& progress);

  const std::vector<std::string> addresses_;
  std::vector<bool> configured_;  // by rank
  std::vector<std::unique_ptr<RankClient>> clients_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_RANK_SET_H_
