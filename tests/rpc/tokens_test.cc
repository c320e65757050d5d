#include "rpc/tokens.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"

namespace switchyard {
namespace {

std::string Write(const std::string& name, const std::string& text) {
  const std::string path = std::string(std::getenv("TEST_TMPDIR")) + "/" + name;
  std::ofstream(path) << text;
  return path;
}

TEST(ReadTokensTest, OneALineWithoutCommentsAndBlanks) {
  const std::string path =
      Write("tokens", "# who\n\n  first  \nsecond\r\n\t# x\nlast");
  const absl::StatusOr<std::vector<std::string>> tokens = ReadTokens(path);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(*tokens, (std::vector<std::string>{"first", "second", "last"}));
}

TEST(ReadTokensTest, ErrorsNameTheFileAndNothingInIt) {
  for (const std::string& path : {Write("none", "# secret-in-a-comment\n"),
                                  std::string("/no/such/file")}) {
    const absl::Status status = ReadTokens(path).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_TRUE(absl::StrContains(status.message(), path)) << status;
    EXPECT_FALSE(absl::StrContains(status.message(), "secret")) << status;
  }
}

TEST(TokenSetTest, AcceptsWholeTokensOnly) {
  auto set = TokenSet::Load(Write("set", "alpha\nbeta\n"), nullptr);
  ASSERT_TRUE(set.ok()) << set.status();
  for (const char* token : {"alpha", "beta"})
    EXPECT_TRUE((*set)->Accepts(token)) << token;
  for (const char* token : {"", "alph", "alphaa", "alpha\n", "Alpha", "gamma"})
    EXPECT_FALSE((*set)->Accepts(token)) << token;
}

}  // namespace
}  // namespace switchyard
