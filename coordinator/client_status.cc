#include "coordinator/client_status.h"

#include <grpcpp/support/status.h>

#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "switchyard/v1/rpc_status.pb.h"

namespace switchyard {
namespace {

constexpr absl::string_view kRetryInfoUrl =
    "type.googleapis.com/google.rpc.RetryInfo";

// A message travels in the trailers, where a client takes 8 KiB, with three
// bytes for each that is not ASCII. One that does not fit would become an error
// about its length.
constexpr size_t kMaxMessageBytes = 2048;

std::string Shortened(absl::string_view message) {
  if (message.size() <= kMaxMessageBytes) return std::string(message);
  size_t end = kMaxMessageBytes;
  while (end > 0 && (static_cast<unsigned char>(message[end]) & 0xC0) == 0x80) {
    --end;  // not within a character
  }
  return absl::StrCat(message.substr(0, end), " ...");
}

}  // namespace

absl::Status WithRetryDelay(absl::Status status, absl::Duration delay) {
  v1::RetryInfo info;
  absl::Duration fraction;
  info.mutable_retry_delay()->set_seconds(
      absl::IDivDuration(delay, absl::Seconds(1), &fraction));
  info.mutable_retry_delay()->set_nanos(
      static_cast<int32_t>(absl::ToInt64Nanoseconds(fraction)));
  status.SetPayload(kRetryInfoUrl, absl::Cord(info.SerializeAsString()));
  return status;
}

grpc::Status ToClientStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const absl::StatusCode code = status.code() == absl::StatusCode::kUnknown
                                    ? absl::StatusCode::kInternal
                                    : status.code();
  const std::string message = Shortened(status.message());
  v1::RpcStatus details;
  status.ForEachPayload(
      [&details](absl::string_view type_url, const absl::Cord& payload) {
        google::protobuf::Any* detail = details.add_details();
        detail->set_type_url(std::string(type_url));
        detail->set_value(std::string(payload));
      });
  std::string serialized;
  if (details.details_size() > 0) {
    details.set_code(static_cast<int32_t>(code));
    details.set_message(message);
    serialized = details.SerializeAsString();
  }
  return grpc::Status(static_cast<grpc::StatusCode>(code), message, serialized);
}

}  // namespace switchyard
