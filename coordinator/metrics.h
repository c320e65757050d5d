// Every metric of the coordinator, by the name that Prometheus sees: families
// under `switchyard_`, named as vLLM names them where they mean the same.
// docs/metrics.md lists them all.
//
// Label values are bounded: presets, ranks, enumerations.
#ifndef SWITCHYARD_COORDINATOR_METRICS_H_
#define SWITCHYARD_COORDINATOR_METRICS_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"

namespace prometheus {
class Counter;
class Gauge;
class Histogram;
class Registry;
}  // namespace prometheus

namespace switchyard {

// The series of one placement. Thread-safe, like every prometheus metric.
class PlacementMetrics {
 public:
  prometheus::Gauge* num_live = nullptr;
  prometheus::Counter* prompt_tokens = nullptr;
  prometheus::Counter* generation_tokens = nullptr;
  // request_success_total, by finished_reason.
  prometheus::Counter* finished_stop = nullptr;
  prometheus::Counter* finished_length = nullptr;
  prometheus::Counter* finished_abort = nullptr;
  prometheus::Counter* finished_error = nullptr;
  prometheus::Histogram* time_to_first_token = nullptr;
  prometheus::Histogram* inter_token_latency = nullptr;
  prometheus::Histogram* time_per_output_token = nullptr;
  prometheus::Histogram* e2e_latency = nullptr;
  prometheus::Histogram* queue_time = nullptr;
  prometheus::Histogram* prefill_time = nullptr;
  prometheus::Histogram* decode_time = nullptr;
  prometheus::Histogram* inference_time = nullptr;
  prometheus::Histogram* num_prompt_tokens = nullptr;
  prometheus::Histogram* num_generation_tokens = nullptr;
  prometheus::Histogram* max_tokens = nullptr;
};

// The series of one rank.
struct RankMetrics {
  prometheus::Gauge* up = nullptr;
  prometheus::Gauge* weights_bytes = nullptr;
  prometheus::Gauge* cache_bytes = nullptr;
  prometheus::Gauge* workspace_bytes = nullptr;
  prometheus::Counter* execute_seconds = nullptr;
  prometheus::Counter* collective_seconds = nullptr;
  prometheus::Counter* idle_seconds = nullptr;
  prometheus::Counter* graph_captures = nullptr;
  prometheus::Counter* graph_replays = nullptr;
};

struct MetricsOptions {
  std::string model_name;  // a label of every series
  uint32_t max_context_tokens = 0;
  int num_ranks = 1;
};

class Metrics {
 public:
  // Distinct placement names that get series of their own; later ones share
  // the series `other`, so that presets that come and go do not pile up.
  static constexpr int kMaxPlacements = 64;

  explicit Metrics(const MetricsOptions& options);
  ~Metrics();

  // The text of a scrape; any thread.
  std::string Scrape() const;

  // Valid as long as this. Any thread; not for every token.
  PlacementMetrics* OfPlacement(absl::string_view name)
      ABSL_LOCKS_EXCLUDED(mutex_);
  // policy: finish, recompute, drain; outcome: success, refused, cancelled,
  // failed.
  prometheus::Counter* Switches(const std::string& policy,
                                const std::string& outcome);
  // `code` in the spelling of absl::StatusCodeToString.
  prometheus::Counter* Refused(const std::string& code);
  // default_placement_info is 1 for `name`, and there is no other.
  void SetDefaultPlacement(absl::string_view name) ABSL_LOCKS_EXCLUDED(mutex_);

  // What the health service says of the step loop; at first that it lives.
  void SetAlive(bool alive);

  // [num_ranks]
  const std::vector<RankMetrics>& ranks() const { return ranks_; }

  prometheus::Gauge* num_running = nullptr;
  prometheus::Gauge* num_waiting = nullptr;
  prometheus::Gauge* cache_usage = nullptr;
  prometheus::Gauge* cache_kv_bytes = nullptr;
  prometheus::Gauge* cache_recurrent_bytes = nullptr;
  prometheus::Gauge* cache_capacity_bytes = nullptr;
  prometheus::Gauge* cache_reusable_bytes = nullptr;
  prometheus::Counter* prefix_queries = nullptr;
  prometheus::Counter* prefix_hits = nullptr;
  prometheus::Counter* num_preemptions = nullptr;
  prometheus::Histogram* iteration_tokens = nullptr;
  prometheus::Histogram* decode_step_time = nullptr;
  prometheus::Histogram* prefill_step_time = nullptr;
  prometheus::Counter* busy_seconds = nullptr;
  prometheus::Gauge* last_step_time = nullptr;  // Unix seconds
  prometheus::Gauge* group_up = nullptr;
  prometheus::Gauge* epoch = nullptr;
  prometheus::Histogram* switch_pause = nullptr;
  prometheus::Counter* recomputed_sequences = nullptr;

 private:
  struct Families;

  void BuildEngine();
  void BuildRanks(int num_ranks);
  PlacementMetrics MakePlacement(const std::string& name) const;

  const std::unique_ptr<prometheus::Registry> registry_;
  const std::unique_ptr<Families> families_;
  const std::vector<double> token_buckets_;  // 1, 2, 5, 10, ... to the context
  std::vector<RankMetrics> ranks_;
  prometheus::Gauge* alive_ = nullptr;

  absl::Mutex mutex_;
  std::map<std::string, PlacementMetrics, std::less<>> placements_
      ABSL_GUARDED_BY(mutex_);
  prometheus::Gauge* default_placement_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_METRICS_H_
