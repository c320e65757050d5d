// The peers' sum (peer_reduce.h) of a layer's rows that goes on, in the same
// kernel, with the residual and the norm.
#ifndef SWITCHYARD_WORKER_PEER_REDUCE_NORM_H_
#define SWITCHYARD_WORKER_PEER_REDUCE_NORM_H_

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "kernels/rms_norm.h"
#include "worker/peer_form.h"
#include "worker/peer_reduce.h"

namespace switchyard {

// Blocks of LaunchPeerReduceNorm. One may fill an SM, and all are to run at
// once: they wait for the peers', whatever order each GPU starts them in.
inline constexpr int kMaxPeerNormRows = 64;

// Whether LaunchPeerReduceNorm has a kernel for args: rows of whole units of
// 8 columns, at most 8192, at most kMaxPeerNormRows of them, and a delta in
// fp32 that is a message. By types and shapes alone.
bool CanReduceNorm(const PeerBuffers& buffers, const AddRmsNormArgs& args);

// AddRmsNorm(args) with the sum over ranks of args.delta, which itself stays as
// it is: the bits of LaunchPeerReduce and AddRmsNorm one after the other. A
// message like any other, of the rows of out; calls of the two may alternate as
// they like. A block of a row sends it, or the peers' shares of it, waits for
// the peers' and goes on with the sum in registers.
// REQUIRES: CanReduceNorm(buffers, args); matrices, rows and weight begin on 16
// bytes; the maps are not written by kernels of the step (cuda_common.h).
absl::Status LaunchPeerReduceNorm(const PeerBuffers& buffers,
                                  const AddRmsNormArgs& args,
                                  cudaStream_t stream,
                                  PeerForm form = PeerForm::kBySize);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_PEER_REDUCE_NORM_H_
