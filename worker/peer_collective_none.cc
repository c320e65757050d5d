#include "worker/peer_collective.h"

namespace switchyard {

absl::StatusOr<std::unique_ptr<Collective>> MakePeerCollective(
    const PeerCollectiveOptions&, Rendezvous&) {
  return absl::UnimplementedError(
      "this build has no CUDA, and so no collective of GPUs");
}

}  // namespace switchyard
