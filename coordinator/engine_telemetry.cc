#include "coordinator/engine_telemetry.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"
#include "kernels/check.h"
#include "log/log.h"

namespace switchyard {
namespace {

SteadyTime Now() { return std::chrono::steady_clock::now(); }

// More preemptions than this in a window mean that the cache is too small for
// what is running: most of the work is done twice.
constexpr int64_t kStormPreemptions = 20;
constexpr std::chrono::seconds kStormWindow{10};

double Seconds(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

// Of `wall` seconds in which there was a step to run, those in which the
// device ran none.
double IdleSeconds(const RankStep& step, double wall) {
  if (step.device_time == absl::ZeroDuration()) {
    return std::max(0.0, wall - absl::ToDoubleSeconds(step.execute_time));
  }
  // Its idle time also counts what passed before there was a step.
  return std::min(
      absl::ToDoubleSeconds(step.device_idle),
      std::max(0.0, wall - absl::ToDoubleSeconds(step.device_time)));
}

const char* PolicyName(v1::InFlight in_flight) {
  switch (in_flight) {
    case v1::IN_FLIGHT_RECOMPUTE:
      return "recompute";
    case v1::IN_FLIGHT_DRAIN:
      return "drain";
    default:
      return "finish";
  }
}

// Whose doing it was: a refusal says that the switch cannot be made.
const char* OutcomeName(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return "success";
    case absl::StatusCode::kCancelled:
      return "cancelled";
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
      return "refused";
    default:
      return "failed";
  }
}

const char* ReasonName(v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    case v1::FINISH_REASON_CANCELLED:
      return "abort";
    default:
      return "error";
  }
}

prometheus::Counter* FinishCounter(const PlacementMetrics& metrics,
                                   v1::FinishReason reason) {
  switch (reason) {
    case v1::FINISH_REASON_STOP:
      return metrics.finished_stop;
    case v1::FINISH_REASON_LENGTH:
      return metrics.finished_length;
    case v1::FINISH_REASON_CANCELLED:
      return metrics.finished_abort;
    default:
      return metrics.finished_error;
  }
}

}  // namespace

EngineTelemetry::EngineTelemetry(const GroupFacts& facts,
                                 absl::string_view default_placement,
                                 Metrics* metrics)
    : metrics_(metrics), last_step_(Now()), window_start_(last_step_) {
  SY_CHECK(metrics_->ranks().size() == facts.ranks.size());
  for (size_t rank = 0; rank < facts.ranks.size(); ++rank) {
    const RankMetrics& series = metrics_->ranks()[rank];
    series.up->Set(1);
    series.weights_bytes->Set(
        static_cast<double>(facts.ranks[rank].weights_bytes));
    series.cache_bytes->Set(static_cast<double>(facts.cache_bytes));
    series.workspace_bytes->Set(
        static_cast<double>(facts.ranks[rank].workspace_bytes));
  }
  metrics_->group_up->Set(1);
  metrics_->last_step_time->Set(
      absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch()));
  metrics_->SetDefaultPlacement(default_placement);
  metrics_->OfPlacement(default_placement);
}

void EngineTelemetry::OnRefusedAtEdge(absl::string_view request_id,
                                      const absl::Status& why) {
  const std::string code = absl::StatusCodeToString(why.code());
  metrics_->Refused(code)->Increment();
  Log(LogLevel::kInfo, "request refused",
      {{"request_id", request_id}, {"code", code}});
}

void EngineTelemetry::OnRefused(const RequestTrace& request,
                                const absl::Status& why) {
  const std::string code = absl::StatusCodeToString(why.code());
  metrics_->Refused(code)->Increment();
  Log(LogLevel::kInfo, "request refused",
      {{"request_id", request.request_id},
       {"code", code},
       {"why", why.message()}});
}

void EngineTelemetry::OnQueued(RequestTrace* request) {
  request->queued = Now();
  request->metrics = metrics_->OfPlacement(request->placement);
  request->metrics->num_prompt_tokens->Observe(request->num_prompt_tokens);
  request->metrics->max_tokens->Observe(request->max_tokens);
  if (!LogEnabled(LogLevel::kDebug)) return;
  Log(LogLevel::kDebug, "request queued",
      {{"request_id", request->request_id},
       {"sequence_id", request->sequence_id},
       {"placement", request->placement},
       {"epoch", request->epoch},
       {"prompt_tokens", request->num_prompt_tokens},
       {"max_tokens", request->max_tokens}});
}

void EngineTelemetry::OnScheduled(RequestTrace* request, uint64_t step_id) {
  if (request->was_scheduled) {
    ++request->num_restarts;
    Log(LogLevel::kInfo, "request restarted: its cache is rebuilt",
        {{"request_id", request->request_id},
         {"sequence_id", request->sequence_id},
         {"step", step_id},
         {"epoch", request->epoch},
         {"placement", request->placement},
         {"restarts", request->num_restarts}});
    return;
  }
  request->was_scheduled = true;
  request->scheduled = Now();
  request->metrics->num_live->Increment();
  const double queued = Seconds(request->scheduled - request->queued);
  request->metrics->queue_time->Observe(queued);
  Log(LogLevel::kInfo, "request admitted",
      {{"request_id", request->request_id},
       {"sequence_id", request->sequence_id},
       {"step", step_id},
       {"epoch", request->epoch},
       {"placement", request->placement},
       {"prompt_tokens", request->num_prompt_tokens},
       {"max_tokens", request->max_tokens},
       {"queue_seconds", queued}});
}

void EngineTelemetry::OnRecompute(RequestTrace* request) {
  if (request->was_scheduled) request->metrics->num_live->Decrement();
  request->metrics = metrics_->OfPlacement(request->placement);
  if (request->was_scheduled) request->metrics->num_live->Increment();
}

void EngineTelemetry::OnToken(RequestTrace* request, SteadyTime time) {
  PlacementMetrics& metrics = *request->metrics;
  metrics.generation_tokens->Increment();
  if (request->num_generated++ == 0) {
    request->first_token = time;
    metrics.prompt_tokens->Increment(request->num_prompt_tokens);
    metrics.time_to_first_token->Observe(Seconds(time - request->received));
    metrics.prefill_time->Observe(Seconds(time - request->scheduled));
    if (LogEnabled(LogLevel::kDebug)) {
      Log(LogLevel::kDebug, "request has its first token",
          {{"request_id", request->request_id},
           {"sequence_id", request->sequence_id},
           {"step", last_step_id_}});
    }
  } else {
    metrics.inter_token_latency->Observe(Seconds(time - request->last_token));
  }
  request->last_token = time;
}

void EngineTelemetry::OnFinished(RequestTrace* request,
                                 v1::FinishReason reason) {
  const SteadyTime now = Now();
  FinishCounter(*request->metrics, reason)->Increment();
  EndRequest(request, now);
  LogEnd(*request, ReasonName(reason), now);
}

void EngineTelemetry::OnFailed(RequestTrace* request, const absl::Status& why) {
  const SteadyTime now = Now();
  request->metrics->finished_error->Increment();
  EndRequest(request, now);
  Log(LogLevel::kWarning, "request failed",
      {{"request_id", request->request_id},
       {"sequence_id", request->sequence_id},
       {"step", last_step_id_},
       {"epoch", request->epoch},
       {"placement", request->placement},
       {"generated_tokens", request->num_generated},
       {"e2e_seconds", Seconds(now - request->received)},
       {"code", absl::StatusCodeToString(why.code())},
       {"why", why.message()}});
}

void EngineTelemetry::LogEnd(const RequestTrace& request,
                             absl::string_view reason, SteadyTime now) const {
  const bool has_tokens = request.num_generated > 0;
  Log(LogLevel::kInfo, "request finished",
      {{"request_id", request.request_id},
       {"sequence_id", request.sequence_id},
       {"step", last_step_id_},
       {"epoch", request.epoch},
       {"placement", request.placement},
       {"reason", reason},
       {"prompt_tokens", request.num_prompt_tokens},
       {"generated_tokens", request.num_generated},
       {"restarts", request.num_restarts},
       {"ttft_seconds",
        has_tokens ? Seconds(request.first_token - request.received) : 0.0},
       {"e2e_seconds", Seconds(now - request.received)}});
}

void EngineTelemetry::EndRequest(RequestTrace* request, SteadyTime now) {
  const PlacementMetrics& metrics = *request->metrics;
  metrics.e2e_latency->Observe(Seconds(now - request->received));
  metrics.num_generation_tokens->Observe(request->num_generated);
  if (request->was_scheduled) metrics.num_live->Decrement();
  if (request->num_generated == 0) return;
  const double decode = Seconds(request->last_token - request->first_token);
  metrics.decode_time->Observe(decode);
  metrics.inference_time->Observe(
      Seconds(request->last_token - request->scheduled));
  if (request->num_generated > 1) {
    metrics.time_per_output_token->Observe(decode /
                                           (request->num_generated - 1));
  }
}

void EngineTelemetry::OnSubmitted(const v1::StepPlan& plan) {
  StepInFlight& step = in_flight_.emplace_back();
  step.step_id = plan.step_id();
  step.epoch = plan.epoch();
  step.num_sequences = plan.batch_size();
  step.submitted = Now();
  for (const v1::SequenceStep& part : plan.batch()) {
    step.num_tokens += part.num_tokens();
    step.is_prefill = step.is_prefill || part.num_tokens() > 1;
  }
}

void EngineTelemetry::OnStep(const StepOutcome& outcome, SteadyTime time) {
  SY_CHECK(!in_flight_.empty());
  const StepInFlight step = in_flight_.front();
  in_flight_.pop_front();
  // Steps overlap on the way, not on the device.
  const double wall = Seconds(time - std::max(step.submitted, last_step_));
  last_step_ = time;
  last_step_id_ = step.step_id;
  metrics_->busy_seconds->Increment(wall);
  metrics_->last_step_time->Set(
      absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch()));
  if (step.num_tokens > 0) {  // else it only made the workers forget
    (step.is_prefill ? metrics_->prefill_step_time : metrics_->decode_step_time)
        ->Observe(wall);
    metrics_->iteration_tokens->Observe(static_cast<double>(step.num_tokens));
  }
  for (size_t rank = 0; rank < outcome.ranks.size(); ++rank) {
    const RankStep& part = outcome.ranks[rank];
    const RankMetrics& series = metrics_->ranks()[rank];
    series.execute_seconds->Increment(absl::ToDoubleSeconds(part.execute_time));
    series.collective_seconds->Increment(
        absl::ToDoubleSeconds(part.collective_time));
    series.idle_seconds->Increment(IdleSeconds(part, wall));
    if (part.replayed_graph) series.graph_replays->Increment();
    if (part.record_time > absl::ZeroDuration()) {
      series.graph_captures->Increment();
    }
  }
  if (!LogEnabled(LogLevel::kDebug)) return;
  Log(LogLevel::kDebug, "step",
      {{"step", step.step_id},
       {"epoch", step.epoch},
       {"sequences", step.num_sequences},
       {"tokens", step.num_tokens},
       {"seconds", wall}});
}

void EngineTelemetry::OnState(const EngineState& state) {
  metrics_->num_running->Set(static_cast<double>(state.num_running));
  metrics_->num_waiting->Set(static_cast<double>(state.num_waiting));
  const double capacity = static_cast<double>(state.cache_capacity_bytes);
  const double used = static_cast<double>(state.cache_used_bytes);
  const double slots = static_cast<double>(state.cache_slot_bytes);
  metrics_->cache_usage->Set(capacity > 0 ? used / capacity : 0);
  metrics_->cache_kv_bytes->Set(used - slots);
  metrics_->cache_recurrent_bytes->Set(slots);
  metrics_->cache_capacity_bytes->Set(capacity);
  metrics_->cache_reusable_bytes->Set(
      static_cast<double>(state.cache_reusable_bytes));
  metrics_->prefix_queries->Increment(
      static_cast<double>(state.prefix_queried_tokens) -
      metrics_->prefix_queries->Value());
  metrics_->prefix_hits->Increment(
      static_cast<double>(state.prefix_hit_tokens) -
      metrics_->prefix_hits->Value());
  metrics_->epoch->Set(static_cast<double>(state.epoch));
  if (state.num_preemptions > num_preemptions_) {
    metrics_->num_preemptions->Increment(
        static_cast<double>(state.num_preemptions - num_preemptions_));
    num_preemptions_ = state.num_preemptions;
    WatchPreemptions(state);
  }
}

void EngineTelemetry::WatchPreemptions(const EngineState& state) {
  const SteadyTime now = Now();
  if (now - window_start_ > kStormWindow) {
    window_start_ = now;
    num_preemptions_before_ = state.num_preemptions - 1;
  }
  const int64_t num_recent = state.num_preemptions - num_preemptions_before_;
  if (num_recent != kStormPreemptions) return;  // once a window
  Log(LogLevel::kWarning,
      "preemption storm: running requests take the cache from each other; "
      "lower --max-num-seqs, raise --cache-bytes or use a placement with less "
      "attention",
      {{"step", last_step_id_},
       {"epoch", state.epoch},
       {"preemptions", num_recent},
       {"window_seconds", kStormWindow.count()},
       {"running", state.num_running},
       {"waiting", state.num_waiting},
       {"cache_used_bytes", state.cache_used_bytes},
       {"cache_capacity_bytes", state.cache_capacity_bytes}});
}

void EngineTelemetry::OnSwitch(const SwitchReport& report) {
  metrics_->Switches(PolicyName(report.in_flight), OutcomeName(report.status))
      ->Increment();
  if (!report.status.ok()) {
    Log(LogLevel::kWarning, "placement switch failed",
        {{"placement", report.placement},
         {"policy", PolicyName(report.in_flight)},
         {"code", absl::StatusCodeToString(report.status.code())},
         {"why", report.status.message()}});
    return;
  }
  Log(LogLevel::kInfo, "default placement switched",
      {{"placement", report.placement},
       {"policy", PolicyName(report.in_flight)},
       {"epoch", report.epoch},
       {"pause_seconds", absl::ToDoubleSeconds(report.pause)},
       {"recomputed_sequences", report.num_recomputed}});
  metrics_->switch_pause->Observe(absl::ToDoubleSeconds(report.pause));
  metrics_->recomputed_sequences->Increment(report.num_recomputed);
  metrics_->OfPlacement(report.placement);
  metrics_->SetDefaultPlacement(report.placement);
}

void EngineTelemetry::OnLost(const absl::Status& why) {
  metrics_->group_up->Set(0);
  const auto payload = why.GetPayload(kLostRankPayload);
  size_t rank = 0;
  if (payload.has_value() && absl::SimpleAtoi(std::string(*payload), &rank) &&
      rank < metrics_->ranks().size()) {
    metrics_->ranks()[rank].up->Set(0);
    Log(LogLevel::kError, why.message(),
        {{"rank", rank}, {"step", last_step_id_}});
    return;
  }
  for (const RankMetrics& series : metrics_->ranks()) series.up->Set(0);
  Log(LogLevel::kError, why.message(), {{"step", last_step_id_}});
}

}  // namespace switchyard
