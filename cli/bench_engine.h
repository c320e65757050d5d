// One rank's executor in this process, driven by a benchmark instead of a
// coordinator: no gRPC, no scheduler, the plans that these would make.
#ifndef SWITCHYARD_CLI_BENCH_ENGINE_H_
#define SWITCHYARD_CLI_BENCH_ENGINE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cli/bench_ranks.h"
#include "cli/bench_work.h"
#include "cli/ceilings.h"
#include "cli/flags.h"
#include "model/cache_spec.h"
#include "model/config.h"
#include "model/placement.h"
#include "model/rank_group.h"
#include "switchyard/v1/worker.pb.h"
#include "worker/executor.h"

namespace switchyard {

struct BenchModelOptions {
  std::string model_dir;            // or
  std::string random_init;          // a named shape
  std::vector<std::string> mixers;  // of it; empty: all
  std::string dtype = "auto";
  int32_t block_size = kDefaultBlockSize;
  bool graphs = true;
  bool batch_invariant = false;
  int32_t overlap_tokens = kDefaultOverlapTokens;
  float temperature = 0;
  float top_p = 1;
};

void AddModelFlags(BenchModelOptions* options, FlagSet* flags);

struct StepTimes {
  double median_ms = 0;
  double p10_ms = 0;
  double p90_ms = 0;
};
// REQUIRES: not empty.
StepTimes Summarize(std::vector<double> ms);

class BenchEngine {
 public:
  struct Limits {
    int32_t max_num_seqs = 1;
    int32_t max_num_batched_tokens = 1;
    int32_t max_context_tokens = 1;
  };

  // Measures the ceilings of the device, meets the other ranks, loads.
  static absl::StatusOr<std::unique_ptr<BenchEngine>> Load(
      const BenchModelOptions& model, const RankOptions& ranks,
      const Limits& limits);

  // The config alone, for what depends on it before loading.
  static absl::StatusOr<ModelConfig> ReadConfig(const BenchModelOptions& model);

  const ModelConfig& config() const { return config_; }
  const Ceilings& ceilings() const { return ceilings_; }
  int64_t available_cache_bytes() const { return available_cache_bytes_; }
  bool is_first_rank() const { return ranks_.rank == 0; }
  // What JSON and the heading say of this run.
  nlohmann::json Describe() const;
  void PrintHeading(const char* benchmark) const;

  // Cache bytes of `batch` sequences of `context` tokens.
  int64_t CacheBytes(const Placement& placement, int32_t batch,
                     int32_t context) const;
  absl::Status AllocateCache(int64_t bytes);

  // Computes a prompt of `num_tokens` tokens in chunks, samples one token and
  // forgets the sequence; milliseconds.
  absl::StatusOr<double> Prefill(const Placement& placement, int32_t num_tokens,
                                 int32_t chunk);
  // Starts `batch` sequences that are about to decode at position `context`:
  // computes the cache of the first in chunks and copies it to the others,
  // which have the same tokens.
  absl::Status Fill(const Placement& placement, int32_t batch, int32_t context,
                    int32_t chunk);
  // A step of all sequences that Fill started, a token each. Like the worker,
  // launches it up to one step ahead of Collect.
  absl::Status LaunchDecode();
  absl::StatusOr<v1::StepResult> Collect() { return executor_->Collect(); }
  // Forgets all sequences.
  absl::Status Clear();

  StepTraffic Traffic(const Placement& placement, int32_t batch,
                      int32_t context) const {
    return TrafficOfStep(config_, *cache_spec_, matrix_element_bytes_,
                         placement, batch, context);
  }

 private:
  struct Sequence {
    uint64_t id = 0;
    int32_t num_cached = 0;
    std::vector<int64_t> num_units;  // [layer] of cache held
  };

  BenchEngine() = default;
  absl::Status LoadExecutor(const Limits& limits);
  Sequence StartSequence(v1::StepPlan& plan, const Placement& placement,
                         int32_t num_tokens);
  // The next `num_tokens` positions, with the cache that positions up to
  // `cover` need.
  void AddStep(v1::StepPlan& plan, Sequence& sequence, int32_t num_tokens,
               int64_t cover, bool sample);
  absl::Status Launch(v1::StepPlan plan);
  absl::Status Execute(v1::StepPlan plan);

  BenchModelOptions model_;
  RankOptions ranks_;
  ModelConfig config_;
  Ceilings ceilings_;
  std::unique_ptr<Collective> collective_;  // outlives the executor
  std::unique_ptr<Executor> executor_;
  std::string device_name_;
  double load_seconds_ = 0;
  int64_t weights_bytes_ = 0;
  int64_t available_cache_bytes_ = 0;
  int32_t matrix_element_bytes_ = 0;
  std::optional<CacheSpec> cache_spec_;

  int64_t arena_used_ = 0;
  std::optional<Placement> placement_;  // of the sequences
  std::vector<Sequence> sequences_;
  uint64_t next_sequence_id_ = 1;
  uint64_t next_step_id_ = 1;
};

// Reads what WriteJson wrote.
absl::StatusOr<nlohmann::json> ReadJson(const std::string& path);
// What a command does with the JSON of its results; nothing without a path.
absl::Status WriteJson(const std::optional<std::string>& path,
                       const nlohmann::json& json);

// Prints `switchyard bench NAME: message` and ends this process at once, and
// with it the ranks that it started; they may be inside a collective.
[[noreturn]] void EndBench(const char* name, const absl::Status& status);

}  // namespace switchyard

#endif  // SWITCHYARD_CLI_BENCH_ENGINE_H_
