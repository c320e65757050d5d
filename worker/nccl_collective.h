// The collective of ranks on NVIDIA GPUs, over NCCL.
#ifndef SWITCHYARD_WORKER_NCCL_COLLECTIVE_H_
#define SWITCHYARD_WORKER_NCCL_COLLECTIVE_H_

#include <memory>

#include "absl/status/statusor.h"
#include "worker/collective.h"

namespace switchyard {

// Meets the peers: rank 0 puts NCCL's unique id into the rendezvous, the others
// take it from there. The calling thread's current CUDA device is the rank's.
//
// Operations are asynchronous on the stream they are given and may be captured
// into a CUDA graph; such graphs must be destroyed before the collective is.
// Their errors surface asynchronously: a thread of the collective watches the
// communicator, and when NCCL reports one, or Abort() is called, it aborts the
// communicator, which releases kernels that wait for a peer. After that every
// operation returns the error.
//
// Sums are formed in an order of NCCL's choice: the same bits on every rank,
// but not the rank order of the CPU's collective.
//
// Unimplemented in a build without CUDA.
absl::StatusOr<std::unique_ptr<Collective>> MakeNcclCollective(
    const CollectiveOptions& options, Rendezvous& rendezvous);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_NCCL_COLLECTIVE_H_
