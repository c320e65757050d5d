// The collective of CPU ranks: TCP connections made by Gloo.
//
// Gloo's own all-reduce costs a quarter of a millisecond for the few kilobytes
// of a decode step, most of it in hand-overs to its event thread, and its order
// of summation depends on the message. So ranks exchange chunks over Gloo's
// bound buffers in synchronous mode, where the calling thread itself writes and
// reads the socket, and each sums in rank order.
#ifndef SWITCHYARD_WORKER_GLOO_COLLECTIVE_H_
#define SWITCHYARD_WORKER_GLOO_COLLECTIVE_H_

#include <memory>

#include "absl/status/statusor.h"
#include "worker/collective.h"

namespace switchyard {

// A CollectiveFactory. REQUIRES: the process ignores SIGPIPE, which Gloo's
// writes to a lost peer raise. Supports kFloat32 reductions; gathers of any
// type.
absl::StatusOr<std::unique_ptr<Collective>> MakeGlooCollective(
    const CollectiveOptions& options, Rendezvous& rendezvous);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_GLOO_COLLECTIVE_H_
