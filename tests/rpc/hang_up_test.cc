#include "rpc/hang_up.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>

#include "absl/time/clock.h"

namespace switchyard {
namespace {

TEST(HangUpTest, DeliversWhatWasWrittenAndEndsWithoutThePeersHelp) {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  auto* const any = reinterpret_cast<sockaddr*>(&address);
  ASSERT_EQ(bind(listener, any, size), 0);
  ASSERT_EQ(listen(listener, 5), 0);
  ASSERT_EQ(getsockname(listener, any, &size), 0);
  const int client = socket(AF_INET, SOCK_STREAM, 0);
  ASSERT_EQ(connect(client, any, size), 0);
  const int server = accept(listener, nullptr, nullptr);
  ASSERT_EQ(write(client, "unread", 6), 6);
  ASSERT_EQ(write(server, "goodbye", 7), 7);

  const absl::Time start = absl::Now();
  HangUp(ntohs(address.sin_port), absl::Minutes(1));
  EXPECT_LT(absl::Now() - start, absl::Seconds(30));
  close(server);  // with something unread: a reset

  char bytes[16];
  EXPECT_EQ(read(client, bytes, sizeof(bytes)), 7);
  EXPECT_EQ(std::string(bytes, 7), "goodbye");
  const int late = socket(AF_INET, SOCK_STREAM, 0);
  EXPECT_NE(connect(late, any, size), 0);
  for (const int fd : {listener, client, late}) close(fd);
}

}  // namespace
}  // namespace switchyard
