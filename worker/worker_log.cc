#include "worker/worker_log.h"

#include "log/log.h"

namespace switchyard {

void LogConfigured(const v1::ConfigureRequest& request) {
  SetLogContext("rank", request.rank());
  Log(LogLevel::kInfo, "joins a group",
      {{"world_size", request.world_size()},
       {"model_dir", request.model_dir()},
       {"dtype", request.dtype()}});
}

void LogPlan(const v1::StepPlan& plan) {
  if (!LogEnabled(LogLevel::kDebug)) return;
  for (const uint64_t sequence_id : plan.finished()) {
    Log(LogLevel::kDebug, "sequence forgotten",
        {{"sequence_id", sequence_id},
         {"step", plan.step_id()},
         {"epoch", plan.epoch()}});
  }
  for (const v1::SequenceStart& start : plan.started()) {
    Log(LogLevel::kDebug, "sequence started",
        {{"sequence_id", start.sequence_id()},
         {"step", plan.step_id()},
         {"epoch", plan.epoch()},
         {"placement_id", start.placement_id()},
         {"known_tokens", start.token_ids_size()}});
  }
}

void LogResult(const v1::StepResult& result, bool is_over) {
  if (result.code() != 0) {
    Log(is_over ? LogLevel::kDebug : LogLevel::kError,
        is_over ? "step cut short" : "step failed",
        {{"step", result.step_id()},
         {"code", absl::StatusCodeToString(
                      static_cast<absl::StatusCode>(result.code()))},
         {"why", result.message()}});
    return;
  }
  if (!LogEnabled(LogLevel::kDebug)) return;
  Log(LogLevel::kDebug, "step",
      {{"step", result.step_id()},
       {"seconds", result.execute_ms() / 1e3},
       {"collective_seconds", result.collective_ms() / 1e3}});
}

void LogPlacementChange(const char* phase, uint64_t epoch,
                        const absl::Status& status) {
  if (status.ok()) {
    Log(LogLevel::kInfo, "placement change",
        {{"phase", phase}, {"epoch", epoch}});
    return;
  }
  Log(LogLevel::kWarning, "placement change refused",
      {{"phase", phase},
       {"epoch", epoch},
       {"code", absl::StatusCodeToString(status.code())},
       {"why", status.message()}});
}

}  // namespace switchyard
