#include "rpc/port_check.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>

#include "absl/strings/str_cat.h"

namespace switchyard {
namespace {

// A port of 127.0.0.1 that is listened on.
class TakenPort {
 public:
  TakenPort() : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    EXPECT_EQ(bind(fd_, generic, size), 0);
    EXPECT_EQ(listen(fd_, 1), 0);
    EXPECT_EQ(getsockname(fd_, generic, &size), 0);
    port_ = ntohs(address.sin_port);
  }
  ~TakenPort() { Free(); }

  int port() const { return port_; }
  void Free() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }

 private:
  int fd_;
  int port_ = 0;
};

TEST(PortCheckTest, FreePortsAreFine) {
  EXPECT_TRUE(
      CheckPorts("127.0.0.1", {{"--port", 0}, {"--admin-port", 0}}).ok());
  TakenPort taken;
  taken.Free();
  EXPECT_TRUE(CheckPorts("127.0.0.1", {{"--port", taken.port()}}).ok());
  EXPECT_TRUE(CheckPorts("127.0.0.1", {{"--port", taken.port()}}).ok())
      << "the first look keeps the port";
}

TEST(PortCheckTest, NamesTheFlagOfATakenPort) {
  const TakenPort taken;
  const absl::Status status =
      CheckPorts("127.0.0.1", {{"--port", 0}, {"--admin-port", taken.port()}});
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(status.message(),
            absl::StrCat("--admin-port=", taken.port(),
                         ": cannot listen on 127.0.0.1:", taken.port(),
                         ": Address already in use"));
}

TEST(PortCheckTest, TwoFlagsCannotHaveOnePort) {
  TakenPort free;
  free.Free();
  const absl::Status status = CheckPorts(
      "127.0.0.1", {{"--port", free.port()}, {"--metrics-port", free.port()}});
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(status.message().find("--metrics-port="), std::string::npos)
      << status.message();
}

TEST(PortCheckTest, NamesAHostThatIsNone) {
  const absl::Status status = CheckPorts("no host of ours", {{"--port", 0}});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(status.message().find("--host=no host of ours"), std::string::npos)
      << status.message();
}

}  // namespace
}  // namespace switchyard
