#include "coordinator/client_status.h"

#include <grpcpp/support/status.h>
#include <gtest/gtest.h>

#include <string>

#include "coordinator/utf8.h"

namespace switchyard {
namespace {

TEST(ClientStatusTest, KeepsCodeAndMessage) {
  const grpc::Status status =
      ToClientStatus(absl::NotFoundError("no preset \"x\""));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(status.error_message(), "no preset \"x\"");
  EXPECT_TRUE(ToClientStatus(absl::OkStatus()).ok());
}

TEST(ClientStatusTest, UnknownBecomesInternal) {
  EXPECT_EQ(ToClientStatus(absl::UnknownError("?")).error_code(),
            grpc::StatusCode::INTERNAL);
}

TEST(ClientStatusTest, MessagesFitIntoTheTrailersOfACall) {
  for (const char* character : {"x", "\u00e9", "\u20ac", "\U0001f600"}) {
    std::string message;
    for (int i = 0; i < 100000; ++i) message += character;
    // The first cut is within a character, for some of them.
    for (const std::string& start : {std::string(), std::string("y")}) {
      const std::string shown =
          ToClientStatus(absl::InvalidArgumentError(start + message))
              .error_message();
      EXPECT_LE(shown.size(), 2100);
      EXPECT_GE(shown.size(), 2000);
      EXPECT_EQ(FindInvalidUtf8(shown), shown.size());
      EXPECT_EQ(shown.substr(shown.size() - 4), " ...");
    }
  }
}

}  // namespace
}  // namespace switchyard
