// How the ranks of a group find out whether they can all reach each other's
// device memory. They use it all together or not at all: an operation that one
// rank does one way and another rank another way would wait forever.
#ifndef SWITCHYARD_WORKER_PEER_AGREEMENT_H_
#define SWITCHYARD_WORKER_PEER_AGREEMENT_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/collective.h"
#include "worker/rendezvous.h"

namespace switchyard {

// One rank's means. An error of either is an objection, its message the reason;
// it does not end the group.
class PeerMemory {
 public:
  virtual ~PeerMemory() = default;
  // What the others need to reach this rank's memory.
  virtual absl::StatusOr<std::string> Share() = 0;
  // Reaches for the memory of `rank` by what it shared.
  virtual absl::Status Open(int rank, const std::string& shared) = 0;
};

struct PeerAgreement {
  bool agreed = false;
  // Why not, by the lowest rank that objected: the same on every rank.
  std::string objection;
};

// Every rank calls it once. Errors are the rendezvous's: a rank that did not
// come within options.connect_timeout, or a group that is over.
absl::StatusOr<PeerAgreement> AgreeOnPeers(const CollectiveOptions& options,
                                           Rendezvous& rendezvous,
                                           PeerMemory& memory);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_PEER_AGREEMENT_H_
