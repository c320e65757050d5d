#include "rpc/host_port.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

TEST(HostPortTest, JoinsWithBracketsForIpv6) {
  EXPECT_EQ(JoinHostPort("127.0.0.1", 80), "127.0.0.1:80");
  EXPECT_EQ(JoinHostPort("::1", 80), "[::1]:80");
  EXPECT_EQ(JoinHostPort("[::1]", 80), "[::1]:80");
}

TEST(HostPortTest, KnowsAnAddress) {
  for (const char* good : {"127.0.0.1:9000", "[::1]:1", "[fe80::1]:65535",
                           "worker-1.worker.default.svc:9000", "h0:9000"}) {
    EXPECT_TRUE(CheckHostPort(good).ok()) << good;
  }
  for (const char* bad :
       {"", ":", "h0", "h0:", ":9000", "h0:0", "h0:65536", "h0:-1", "h0:x",
        "::1:9000", "[]:9000", "http://h0:9000", "h0 :9000", "h0:9000/"}) {
    const absl::Status status = CheckHostPort(bad);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    EXPECT_NE(status.message().find("HOST:PORT"), std::string::npos);
  }
}

}  // namespace
}  // namespace switchyard
