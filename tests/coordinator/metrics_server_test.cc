#include "coordinator/metrics_server.h"

#include <gtest/gtest.h>
#include <httplib.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace switchyard {
namespace {

class MetricsServerTest : public ::testing::Test {
 protected:
  MetricsServerTest() : metrics_(MetricsOptions{"made-up", 4096, 1}) {
    options_.port = 0;
    server_ = MetricsServer::Start(options_, &metrics_).value();
  }

  int port() const {
    const std::string& address = server_->address();
    return std::stoi(address.substr(address.rfind(':') + 1));
  }

  Metrics metrics_;
  MetricsServerOptions options_;
  std::unique_ptr<MetricsServer> server_;
};

TEST_F(MetricsServerTest, ServesTheTextFormat) {
  httplib::Client client("127.0.0.1", port());
  const httplib::Result result = client.Get("/metrics");
  ASSERT_TRUE(result);
  EXPECT_EQ(result->status, 200);
  EXPECT_EQ(result->get_header_value("Content-Type"),
            "text/plain; version=0.0.4; charset=utf-8");
  EXPECT_NE(result->body.find("# TYPE switchyard_num_requests_running gauge"),
            std::string::npos);
}

TEST_F(MetricsServerTest, HasNothingElse) {
  httplib::Client client("127.0.0.1", port());
  for (const char* path : {"/", "/metrics/more", "/../etc/passwd"}) {
    const httplib::Result result = client.Get(path);
    ASSERT_TRUE(result) << path;
    EXPECT_EQ(result->status, 404) << path;
  }
  const httplib::Result posted =
      client.Post("/metrics", "more=1", "text/plain");
  ASSERT_TRUE(posted);
  EXPECT_EQ(posted->status, 404);
}

TEST_F(MetricsServerTest, ServesManyAtATime) {
  std::vector<std::thread> scrapers;
  std::vector<int> statuses(8, 0);
  for (int& status : statuses) {
    scrapers.emplace_back([this, &status] {
      httplib::Client client("127.0.0.1", port());
      for (int i = 0; i < 20; ++i) {
        const httplib::Result result = client.Get("/metrics");
        status = result ? result->status : -1;
      }
    });
  }
  for (std::thread& scraper : scrapers) scraper.join();
  EXPECT_EQ(statuses, std::vector<int>(8, 200));
}

TEST_F(MetricsServerTest, SaysThatAPortIsTaken) {
  MetricsServerOptions same = options_;
  same.port = port();
  const auto second = MetricsServer::Start(same, &metrics_);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_NE(second.status().message().find(std::to_string(port())),
            std::string::npos);
}

}  // namespace
}  // namespace switchyard
