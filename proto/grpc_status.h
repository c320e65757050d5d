// absl::Status inside, grpc::Status on the wire: the same codes.
#ifndef SWITCHYARD_PROTO_GRPC_STATUS_H_
#define SWITCHYARD_PROTO_GRPC_STATUS_H_

#include <grpcpp/support/status.h>

#include <string>

#include "absl/status/status.h"

namespace switchyard {

inline grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()),
                      std::string(status.message()));
}

inline absl::Status FromGrpcStatus(const grpc::Status& status) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      status.error_message());
}

}  // namespace switchyard

#endif  // SWITCHYARD_PROTO_GRPC_STATUS_H_
