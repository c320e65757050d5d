// Addresses as gRPC takes them.
#ifndef SWITCHYARD_RPC_HOST_PORT_H_
#define SWITCHYARD_RPC_HOST_PORT_H_

#include <string>

#include "absl/strings/str_cat.h"

namespace switchyard {

// "host:port"; a literal IPv6 address gets its brackets.
inline std::string JoinHostPort(const std::string& host, int port) {
  const bool is_ipv6 = host.find(':') != std::string::npos && host[0] != '[';
  return is_ipv6 ? absl::StrCat("[", host, "]:", port)
                 : absl::StrCat(host, ":", port);
}

}  // namespace switchyard

#endif  // SWITCHYARD_RPC_HOST_PORT_H_
