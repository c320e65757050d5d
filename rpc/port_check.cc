#include "rpc/port_check.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "rpc/host_port.h"

namespace switchyard {
namespace {

// A listening socket, or -1 with errno.
int ListenOn(const addrinfo& address) {
  const int fd = socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  // As the servers do: connections that have ended do not hold the port.
  const int yes = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
  if (bind(fd, address.ai_addr, address.ai_addrlen) == 0 &&
      listen(fd, /*backlog=*/1) == 0) {
    return fd;
  }
  const int error = errno;
  close(fd);
  errno = error;
  return -1;
}

}  // namespace

absl::Status CheckPorts(const std::string& host,
                        const std::vector<WantedPort>& ports) {
  // Open until all have been tried, so that no two flags name the same port.
  std::vector<int> sockets;
  const auto close_all = absl::MakeCleanup([&sockets] {
    for (const int fd : sockets) close(fd);
  });
  for (const WantedPort& wanted : ports) {
    addrinfo hints = {};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_PASSIVE;
    addrinfo* address = nullptr;
    const int error = getaddrinfo(
        host.c_str(), absl::StrCat(wanted.port).c_str(), &hints, &address);
    if (error != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("--host=", host, ": ", gai_strerror(error)));
    }
    const int fd = ListenOn(*address);
    const int listen_error = errno;
    freeaddrinfo(address);
    if (fd < 0) {
      return absl::UnavailableError(absl::StrCat(
          wanted.flag, "=", wanted.port, ": cannot listen on ",
          JoinHostPort(host, wanted.port), ": ", std::strerror(listen_error)));
    }
    sockets.push_back(fd);
  }
  return absl::OkStatus();
}

}  // namespace switchyard
