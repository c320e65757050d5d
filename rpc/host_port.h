// Addresses as gRPC takes them.
#ifndef SWITCHYARD_RPC_HOST_PORT_H_
#define SWITCHYARD_RPC_HOST_PORT_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace switchyard {

// "host:port"; a literal IPv6 address gets its brackets.
inline std::string JoinHostPort(const std::string& host, int port) {
  const bool is_ipv6 = host.find(':') != std::string::npos && host[0] != '[';
  return is_ipv6 ? absl::StrCat("[", host, "]:", port)
                 : absl::StrCat(host, ":", port);
}

// InvalidArgument unless `address` is a host, a colon and a port from 1 on.
inline absl::Status CheckHostPort(absl::string_view address) {
  const size_t colon = address.rfind(':');
  const absl::string_view host = address.substr(0, colon);
  int port = 0;
  const bool has_port = colon != absl::string_view::npos &&
                        absl::SimpleAtoi(address.substr(colon + 1), &port) &&
                        port > 0 && port <= 65535;
  const bool is_ipv6 =
      host.size() > 2 && host.front() == '[' && host.back() == ']';
  if (has_port && !host.empty() &&
      (is_ipv6 || host.find_first_of(":/[] ") == absl::string_view::npos)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("\"", address,
                   "\" is not HOST:PORT, such as 10.0.0.1:9000, [::1]:9000 or "
                   "worker-0:9000"));
}

}  // namespace switchyard

#endif  // SWITCHYARD_RPC_HOST_PORT_H_
