// The collective of ranks whose GPUs reach each other's memory: NCCL's, with
// all-reduces of short messages done by a kernel of our own.
#ifndef SWITCHYARD_WORKER_PEER_COLLECTIVE_H_
#define SWITCHYARD_WORKER_PEER_COLLECTIVE_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "worker/collective.h"
#include "worker/peer_form.h"

namespace switchyard {

struct PeerCollectiveOptions {
  CollectiveOptions group;
  // False: leave everything to NCCL. One such rank is enough for all.
  bool own_all_reduce = true;
  // How messages that our own kernels sum go: for measurements. Alike on all
  // ranks.
  PeerForm form = PeerForm::kBySize;
};

// Meets the peers as MakeNcclCollective does, then agrees with them: in groups
// of 2, 4 or 8 ranks, each with a GPU of its own that reaches the memory of all
// others, an all-reduce of at most kPeerMessageLimit bytes is one PeerReduce
// kernel (peer_reduce.h). Everything else, or everything if any rank objects,
// goes to NCCL; a line of the log says which, and why. The AddRmsNorm after
// such a short sum is done by the same kernel, where the row has one
// (CanReduceNorm).
//
// Short sums are formed in rank order, as the contract of collective.h has it,
// while NCCL picks an order of its own.
//
// What nccl_collective.h says of streams, graphs and errors holds here too. In
// addition a kernel that waits for a peer ends soon after Abort(), or after
// NCCL has reported an error.
//
// Unimplemented in a build without CUDA.
absl::StatusOr<std::unique_ptr<Collective>> MakePeerCollective(
    const PeerCollectiveOptions& options, Rendezvous& rendezvous);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_PEER_COLLECTIVE_H_
