#include "cli/flags.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <vector>

namespace switchyard {
namespace {

struct Options {
  std::string model;
  std::string device = "auto";
  int port = 8000;
  bool async = true;
  bool json = false;
  double temperature = 1;
  std::optional<uint32_t> top_k;
  std::optional<uint64_t> seed;
  std::optional<int64_t> cache_bytes;
  absl::Duration timeout = absl::Seconds(30);
  std::vector<std::string> workers;
  std::string input;
};

class FlagsTest : public ::testing::Test {
 protected:
  FlagsTest() : flags_("switchyard try", "Tries flags.", "INPUT [flags]") {
    flags_.String("model", &options_.model, "DIR", "the checkpoint", kRequired);
    flags_.Choice("device", &options_.device, {"auto", "cpu"}, "where to run");
    flags_.Int("port", &options_.port, 0, 65535, "to listen on");
    flags_.Section("Engine");
    flags_.Bool("async", &options_.async, "overlap");
    flags_.Bool("json", &options_.json, "machine readable");
    flags_.Real("temperature", &options_.temperature, 0, 2, "of sampling");
    flags_.Int("top-k", &options_.top_k, 0, 1000, "candidates");
    flags_.Unsigned("seed", &options_.seed, "of the draws");
    flags_.Bytes("cache-bytes", &options_.cache_bytes, "of the arena");
    flags_.Duration("timeout", &options_.timeout, "of a step",
                    absl::Milliseconds(1));
    flags_.List("workers", &options_.workers, "H:P,...", "addresses");
    flags_.Operand("INPUT", &options_.input, "the file", kOptional);
  }

  std::string Error(std::vector<std::string> args) {
    args.push_back("--model=m");
    const auto action = flags_.Parse(args);
    EXPECT_EQ(action.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(action.status().message());
  }

  Options options_;
  FlagSet flags_;
};

TEST_F(FlagsTest, AnUnsignedNumberHas64Bits) {
  const auto action = flags_.Parse(
      std::vector<std::string>{"--model=m", "--seed=18446744073709551615"});
  ASSERT_TRUE(action.ok()) << action.status();
  EXPECT_EQ(options_.seed, 18446744073709551615u);
  for (const char* bad : {"-1", "18446744073709551616", "1.5", "x"}) {
    EXPECT_NE(Error({std::string("--seed=") + bad})
                  .find("from 0 to 18446744073709551615"),
              std::string::npos);
  }
}

TEST_F(FlagsTest, ReadsEveryKindInBothForms) {
  const auto action = flags_.Parse(std::vector<std::string>{
      "--model", "dir", "--device=cpu", "--port", "0", "--async=false",
      "--json", "--temperature", "0.5", "--top-k=7", "--cache-bytes", "1.5MiB",
      "--timeout=250ms", "--workers", "a:1, b:2", "file"});
  ASSERT_TRUE(action.ok()) << action.status();
  EXPECT_EQ(*action, FlagSet::Action::kRun);
  EXPECT_EQ(options_.model, "dir");
  EXPECT_EQ(options_.device, "cpu");
  EXPECT_EQ(options_.port, 0);
  EXPECT_FALSE(options_.async);
  EXPECT_TRUE(options_.json);
  EXPECT_EQ(options_.temperature, 0.5);
  EXPECT_EQ(options_.top_k, 7);
  EXPECT_EQ(options_.cache_bytes, 3 << 19);
  EXPECT_EQ(options_.timeout, absl::Milliseconds(250));
  EXPECT_EQ(options_.workers, (std::vector<std::string>{"a:1", "b:2"}));
  EXPECT_EQ(options_.input, "file");
}

TEST_F(FlagsTest, KeepsDefaults) {
  ASSERT_TRUE(flags_.Parse(std::vector<std::string>{"--model=m"}).ok());
  EXPECT_EQ(options_.port, 8000);
  EXPECT_TRUE(options_.async);
  EXPECT_EQ(options_.top_k, std::nullopt);
}

TEST_F(FlagsTest, NamesTheFlagAndWhatWouldBeRight) {
  EXPECT_EQ(Error({"--prot=1"}), "unknown flag --prot");
  EXPECT_EQ(Error({"-m"}), "unknown flag -m");
  EXPECT_EQ(Error({"--port=65536"}),
            "--port=65536: expected a whole number from 0 to 65535");
  EXPECT_EQ(Error({"--port", ""}),
            "--port=: expected a whole number from 0 to 65535");
  EXPECT_EQ(Error({"--device", "tpu"}),
            "--device=tpu: expected one of auto, cpu");
  EXPECT_EQ(Error({"--temperature=nan"}),
            "--temperature=nan: expected a number from 0 to 2");
  EXPECT_EQ(Error({"--json=maybe"}), "--json=maybe: expected true or false");
  EXPECT_EQ(Error({"--cache-bytes=2XB"}),
            "--cache-bytes=2XB: expected a size such as 4096, 512MiB or 2GiB");
  EXPECT_EQ(Error({"--timeout=-1s"}),
            "--timeout=-1s: expected a duration such as 500ms, 30s or 2m");
  EXPECT_EQ(Error({"--timeout=0"}),
            "--timeout=0: expected a duration of at least 1ms");
  EXPECT_EQ(Error({"--workers=a,,b"}),
            "--workers=a,,b: expected a comma separated list without empty "
            "entries");
  EXPECT_EQ(Error({"one", "two"}), "unexpected argument 'two'");
}

TEST_F(FlagsTest, NamesWhatIsMissing) {
  EXPECT_EQ(flags_.Parse({}).status().message(), "--model DIR is missing");
  EXPECT_EQ(
      flags_.Parse(std::vector<std::string>{"--model"}).status().message(),
      "--model needs a value: --model DIR");
}

TEST_F(FlagsTest, DashesAfterTheDoubleDashAreOperands) {
  ASSERT_TRUE(
      flags_.Parse(std::vector<std::string>{"--model=m", "--", "--json"}).ok());
  EXPECT_EQ(options_.input, "--json");
  EXPECT_FALSE(options_.json);
}

TEST_F(FlagsTest, HelpShowsDefaultsChoicesAndSections) {
  const auto action = flags_.Parse(std::vector<std::string>{"--help"});
  ASSERT_TRUE(action.ok());
  EXPECT_EQ(*action, FlagSet::Action::kShowHelp);
  const std::string help = flags_.Help();
  EXPECT_NE(help.find("Usage: switchyard try INPUT [flags]"),
            std::string::npos);
  EXPECT_NE(help.find("the checkpoint (required)"), std::string::npos);
  EXPECT_NE(help.find("--device auto|cpu"), std::string::npos);
  EXPECT_NE(help.find("to listen on (default: 8000)"), std::string::npos);
  EXPECT_NE(help.find("\nEngine:\n"), std::string::npos);
}

TEST(ParseBytesTest, TakesUnits) {
  EXPECT_EQ(ParseBytes("4096").value(), 4096);
  EXPECT_EQ(ParseBytes("2GiB").value(), int64_t{2} << 30);
  EXPECT_EQ(ParseBytes("3mb").value(), 3000000);
  EXPECT_FALSE(ParseBytes("").ok());
  EXPECT_FALSE(ParseBytes("GiB").ok());
  EXPECT_FALSE(ParseBytes("-1GiB").ok());
  EXPECT_FALSE(ParseBytes("99999999TiB").ok());
}

}  // namespace
}  // namespace switchyard
