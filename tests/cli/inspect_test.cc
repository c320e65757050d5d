#include "cli/inspect.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>
#include <string>

#include "absl/strings/match.h"

namespace switchyard {
namespace {

std::string Output(const InspectOptions& options) {
  std::ostringstream out;
  const absl::Status status = Inspect(options, out);
  EXPECT_TRUE(status.ok()) << status;
  return out.str();
}

TEST(InspectTest, DescribesASupernet) {
  InspectOptions options;
  options.model_dir = "tests/testdata/apriel2-tiny";
  options.world_size = 2;
  options.placement = "gdn,gdn,kda,sliding_window,attention,gdn";
  const std::string out = Output(options);
  for (const char* text :
       {"9.36 M in all", "attention (main)", "4 heads, 2 KV heads of 64",
        "window 64", "at most 4 blocks", "all-gdn", "(--placement)",
        "must divide decoder.block.mixer.mixers.attention.heads = 4"}) {
    EXPECT_TRUE(absl::StrContains(out, text)) << text << "\n" << out;
  }
  // Six layers of one KV head a rank: 2 * 64 floats each.
  EXPECT_TRUE(absl::StrContains(out, "3.00 KiB")) << out;
}

TEST(InspectTest, DescribesAPattern) {
  InspectOptions options;
  options.model_dir = "tests/testdata/zoo-pattern";
  const std::string out = Output(options);
  EXPECT_TRUE(absl::StrContains(out, "0, 5 ")) << out;
  EXPECT_TRUE(absl::StrContains(out, "tied embeddings")) << out;
  EXPECT_TRUE(absl::StrContains(out, "not used: decoder.blocks.attn.norm"))
      << out;
}

TEST(InspectTest, DescribesANamedShape) {
  InspectOptions options;
  options.random_init = "apriel2-15b";
  options.device = "cuda";
  EXPECT_TRUE(absl::StrContains(Output(options), "24.6"));
}

TEST(InspectTest, DescribesAConfigWithoutWeights) {
  const std::string dir = testing::TempDir();
  std::ofstream(dir + "/config.json")
      << std::ifstream("tests/testdata/apriel2-tiny/config.json").rdbuf();
  InspectOptions options;
  options.model_dir = dir;
  EXPECT_TRUE(
      absl::StrContains(Output(options), "Described from config.json alone"));
}

TEST(InspectTest, Errors) {
  std::ostringstream out;
  InspectOptions options;
  EXPECT_EQ(Inspect(options, out).code(), absl::StatusCode::kInvalidArgument);
  options.model_dir = "no/such/dir";
  EXPECT_EQ(Inspect(options, out).code(), absl::StatusCode::kNotFound);
  options.model_dir = "tests/testdata/apriel2-tiny";
  options.world_size = 3;
  EXPECT_EQ(Inspect(options, out).code(), absl::StatusCode::kInvalidArgument);
  options.world_size = 1;
  options.placement = "all-rwkv";
  EXPECT_EQ(Inspect(options, out).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(out.str(), "");
}

}  // namespace
}  // namespace switchyard
