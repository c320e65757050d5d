#include "cli/worker_flags.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/time/time.h"
#include "cli/flags.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

TEST(WorkerFlagsTest, ReadsEveryFlag) {
  WorkerOptions options;
  const std::optional<int> code = ParseWorkerFlags(
      std::vector<std::string>{
          "--port", "0", "--listen=0.0.0.0", "--device", "cuda:1",
          "--threads=3", "--collective-timeout", "5s", "--exit-with-parent",
          "--health-port=9002", "--all-reduce=nccl", "--group-tls-cert=c",
          "--group-tls-key=k", "--group-tls-ca=a", "--group-token-file=t",
          "--log-format=json", "--log-level=debug"},
      &options);
  ASSERT_FALSE(code.has_value()) << *code;
  EXPECT_EQ(options.port, 0);
  EXPECT_EQ(options.listen, "0.0.0.0");
  EXPECT_EQ(options.device, "cuda:1");
  EXPECT_EQ(options.num_threads, 3);
  EXPECT_EQ(options.collective_timeout, absl::Seconds(5));
  EXPECT_TRUE(options.exit_with_parent);
  EXPECT_EQ(options.health_port, 9002);
  EXPECT_FALSE(options.own_all_reduce);
  EXPECT_EQ(options.group.tls.cert, "c");
  EXPECT_EQ(options.group.tls.key, "k");
  EXPECT_EQ(options.group.tls.ca, "a");
  EXPECT_EQ(options.group.token_file, "t");
  EXPECT_EQ(options.log_format, LogFormat::kJson);
  EXPECT_EQ(options.log_level, LogLevel::kDebug);
}

TEST(WorkerFlagsTest, DefaultsAreTheOptions) {
  WorkerOptions options;
  ASSERT_FALSE(
      ParseWorkerFlags(std::vector<std::string>{}, &options).has_value());
  const WorkerOptions untouched;
  EXPECT_EQ(options.port, untouched.port);
  EXPECT_EQ(options.device, untouched.device);
  EXPECT_EQ(options.collective_timeout, untouched.collective_timeout);
  EXPECT_TRUE(options.own_all_reduce);
  EXPECT_FALSE(options.health_port.has_value());
  EXPECT_EQ(options.log_format, untouched.log_format);
  EXPECT_EQ(options.log_level, untouched.log_level);
}

TEST(WorkerFlagsTest, NamesTheBadFlag) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"--port", "65536"}, "--port"},
      {{"--port"}, "--port"},
      {{"--health-port=-1"}, "--health-port"},
      {{"--threads=-1"}, "--threads"},
      {{"--device", "tpu"}, "--device=tpu"},
      {{"--device", "cuda:"}, "--device=cuda:"},
      {{"--device", "cuda:-1"}, "--device=cuda:-1"},
      {{"--all-reduce", "gloo"}, "--all-reduce"},
      {{"--collective-timeout=0"}, "--collective-timeout"},
      {{"--speed", "9"}, "--speed"},
      {{"9000"}, "9000"},
  };
  for (const auto& [args, name] : cases) {
    WorkerOptions options;
    testing::internal::CaptureStderr();
    EXPECT_EQ(ParseWorkerFlags(args, &options), kExitUsage) << name;
    EXPECT_TRUE(absl::StrContains(testing::internal::GetCapturedStderr(), name))
        << name;
  }
}

}  // namespace
}  // namespace switchyard
