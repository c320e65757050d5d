#include "worker/sockets.h"

#include <dirent.h>
#include <netdb.h>
#include <netinet/in.h>
#include <unistd.h>

#include <cstring>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace switchyard {
namespace {

bool SameAddress(const sockaddr_storage& a, const sockaddr_storage& b) {
  if (a.ss_family != b.ss_family) return false;
  if (a.ss_family == AF_INET) {
    const auto& x = reinterpret_cast<const sockaddr_in&>(a);
    const auto& y = reinterpret_cast<const sockaddr_in&>(b);
    return x.sin_port == y.sin_port && x.sin_addr.s_addr == y.sin_addr.s_addr;
  }
  if (a.ss_family == AF_INET6) {
    const auto& x = reinterpret_cast<const sockaddr_in6&>(a);
    const auto& y = reinterpret_cast<const sockaddr_in6&>(b);
    return x.sin6_port == y.sin6_port &&
           std::memcmp(&x.sin6_addr, &y.sin6_addr, sizeof(in6_addr)) == 0;
  }
  return false;
}

}  // namespace

absl::StatusOr<std::string> LocalHostTowards(const std::string& address) {
  const size_t colon = address.rfind(':');
  std::string host = address.substr(0, colon);
  const std::string port =
      colon == std::string::npos ? "1" : address.substr(colon + 1);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']')
    host = host.substr(1, host.size() - 2);

  addrinfo hints = {};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  if (const int error =
          ::getaddrinfo(host.c_str(), port.c_str(), &hints, &found);
      error != 0) {
    return absl::UnavailableError(absl::StrCat("cannot resolve \"", address,
                                               "\": ", ::gai_strerror(error)));
  }
  const absl::Cleanup free_found = [found] { ::freeaddrinfo(found); };
  for (const addrinfo* to = found; to != nullptr; to = to->ai_next) {
    const int fd = ::socket(to->ai_family, to->ai_socktype, to->ai_protocol);
    if (fd < 0) continue;
    const absl::Cleanup close_fd = [fd] { ::close(fd); };
    // Connecting a datagram socket sends nothing: it only picks the route.
    sockaddr_storage local = {};
    socklen_t length = sizeof(local);
    char name[NI_MAXHOST];
    if (::connect(fd, to->ai_addr, to->ai_addrlen) == 0 &&
        ::getsockname(fd, reinterpret_cast<sockaddr*>(&local), &length) == 0 &&
        ::getnameinfo(reinterpret_cast<sockaddr*>(&local), length, name,
                      sizeof(name), nullptr, 0, NI_NUMERICHOST) == 0) {
      return std::string(name);
    }
  }
  return absl::UnavailableError(
      absl::StrCat("there is no route to \"", address, "\""));
}

absl::StatusOr<int> DuplicateSocketAt(const sockaddr_storage& local) {
  DIR* open_files = ::opendir("/proc/self/fd");
  if (open_files == nullptr)
    return absl::InternalError("cannot list /proc/self/fd");
  const absl::Cleanup close_dir = [open_files] { ::closedir(open_files); };
  while (const dirent* entry = ::readdir(open_files)) {
    int fd;
    if (!absl::SimpleAtoi(entry->d_name, &fd)) continue;  // "." and ".."
    sockaddr_storage own = {}, peer = {};
    socklen_t own_length = sizeof(own), peer_length = sizeof(peer);
    if (::getsockname(fd, reinterpret_cast<sockaddr*>(&own), &own_length) ==
            0 &&
        ::getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &peer_length) ==
            0 &&
        SameAddress(own, local)) {
      const int duplicate = ::dup(fd);
      if (duplicate >= 0) return duplicate;
    }
  }
  return absl::NotFoundError("no connected socket has the address asked for");
}

}  // namespace switchyard
