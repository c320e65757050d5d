// Whether ports can be listened on, before there is anything to serve.
#ifndef SWITCHYARD_RPC_PORT_CHECK_H_
#define SWITCHYARD_RPC_PORT_CHECK_H_

#include <string>
#include <vector>

#include "absl/status/status.h"

namespace switchyard {

struct WantedPort {
  std::string flag;  // that asks for it: --port
  int port = 0;      // 0: any free one
};

// Listens on all of `ports` at `host` for a moment. InvalidArgument if the host
// is no address, Unavailable if a port cannot be had; both name the flag.
absl::Status CheckPorts(const std::string& host,
                        const std::vector<WantedPort>& ports);

}  // namespace switchyard

#endif  // SWITCHYARD_RPC_PORT_CHECK_H_
