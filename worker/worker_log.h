// What a worker writes into its log. Sequences go by their ids; the
// coordinator's line `request admitted` says which request that is.
#ifndef SWITCHYARD_WORKER_WORKER_LOG_H_
#define SWITCHYARD_WORKER_WORKER_LOG_H_

#include "absl/status/status.h"
#include "switchyard/v1/worker.pb.h"

namespace switchyard {

// The worker has a rank from here on: a field of all its lines.
void LogConfigured(const v1::ConfigureRequest& request);
// At debug: the sequences that start and end with a plan, and the step.
void LogPlan(const v1::StepPlan& plan);
// At debug, or an error if the step failed; `is_over`: because its group had
// ended before, which is no error of the step.
void LogResult(const v1::StepResult& result, bool is_over);
void LogPlacementChange(const char* phase, uint64_t epoch,
                        const absl::Status& status);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_WORKER_LOG_H_
