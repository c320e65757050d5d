// The two forms of the peers' sums (peer_reduce.h), and which one a message
// takes: by its kind, its size and the number of ranks alone, since all ranks
// must do the same.
//
// One shot: every rank sends its message to all others, and all sum. R - 1
// times the message leaves each of R ranks, in one hop.
// Two shots: every rank sums a share of the message, which the others send it,
// and sends them the sum. 2 (R - 1) / R of the message leaves, in two hops.
#ifndef SWITCHYARD_WORKER_PEER_FORM_H_
#define SWITCHYARD_WORKER_PEER_FORM_H_

#include <cstdint>

namespace switchyard {

// The longest message that does not go to NCCL.
inline constexpr int64_t kPeerMessageLimit = int64_t{8} << 20;

enum class PeerForm { kBySize, kOneShot, kTwoShot };

// What is summed alone, and what goes on with AddRmsNorm, where one block has a
// whole row and with it all that is sent for that row.
enum class PeerMessage { kSum, kSumAndNorm };

// From how many bytes on two shots are faster. With two ranks they send as much
// as one, and never are.
struct TwoShotsFrom {
  int world_size;
  int64_t sum_bytes;
  int64_t sum_and_norm_bytes;
};
inline constexpr TwoShotsFrom kTwoShotsFrom[] = {
    {4, 192 << 10, 0},
    {8, 64 << 10, 0},  // not measured, but further on than four in all respects
};

// `asked` itself, unless that leaves it to the size.
constexpr PeerForm PeerFormOf(PeerForm asked, PeerMessage kind, int world_size,
                              int64_t bytes) {
  if (asked != PeerForm::kBySize) return asked;
  for (const TwoShotsFrom& from : kTwoShotsFrom) {
    const int64_t least =
        kind == PeerMessage::kSum ? from.sum_bytes : from.sum_and_norm_bytes;
    if (world_size == from.world_size && bytes >= least)
      return PeerForm::kTwoShot;
  }
  return PeerForm::kOneShot;
}

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_PEER_FORM_H_
