// A tensor-parallel group of executors in one process, and a small coordinator
// that drives it: ids, cache units, chunks. For tests.
#ifndef SWITCHYARD_TESTS_WORKER_EXECUTOR_HARNESS_H_
#define SWITCHYARD_TESTS_WORKER_EXECUTOR_HARNESS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "model/cache_spec.h"
#include "model/config.h"
#include "model/placement.h"
#include "switchyard/v1/worker.pb.h"
#include "worker/collective.h"
#include "worker/executor.h"
#include "worker/step_device.h"

namespace switchyard {

// A device's own StepDevice, to be changed in parts by whoever inherits it.
class StepDeviceAsItIs : public StepDevice {
 public:
  explicit StepDeviceAsItIs(Device* device) : own_(MakeStepDevice(device)) {}

  absl::StatusOr<std::unique_ptr<StreamMark>> MakeMark() override {
    return own_->MakeMark();
  }
  absl::StatusOr<std::unique_ptr<SideStream>> MakeSideStream() override {
    return own_->MakeSideStream();
  }
  bool has_graphs() const override { return own_->has_graphs(); }
  absl::StatusOr<std::unique_ptr<StepGraph>> Record(
      absl::FunctionRef<absl::Status()> launch) override {
    return own_->Record(launch);
  }
  absl::Status FetchTokens(const FetchTokensArgs& args) override {
    return own_->FetchTokens(args);
  }
  absl::Status StoreTokens(const StoreTokensArgs& args) override {
    return own_->StoreTokens(args);
  }

 private:
  const std::unique_ptr<StepDevice> own_;
};

struct HarnessOptions {
  std::string model_dir;
  int32_t world_size = 1;
  int32_t max_num_seqs = 16;
  int32_t max_num_batched_tokens = 512;
  int32_t block_size = 16;
  int64_t arena_bytes = int64_t{32} << 20;
  bool poison_freed_cache = true;
  std::string device = "cpu";
  std::string dtype = "auto";
  bool enable_graphs = false;
  bool batch_invariant = false;
  uint32_t overlap_tokens = 0;
  // Of each executor's device; empty: the device's own.
  std::function<std::unique_ptr<StepDevice>(Device*)> make_step_device;
  // Around each rank's collective; empty: as it is.
  std::function<std::unique_ptr<Collective>(std::unique_ptr<Collective>)>
      wrap_collective;
  // Generate keeps two steps under way, and runs sequences until their last
  // token has arrived, as a coordinator that waits for stop tokens does.
  bool overlapped = false;
};

struct HarnessRequest {
  std::vector<std::string> mixers;  // empty: the main placement
  std::vector<int32_t> prompt;
  int32_t max_tokens = 1;
  v1::SamplingParams sampling;  // as it is; greedy by GreedyWithLogprobs()
  uint64_t seed = 0;
};

struct HarnessResult {
  std::vector<int32_t> tokens;
  std::vector<v1::TokenLogprobs> logprobs;         // of each, if asked for
  std::vector<v1::TokenLogprobs> prompt_logprobs;  // [0] is empty
};

// Greedy, with the token's own log-probabilities and `num_top` beside them.
v1::SamplingParams GreedyWithLogprobs(int32_t num_top = 0);

class ExecutorHarness {
 public:
  static absl::StatusOr<std::unique_ptr<ExecutorHarness>> Create(
      const HarnessOptions& options);

  // Runs the requests together to their end: decodes first, then chunks of
  // prompts, at most `token_budget` tokens a step (0: as configured).
  absl::StatusOr<std::vector<HarnessResult>> Generate(
      const std::vector<HarnessRequest>& requests, int32_t token_budget = 0);

  // The same for one.
  absl::StatusOr<HarnessResult> GenerateOne(const HarnessRequest& request,
                                            int32_t token_budget = 0);

  // --- Step by step.

  // Makes a plan that starts a sequence under a new id, and returns the id.
  uint64_t Start(v1::StepPlan& plan, const HarnessRequest& request);
  // Adds the sequence's next `num_tokens` positions, with the cache they need;
  // samples where they reach its end.
  void Add(v1::StepPlan& plan, uint64_t id, int32_t num_tokens);
  void Finish(v1::StepPlan& plan, uint64_t id);
  // Launches the plan on every rank; the first error.
  absl::Status Launch(const v1::StepPlan& plan);
  // The oldest launched step's result from the first rank, or the first error.
  // Sampled tokens join their sequences.
  absl::StatusOr<v1::StepResult> Collect();
  absl::StatusOr<v1::StepResult> Execute(const v1::StepPlan& plan);

  // What a sequence has cached, kept for others to begin with.
  struct Prefix {
    int32_t num_tokens = 0;
    std::vector<std::vector<uint32_t>> shared;  // [layer] full blocks
    std::vector<std::vector<uint32_t>> state;   // [layer] copies of the rest
  };
  // Before the sequence is added to the plan.
  Prefix Keep(v1::StepPlan& plan, uint64_t id);
  // Adds the sequence that was started last, which begins with `prefix`.
  void AddWith(v1::StepPlan& plan, uint64_t id, const Prefix& prefix,
               int32_t num_tokens);

  // Executor::CopyCache on every rank; the sequence then goes on from there.
  absl::Status CopyCache(uint64_t from_id, uint64_t to_id);

  int32_t num_left(uint64_t id) const {
    const Sequence& s = sequences_.at(id);
    return s.num_tokens() - s.num_cached;
  }
  const std::vector<int32_t>& tokens(uint64_t id) const {
    return sequences_.at(id).tokens;
  }
  const ModelConfig& config() const { return config_; }
  const CacheSpec& cache_spec() const { return *cache_spec_; }
  Executor& executor(int32_t rank) { return *executors_[rank]; }

 private:
  struct Sequence {
    Placement placement;
    std::vector<int32_t> tokens;
    int32_t num_pending = 0;  // sampled by steps under way
    int32_t num_cached = 0;
    int32_t num_tokens() const {
      return static_cast<int32_t>(tokens.size()) + num_pending;
    }
    std::vector<std::vector<uint32_t>> units;  // [layer]
  };

  ExecutorHarness() = default;

  // On every rank at once; the first error.
  absl::Status OnEveryRank(
      const std::function<absl::Status(int32_t rank)>& action);

  uint32_t AllocateUnit(int64_t bytes);
  uint32_t PlacementId(v1::StepPlan& plan, const Placement& placement);

  HarnessOptions options_;
  ModelConfig config_;
  std::optional<CacheSpec> cache_spec_;
  std::vector<std::unique_ptr<Collective>> collectives_;
  std::vector<std::unique_ptr<Executor>> executors_;
  std::map<uint64_t, Sequence> sequences_;
  std::vector<Placement> placements_;  // by id
  uint64_t next_id_ = 1;
  uint64_t next_step_ = 1;
  int64_t arena_used_ = 0;
  std::map<int64_t, std::vector<uint32_t>> free_units_;  // by bytes
  std::set<uint32_t> shared_units_;                      // never free again
};

// Where the models of these tests lie.
inline constexpr char kTinyDir[] = "tests/testdata/apriel2-tiny";
inline constexpr char kStochasticDir[] = "tests/testdata/zoo-stochastic5";

// On the CPU, otherwise as HarnessOptions has it. REQUIRES: the model loads.
std::unique_ptr<ExecutorHarness> Harness(const std::string& model_dir,
                                         int32_t world_size = 1);

// Expects that the step had two sequences, which got the same token with the
// same log-probabilities, bit for bit.
void ExpectTwins(const absl::StatusOr<v1::StepResult>& result);

// Made-up token ids below 300, others for every salt.
std::vector<int32_t> Prompt(int32_t length, int32_t salt = 0);

}  // namespace switchyard

#endif  // SWITCHYARD_TESTS_WORKER_EXECUTOR_HARNESS_H_
