#include "coordinator/client_status.h"

#include <grpcpp/support/status.h>

#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/string_view.h"
#include "switchyard/v1/rpc_status.pb.h"

namespace switchyard {
namespace {

constexpr absl::string_view kRetryInfoUrl =
    "type.googleapis.com/google.rpc.RetryInfo";

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
    details.set_message(std::string(status.message()));
    serialized = details.SerializeAsString();
  }
  return grpc::Status(static_cast<grpc::StatusCode>(code),
                      std::string(status.message()), serialized);
}

}  // namespace switchyard
