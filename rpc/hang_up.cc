#include "rpc/hang_up.h"

#include <dirent.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <memory>

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

// Returns how many connections are still open.
int ShutDownSockets(int port) {
  const std::unique_ptr<DIR, decltype(&closedir)> folder(
      opendir("/proc/self/fd"), &closedir);
  if (folder == nullptr) return 0;
  int num_open = 0;
  while (const dirent* entry = readdir(folder.get())) {
    int fd;
    if (!absl::SimpleAtoi(entry->d_name, &fd) || LocalPort(fd) != port)
      continue;
    int is_listening = 0;
    socklen_t size = sizeof(is_listening);
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &is_listening, &size) != 0)
      continue;
    shutdown(fd, is_listening ? SHUT_RD : SHUT_WR);
    num_open += !is_listening;
  }
  return num_open;
}

}  // namespace

void HangUp(int port, absl::Duration patience) {
  const absl::Time deadline = absl::Now() + patience;
  while (ShutDownSockets(port) > 0 && absl::Now() < deadline) {
    absl::SleepFor(kPollInterval);
  }
}

}  // namespace switchyard
