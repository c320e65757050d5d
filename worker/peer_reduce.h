// The all-reduce kernels of ranks whose GPUs reach each other's memory, which
// store straight into it. One kernel, no other synchronisation, no order of
// blocks. In one shot a rank stores its message into the memory of all others,
// and sums what arrives in its own. In two shots it stores for each peer only
// the share of the message that this one sums, sums its own share, stores the
// sum for all peers, and takes theirs (peer_form.h). A sender's place at a
// receiver is as large as a message, so both have room in it: where the
// receiver's share lies it takes the first hop, where the sender's lies the
// second.
//
// Words announce themselves: a place for a message holds kEmptyWord until the
// sender's word is there, so a reader polls the data itself, and no flag
// travels beside it. A data word that looks empty is a NaN, and is sent as
// another NaN. Whoever has read a word empties its place.
//
// Messages alternate between two sets of places, by a count in device memory
// that the kernel itself advances: nothing about a call is a parameter of its
// launch, so a recorded graph may be replayed. Two sets are enough:
//   A sends message m, in either hop, into B's set m % 2, in which message m-2
//   was. A's kernel of message m begins once A's kernel of message m-1 has
//   ended. That one had to have a sum, and in it words of B's message m-1: it
//   saw them itself, or whoever sent it the sum had seen them (some share is
//   not empty, and its sum needs every rank). B sent those in its kernel of
//   message m-1, hence after its kernel of message m-2 had ended, with all
//   places of that set emptied.
// Within a message no place is used twice: of a sender's place at a receiver,
// each hop has its own share. In the sum with norm a rank's place at itself has
// the sum of its own share; nothing else is ever there.
//
// Nobody waits in a ring: what is sent first waits for nothing, a sum for what
// is sent first, and the second hop for sums. So kernels end once the blocks of
// a number run on all ranks, whatever else runs, and whatever order they take.
//
// Sums are formed in fp32 and in rank order, (((r0 + r1) + r2) + r3), whatever
// the size and the form of the message, and rounded once.
#ifndef SWITCHYARD_WORKER_PEER_REDUCE_H_
#define SWITCHYARD_WORKER_PEER_REDUCE_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "worker/collective.h"
#include "worker/peer_form.h"

namespace switchyard {

inline constexpr int kMaxPeerRanks = 8;
inline constexpr int kMaxPeerBlocks = 264;
inline constexpr uint32_t kEmptyWord = 0xffffffffu;

// Of one rank, in its device memory. Zero before the first message.
struct PeerState {
  uint32_t turn[kMaxPeerBlocks];  // messages so far; all alike between kernels
  uint32_t stopped;               // a kernel has seen `stop`
};

// What a rank's kernels work on. Plain pointers: ranks may share a process and
// a GPU, if all their blocks fit on it together.
struct PeerBuffers {
  int rank = 0;
  int world_size = 2;      // 2, 4 or 8
  int64_t slot_bytes = 0;  // the largest message; a multiple of 16
  // Where each rank receives: [2][world_size][slot_bytes] in its memory, by set
  // and sender, all kEmptyWord before the first message.
  std::byte* slots[kMaxPeerRanks] = {};
  PeerState* state = nullptr;  // own
  // Own, page-locked host memory that the device sees: once it is not 0,
  // kernels that wait end soon, and this one and later ones leave `x`
  // undefined.
  const uint32_t* stop = nullptr;
};

inline constexpr int64_t PeerSlotsBytes(const PeerBuffers& buffers) {
  return 2 * buffers.world_size * buffers.slot_bytes;
}

// How the kernel is spread over the GPU. Alike on all ranks, so that a block
// only waits for the block of its own number.
struct PeerShape {
  int threads = 256;  // of a block at most; a multiple of 32, at most 512
  int max_blocks = kMaxPeerBlocks;  // at most kMaxPeerBlocks
  PeerForm form = PeerForm::kBySize;
};

// x <- the sum over ranks of x, in place. Any alignment of whole elements.
// REQUIRES: 0 < num_elements * the type's bytes <= buffers.slot_bytes, which is
// below 2 GiB.
absl::Status LaunchPeerReduce(const PeerBuffers& buffers, void* x,
                              int64_t num_elements, CollectiveType type,
                              cudaStream_t stream, PeerShape shape = {});

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_PEER_REDUCE_H_
