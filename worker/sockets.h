// Small questions to the kernel about addresses and sockets.
#ifndef SWITCHYARD_WORKER_SOCKETS_H_
#define SWITCHYARD_WORKER_SOCKETS_H_

#include <sys/socket.h>

#include <string>

#include "absl/status/statusor.h"

namespace switchyard {

// The address of this machine's interface that leads to `address` (host:port):
// what peers that know this machine's group by `address` can reach. Errors:
// kUnavailable if the host does not resolve or there is no route.
absl::StatusOr<std::string> LocalHostTowards(const std::string& address);

// A duplicate of this process's connected socket whose own end is `local`; the
// caller closes it. kNotFound if there is none.
absl::StatusOr<int> DuplicateSocketAt(const sockaddr_storage& local);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_SOCKETS_H_
