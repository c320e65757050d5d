#include "rpc/hang_up.h"

#include <dirent.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"

namespace switchyard {
namespace {

constexpr absl::Duration kPollInterval = absl::Milliseconds(5);

// Of a TCP socket; -1 for anything else.
int LocalPort(int fd) {
  sockaddr_storage address = {};
  socklen_t size = sizeof(address);
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0)
    return -1;
  switch (address.ss_family) {
    case AF_INET:
      return ntohs(reinterpret_cast<sockaddr_in*>(&address)->sin_port);
    case AF_INET6:
      return ntohs(reinterpret_cast<sockaddr_in6*>(&address)->sin6_port);
    default:
      return -1;
  }
}

// TCP_ESTABLISHED and the like; -1 for anything but a TCP socket.
int TcpState(int fd) {
  tcp_info info = {};
  socklen_t size = sizeof(info);
  if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0) return -1;
  return info.tcpi_state;
}

// Whether the peer has not acknowledged everything, the end included.
bool IsBusy(int state) {
  return state == TCP_ESTABLISHED || state == TCP_CLOSE_WAIT ||
         state == TCP_FIN_WAIT1 || state == TCP_CLOSING ||
         state == TCP_LAST_ACK;
}

// Returns how many connections are busy still.
int ShutDownSockets(int port) {
  DIR* const folder = opendir("/proc/self/fd");
  if (folder == nullptr) return 0;
  int num_busy = 0;
  while (const dirent* entry = readdir(folder)) {
    int fd;
    if (!absl::SimpleAtoi(entry->d_name, &fd) || LocalPort(fd) != port)
      continue;
    shutdown(fd, TcpState(fd) == TCP_LISTEN ? SHUT_RD : SHUT_WR);
    num_busy += IsBusy(TcpState(fd));
  }
  closedir(folder);
  return num_busy;
}

}  // namespace

void HangUp(int port, absl::Duration patience) {
  const absl::Time deadline = absl::Now() + patience;
  while (ShutDownSockets(port) > 0 && absl::Now() < deadline) {
    absl::SleepFor(kPollInterval);
  }
}

}  // namespace switchyard
