// Executor: runs the steps of one rank on one device.
//
// Owns the rank's model, cache and sequences; borrows device and collective.
// The coordinator decides everything; the executor checks what it is told (a
// bad plan is an error, never a crash) and does it. One thread uses it, as
// StepExecutor says.
//
// Invariants between steps: every sequence's cache covers and holds exactly its
// positions [0, num_cached); all ranks hold the same sequences and tokens.
#ifndef SWITCHYARD_WORKER_EXECUTOR_H_
#define SWITCHYARD_WORKER_EXECUTOR_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "kernels/op_context.h"
#include "model/cache_spec.h"
#include "model/config.h"
#include "model/placement.h"
#include "model/rank_group.h"
#include "model/transformer.h"
#include "switchyard/v1/worker.pb.h"
#include "worker/cache_store.h"
#include "worker/output_stage.h"
#include "worker/step_buffer.h"
#include "worker/step_executor.h"
#include "worker/worker_sequence.h"

namespace switchyard {

class Executor final : public StepExecutor {
 public:
  explicit Executor(std::unique_ptr<Device> device);
  ~Executor() override;

  absl::StatusOr<v1::ConfigureResponse> Load(
      const v1::ConfigureRequest& request, Collective& collective,
      LoadProgress& progress) override;
  absl::Status AllocateCache(uint64_t arena_bytes) override;
  absl::StatusOr<v1::StepResult> Execute(const v1::StepPlan& plan) override;
  absl::Status PreparePlacement(
      uint64_t epoch, const std::vector<std::string>& mixer_names) override;
  absl::Status CommitPlacement(uint64_t epoch) override;
  absl::Status AbortPlacement(uint64_t epoch) override;

  // For tests and `inspect`.
  int64_t num_sequences() const { return sequences_.size(); }
  int64_t num_cache_units_held() const {
    return cache_ == nullptr ? 0 : cache_->num_units_held();
  }

 private:
  // One sequence's part of the step, checked.
  struct Work {
    WorkerSequence* sequence = nullptr;
    int32_t start = 0;
    int32_t num_tokens = 0;
    bool sample = false;
  };
  struct Limits {
    int32_t max_num_seqs = 0;
    int32_t max_num_batched_tokens = 0;
    int32_t max_context_tokens = 0;
    bool batch_invariant = false;
    bool poison_freed_cache = false;
  };

  absl::Status ReadLimits(const v1::ConfigureRequest& request);
  absl::Status LoadModel(const v1::ConfigureRequest& request, DType dtype,
                         LoadProgress& progress);
  absl::Status AllocateWorkspace();

  // The parts of a plan, in the order in which they apply.
  absl::Status Finish(const v1::StepPlan& plan);
  absl::Status LearnPlacements(const v1::StepPlan& plan);
  absl::Status Start(const v1::StepPlan& plan);
  absl::StatusOr<std::vector<Work>> Check(const v1::StepPlan& plan);
  absl::StatusOr<Work> CheckStep(const v1::SequenceStep& step);
  absl::Status Run(const std::vector<Work>& batch, v1::StepResult& result);

  const std::unique_ptr<Device> device_;
  Limits limits_;
  ModelConfig config_;
  Collective* collective_ = nullptr;
  std::unique_ptr<RankGroup> group_;
  std::optional<CacheSpec> cache_spec_;
  std::unique_ptr<Transformer> model_;
  std::unique_ptr<OutputStage> output_;
  DeviceBuffer workspace_buffer_;
  Workspace workspace_;
  StepBuffer step_buffer_;
  std::unique_ptr<CacheStore> cache_;

  std::map<uint32_t, Placement> placements_;      // by id
  std::map<uint64_t, WorkerSequence> sequences_;  // by id
  std::optional<uint64_t> prepared_epoch_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_EXECUTOR_H_
