// Statuses on their way to a client: code, message and details.
#ifndef SWITCHYARD_COORDINATOR_CLIENT_STATUS_H_
#define SWITCHYARD_COORDINATOR_CLIENT_STATUS_H_

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace grpc {
class Status;
}

namespace switchyard {

// `status` with the advice (google.rpc.RetryInfo) to come back after `delay`.
absl::Status WithRetryDelay(absl::Status status, absl::Duration delay);

// The payloads of `status` become the details of the trailer
// grpc-status-details-bin. Never UNKNOWN: what has no code of its own is our
// own failing, INTERNAL.
grpc::Status ToClientStatus(const absl::Status& status);

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_CLIENT_STATUS_H_
