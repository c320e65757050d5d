#include "coordinator/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <sstream>
#include <utility>

#include "absl/status/status.h"
#include "coordinator/process_metrics.h"
#include "coordinator/version.h"

namespace switchyard {
namespace {

using prometheus::Counter;
using prometheus::Family;
using prometheus::Gauge;
using prometheus::Histogram;
using Buckets = std::vector<double>;

// vLLM's buckets, so that its users' panels and recording rules carry over.
const Buckets& FirstTokenBuckets() {
  static const auto* const buckets = new Buckets{
      0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1,  0.25, 0.5,   0.75,
      1.0,   2.5,   5.0,  7.5,  10.0, 20.0, 40.0, 80.0, 160., 640.0, 2560.0};
  return *buckets;
}
// vLLM's begin at 0.01 s; a recurrent placement decodes faster than that.
const Buckets& TokenBuckets() {
  static const auto* const buckets =
      new Buckets{0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05,
                  0.075,  0.1,   0.15,   0.2,   0.3,    0.4,  0.5,   0.75,
                  1.0,    2.5,   5.0,    7.5,   10.0,   20.0, 40.0,  80.0};
  return *buckets;
}
const Buckets& RequestBuckets() {
  static const auto* const buckets =
      new Buckets{0.01, 0.05, 0.1,   0.3,   0.5,   0.8,   1.0,    1.5,
                  2.0,  2.5,  5.0,   10.0,  15.0,  20.0,  30.0,   40.0,
                  50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0};
  return *buckets;
}
const Buckets& StepBuckets() {
  static const auto* const buckets =
      new Buckets{0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.01,
                  0.015,  0.02,  0.03,  0.05,  0.075, 0.1,   0.15,  0.2,
                  0.3,    0.5,   1.0,   2.5,   5.0,   10.0,  30.0,  60.0};
  return *buckets;
}
const Buckets& IterationBuckets() {
  static const auto* const buckets = new Buckets{
      1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
  return *buckets;
}
const Buckets& PauseBuckets() {
  static const auto* const buckets =
      new Buckets{0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01,
                  0.025,  0.05,    0.1,    0.25,  0.5,    1.0,   5.0};
  return *buckets;
}

Buckets OneTwoFive(double last) {
  Buckets buckets;
  for (double power = 1;; power *= 10) {
    for (const double mantissa : {1.0, 2.0, 5.0}) {
      if (mantissa * power > last) return buckets;
      buckets.push_back(mantissa * power);
    }
  }
}

constexpr char kOther[] = "other";

}  // namespace

struct Metrics::Families {
  Families(prometheus::Registry* registry, const MetricsOptions& options)
      : registry(registry), labels{{"model_name", options.model_name}} {}

  template <typename Builder>
  auto& Register(Builder builder, const char* name, const char* help) {
    return builder.Name(std::string("switchyard_") + name)
        .Help(help)
        .Labels(labels)
        .Register(*registry);
  }
  Family<Counter>& NewCounter(const char* name, const char* help) {
    return Register(prometheus::BuildCounter(), name, help);
  }
  Family<Gauge>& NewGauge(const char* name, const char* help) {
    return Register(prometheus::BuildGauge(), name, help);
  }
  Family<Histogram>& NewHistogram(const char* name, const char* help) {
    return Register(prometheus::BuildHistogram(), name, help);
  }

  prometheus::Registry* const registry;
  const prometheus::Labels labels;

  // By placement.
  Family<Gauge>& num_live = NewGauge(
      "num_requests_live",
      "Requests that were scheduled and have not ended, by placement.");
  Family<Counter>& prompt_tokens = NewCounter(
      "prompt_tokens_total", "Prompt tokens of requests whose prompt is done.");
  Family<Counter>& generation_tokens =
      NewCounter("generation_tokens_total", "Tokens generated.");
  Family<Counter>& request_success = NewCounter(
      "request_success_total",
      "Requests that ended, by finished_reason: stop, length, abort (cancelled "
      "by the client or its deadline), error.");
  Family<Histogram>& time_to_first_token =
      NewHistogram("time_to_first_token_seconds",
                   "From the arrival of a request to its first token.");
  Family<Histogram>& inter_token_latency =
      NewHistogram("inter_token_latency_seconds",
                   "From one token of a request to its next.");
  Family<Histogram>& time_per_output_token = NewHistogram(
      "request_time_per_output_token_seconds",
      "Mean time per output token of a request, its first token left out.");
  Family<Histogram>& e2e_latency =
      NewHistogram("e2e_request_latency_seconds",
                   "From the arrival of a request to its end.");
  Family<Histogram>& queue_time = NewHistogram(
      "request_queue_time_seconds",
      "From the queueing of a request to its first step (phase WAITING).");
  Family<Histogram>& prefill_time = NewHistogram(
      "request_prefill_time_seconds",
      "From the first step of a request to its first token (phase PREFILL).");
  Family<Histogram>& decode_time = NewHistogram(
      "request_decode_time_seconds",
      "From the first token of a request to its last (phase DECODE).");
  Family<Histogram>& inference_time = NewHistogram(
      "request_inference_time_seconds",
      "From the first step of a request to its last token (phase RUNNING).");
  Family<Histogram>& num_prompt_tokens =
      NewHistogram("request_prompt_tokens", "Prompt tokens of a request.");
  Family<Histogram>& num_generation_tokens = NewHistogram(
      "request_generation_tokens", "Tokens generated for a request.");
  Family<Histogram>& max_tokens =
      NewHistogram("request_params_max_tokens", "max_tokens of a request.");

  // By rank.
  Family<Gauge>& rank_up =
      NewGauge("rank_up", "1 while the rank answers steps, 0 once it is lost.");
  Family<Gauge>& rank_memory = NewGauge(
      "rank_memory_bytes",
      "Memory of a rank's device, by kind: weights, cache, workspace.");
  Family<Counter>& rank_execute =
      NewCounter("rank_execute_seconds_total", "Time a rank executed steps.");
  Family<Counter>& rank_collective = NewCounter(
      "rank_collective_seconds_total",
      "Time a rank spent in collectives, waiting for peers included.");
  Family<Counter>& rank_idle = NewCounter(
      "rank_idle_seconds_total",
      "Time a rank's device had nothing to do although the engine had steps to "
      "run: over engine_busy_seconds_total this is the GPU idle share.");
  Family<Counter>& graph_captures = NewCounter(
      "graph_captures_total", "CUDA graphs that a rank has captured.");
  Family<Counter>& graph_replays =
      NewCounter("graph_replays_total", "Steps that replayed a CUDA graph.");

  // Placements.
  Family<Gauge>& default_placement =
      NewGauge("default_placement_info", "1 for the default placement.");
  Family<Counter>& switches = NewCounter(
      "placement_switches_total",
      "Switches of the default placement, by policy (finish, recompute, drain) "
      "and outcome (success, refused, cancelled, failed).");

  // Requests that the engine did not take.
  Family<Counter>& refused =
      NewCounter("requests_refused_total",
                 "Requests refused before they were queued, by status code.");
};

Metrics::Metrics(const MetricsOptions& options)
    : registry_(std::make_unique<prometheus::Registry>(
          prometheus::Registry::InsertBehavior::Throw)),
      families_(std::make_unique<Families>(registry_.get(), options)),
      token_buckets_(OneTwoFive(options.max_context_tokens)) {
  BuildEngine();
  BuildRanks(options.num_ranks);
  for (const char* policy : {"finish", "recompute", "drain"}) {
    for (const char* outcome : {"success", "refused", "cancelled", "failed"}) {
      Switches(policy, outcome);
    }
  }
  for (const absl::StatusCode code :
       {absl::StatusCode::kResourceExhausted, absl::StatusCode::kUnavailable}) {
    Refused(absl::StatusCodeToString(code));
  }
}

Metrics::~Metrics() = default;

void Metrics::BuildEngine() {
  Families& make = *families_;
  num_running =
      &make.NewGauge("num_requests_running",
                     "Requests in the batch: they have cache and run in steps.")
           .Add({});
  num_waiting = &make.NewGauge("num_requests_waiting",
                               "Requests that wait to be scheduled, preempted "
                               "ones and those a switch holds back included.")
                     .Add({});
  cache_usage =
      &make.NewGauge("kv_cache_usage_perc",
                     "Share of each rank's cache in use, KV blocks and "
                     "recurrent state together. 1 means 100 percent.")
           .Add({});
  Family<Gauge>& cache_used = make.NewGauge(
      "cache_used_bytes",
      "Cache in use on each rank, by kind: kv (attention blocks), recurrent "
      "(gdn, kda and mamba state).");
  cache_kv_bytes = &cache_used.Add({{"kind", "kv"}});
  cache_recurrent_bytes = &cache_used.Add({{"kind", "recurrent"}});
  cache_capacity_bytes =
      &make.NewGauge("cache_capacity_bytes", "Cache of each rank.").Add({});
  cache_reusable_bytes =
      &make.NewGauge("cache_reusable_bytes",
                     "Cache of each rank that no request holds, kept for "
                     "prompts that begin alike, and given up when needed.")
           .Add({});
  prefix_queries =
      &make.NewCounter("prefix_cache_queries_total",
                       "Tokens of admitted requests that were looked up for "
                       "prefix reuse.")
           .Add({});
  prefix_hits = &make.NewCounter("prefix_cache_hits_total",
                                 "Of these, tokens found in the cache.")
                     .Add({});
  num_preemptions =
      &make.NewCounter("num_preemptions_total",
                       "Times a running request lost its cache to an earlier "
                       "one and had to wait again.")
           .Add({});
  iteration_tokens = &make.NewHistogram("iteration_tokens_total",
                                        "Tokens computed in one step.")
                          .Add({}, IterationBuckets());
  Family<Histogram>& step_time =
      make.NewHistogram("step_time_seconds",
                        "From sending a step, or the end of the one before it, "
                        "to the last rank's "
                        "result, by kind: decode (one token per request), "
                        "prefill (some prompt).");
  decode_step_time = &step_time.Add({{"kind", "decode"}}, StepBuckets());
  prefill_step_time = &step_time.Add({{"kind", "prefill"}}, StepBuckets());
  busy_seconds = &make.NewCounter("engine_busy_seconds_total",
                                  "Time the engine had a step in flight.")
                      .Add({});
  last_step_time = &make.NewGauge("last_step_timestamp_seconds",
                                  "When the latest step ended, in Unix time; "
                                  "at first when the server started.")
                        .Add({});
  group_up = &make.NewGauge("group_up",
                            "1 while the group of ranks serves, 0 "
                            "once it is lost.")
                  .Add({});
  alive_ =
      &make.NewGauge("alive",
                     "1 while the step loop goes on, as the health service "
                     "says; 0 while a step is overdue.")
           .Add({});
  alive_->Set(1);
  epoch = &make.NewGauge("epoch",
                         "Version of the default placement and the presets.")
               .Add({});
  switch_pause = &make.NewHistogram("placement_switch_pause_seconds",
                                    "How long no step ran because of a switch.")
                      .Add({}, PauseBuckets());
  recomputed_sequences =
      &make.NewCounter("placement_switch_recomputed_sequences_total",
                       "Running requests whose cache a switch rebuilt.")
           .Add({});
  make.NewGauge("build_info", "1; the version of the server.")
      .Add({{"version", kVersion}})
      .Set(1);
}

void Metrics::BuildRanks(int num_ranks) {
  Families& make = *families_;
  for (int rank = 0; rank < num_ranks; ++rank) {
    const std::pair<const std::string, std::string> label = {
        "rank", std::to_string(rank)};
    RankMetrics& metrics = ranks_.emplace_back();
    metrics.up = &make.rank_up.Add({label});
    metrics.weights_bytes = &make.rank_memory.Add({label, {"kind", "weights"}});
    metrics.cache_bytes = &make.rank_memory.Add({label, {"kind", "cache"}});
    metrics.workspace_bytes =
        &make.rank_memory.Add({label, {"kind", "workspace"}});
    metrics.execute_seconds = &make.rank_execute.Add({label});
    metrics.collective_seconds = &make.rank_collective.Add({label});
    metrics.idle_seconds = &make.rank_idle.Add({label});
    metrics.graph_captures = &make.graph_captures.Add({label});
    metrics.graph_replays = &make.graph_replays.Add({label});
  }
}

PlacementMetrics Metrics::MakePlacement(const std::string& name) const {
  const Families& make = *families_;
  const prometheus::Labels label = {{"placement", name}};
  const auto finished = [&](const char* reason) {
    return &make.request_success.Add(
        {{"placement", name}, {"finished_reason", reason}});
  };
  PlacementMetrics metrics;
  metrics.num_live = &make.num_live.Add(label);
  metrics.prompt_tokens = &make.prompt_tokens.Add(label);
  metrics.generation_tokens = &make.generation_tokens.Add(label);
  metrics.finished_stop = finished("stop");
  metrics.finished_length = finished("length");
  metrics.finished_abort = finished("abort");
  metrics.finished_error = finished("error");
  metrics.time_to_first_token =
      &make.time_to_first_token.Add(label, FirstTokenBuckets());
  metrics.inter_token_latency =
      &make.inter_token_latency.Add(label, TokenBuckets());
  metrics.time_per_output_token =
      &make.time_per_output_token.Add(label, TokenBuckets());
  metrics.e2e_latency = &make.e2e_latency.Add(label, RequestBuckets());
  metrics.queue_time = &make.queue_time.Add(label, RequestBuckets());
  metrics.prefill_time = &make.prefill_time.Add(label, RequestBuckets());
  metrics.decode_time = &make.decode_time.Add(label, RequestBuckets());
  metrics.inference_time = &make.inference_time.Add(label, RequestBuckets());
  metrics.num_prompt_tokens =
      &make.num_prompt_tokens.Add(label, token_buckets_);
  metrics.num_generation_tokens =
      &make.num_generation_tokens.Add(label, token_buckets_);
  metrics.max_tokens = &make.max_tokens.Add(label, token_buckets_);
  return metrics;
}

PlacementMetrics* Metrics::OfPlacement(absl::string_view name) {
  absl::MutexLock lock(&mutex_);
  auto it = placements_.find(std::string(name));
  if (it != placements_.end()) return &it->second;
  std::string label(name);
  if (placements_.size() >= kMaxPlacements) label = kOther;
  it = placements_.find(label);
  if (it == placements_.end()) {
    PlacementMetrics metrics = MakePlacement(label);
    it = placements_.emplace(std::move(label), metrics).first;
  }
  return &it->second;
}

prometheus::Counter* Metrics::Switches(const std::string& policy,
                                       const std::string& outcome) {
  return &families_->switches.Add({{"policy", policy}, {"outcome", outcome}});
}

prometheus::Counter* Metrics::Refused(const std::string& code) {
  return &families_->refused.Add({{"code", code}});
}

void Metrics::SetAlive(bool alive) { alive_->Set(alive ? 1 : 0); }

void Metrics::SetDefaultPlacement(absl::string_view name) {
  absl::MutexLock lock(&mutex_);
  Gauge* next =
      &families_->default_placement.Add({{"placement", std::string(name)}});
  next->Set(1);
  if (default_placement_ != nullptr && default_placement_ != next) {
    families_->default_placement.Remove(default_placement_);
  }
  default_placement_ = next;
}

std::string Metrics::Scrape() const {
  std::vector<prometheus::MetricFamily> families = registry_->Collect();
  AppendProcessMetrics(&families);
  std::ostringstream text;
  prometheus::TextSerializer().Serialize(text, families);
  return text.str();
}

}  // namespace switchyard
