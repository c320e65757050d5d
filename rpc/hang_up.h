// Closing a port's connections from below gRPC.
#ifndef SWITCHYARD_RPC_HANG_UP_H_
#define SWITCHYARD_RPC_HANG_UP_H_

#include "absl/time/time.h"

namespace switchyard {

// Stops listening on the TCP port `port` of this process and says goodbye on
// its connections: what has been written still goes out, nothing more does.
// Waits until the peers have acknowledged it all, at most for `patience`: a
// socket that is closed earlier may take back what is on its way.
//
// To be called before gRPC's own shutdown, which cancels the calls that arrive
// while it goes on. Their clients would see CANCELLED, which tells nothing of
// what has been done; from a connection that ends they get UNAVAILABLE, and may
// try elsewhere.
void HangUp(int port, absl::Duration patience);

}  // namespace switchyard

#endif  // SWITCHYARD_RPC_HANG_UP_H_
