#include "cli/golden_file.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using ::testing::HasSubstr;

std::string Write(const std::string& text) {
  const std::string path =
      std::string(std::getenv("TEST_TMPDIR")) + "/golden.json";
  std::ofstream(path) << text;
  return path;
}

TEST(GoldenFileTest, EveryFileOfTheTestDataIsRead) {
  const std::pair<const char*, size_t> files[] = {
      {"golden_generate.json", 104},
      {"golden_zoo-stochastic5.json", 20},
      {"golden_zoo-pattern.json", 4},
      {"golden_stats.json", 384}};
  for (const auto& [name, num_cases] : files) {
    const auto cases = LoadGoldenFile(std::string("tests/testdata/") + name);
    ASSERT_TRUE(cases.ok()) << cases.status();
    EXPECT_EQ(cases->size(), num_cases) << name;
  }
}

TEST(GoldenFileTest, MarginsComeFromTheTopFiveWhereThereAre) {
  const auto cases = LoadGoldenFile("tests/testdata/golden_generate.json");
  ASSERT_TRUE(cases.ok());
  const std::vector<double>& margins = (*cases)[0].margins;
  EXPECT_NEAR(*std::min_element(margins.begin(), margins.end()), 0.007046,
              1e-5);
  EXPECT_GT(*std::max_element(margins.begin(), margins.end()), 0.1);
}

TEST(GoldenFileTest, LastLogitsBecomeLogProbabilities) {
  const auto cases = LoadGoldenFile("tests/testdata/golden_zoo-pattern.json");
  ASSERT_TRUE(cases.ok());
  double sum = 0;
  for (double logprob : (*cases)[0].last_logprobs) sum += std::exp(logprob);
  EXPECT_NEAR(sum, 1, 1e-9);
  EXPECT_TRUE((*cases)[0].placement.empty());
}

TEST(GoldenFileTest, MistakesNameTheFile) {
  for (
      const char* text :
      {"", "{", "{}", R"({"cases": []})", R"({"cases": [{"placement": 3}]})",
       R"({"cases": [{"placement": null, "prompt_ids": [1], "prompt_logprobs": [], "greedy_ids": [1],
                               "greedy_logprobs": [], "min_margin": 0}]})"}) {
    const auto cases = LoadGoldenFile(Write(text));
    EXPECT_EQ(cases.status().code(), absl::StatusCode::kInvalidArgument)
        << text;
    EXPECT_THAT(std::string(cases.status().message()),
                HasSubstr("golden.json"));
  }
  EXPECT_EQ(LoadGoldenFile("/no/such/file").status().code(),
            absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace switchyard
