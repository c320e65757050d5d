#include "worker/worker_main.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/match.h"

namespace switchyard {
namespace {

TEST(ParseWorkerOptions, ReadsEveryFlag) {
  const absl::StatusOr<WorkerOptions> options =
      ParseWorkerOptions({"--port", "0", "--listen=0.0.0.0", "--device",
                          "cuda:1", "--threads=3", "--collective-timeout", "5",
                          "--exit-with-parent", "--health-port=9002",
                          "--all-reduce=nccl"});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->port, 0);
  EXPECT_EQ(options->listen, "0.0.0.0");
  EXPECT_EQ(options->device, "cuda:1");
  EXPECT_EQ(options->num_threads, 3);
  EXPECT_EQ(options->collective_timeout, absl::Seconds(5));
  EXPECT_TRUE(options->exit_with_parent);
  EXPECT_EQ(options->health_port, 9002);
  EXPECT_FALSE(options->own_all_reduce);
  EXPECT_FALSE(options->help);
  EXPECT_TRUE(ParseWorkerOptions({})->own_all_reduce);
  EXPECT_FALSE(ParseWorkerOptions({})->health_port.has_value());
}

TEST(ParseWorkerOptions, NamesTheBadFlag) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"--port", "65536"}, "--port"},
      {{"--port", "x"}, "--port"},
      {{"--port"}, "--port"},
      {{"--health-port", "-1"}, "--health-port"},
      {{"--threads=0"}, "--threads"},
      {{"--device", "tpu"}, "--device"},
      {{"--all-reduce", "gloo"}, "--all-reduce"},
      {{"--device", "cuda:"}, "--device"},
      {{"--collective-timeout=0"}, "--collective-timeout"},
      {{"--exit-with-parent=1"}, "--exit-with-parent"},
      {{"--speed", "9"}, "--speed"},
      {{"9000"}, "9000"},
  };
  for (const auto& [args, name] : cases) {
    const absl::Status status = ParseWorkerOptions(args).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << name << ": " << status;
    EXPECT_TRUE(absl::StrContains(status.message(), name)) << status;
  }
}

TEST(WorkerHelp, ListsEveryFlag) {
  for (const char* flag :
       {"--port", "--listen", "--device", "--threads", "--collective-timeout",
        "--all-reduce", "--exit-with-parent", "--health-port"}) {
    EXPECT_TRUE(absl::StrContains(WorkerHelp(), flag)) << flag;
  }
}

}  // namespace
}  // namespace switchyard
