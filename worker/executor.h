// Executor: runs the steps of one rank on one device.
//
// Owns the rank's model, cache and sequences; borrows device and collective.
// The coordinator decides everything; the executor checks what it is told (a
// bad plan is an error, never a crash) and does it. One thread uses it, as
// StepExecutor says.
//
// To drive it without a worker around it (benches, tests): Load with
// MakeLocalCollective(), AllocateCache, then Execute(plan) for one step at a
// time, or Launch(plan) up to kMaxSteps ahead of Collect() to keep the device
// busy, as a worker does; a plan may ask for the token after one that is still
// being sampled. StepResult has the device's own times. Steps in which every
// sequence decodes run as graphs on CUDA if ConfigureRequest.enable_graphs;
// the first step of a shape runs without, and is recorded.
//
// A step's order in the stream: fill, poison and copy the cache as the plan
// says (all of it device to device), copy the packed arrays to the device,
// fetch tokens that earlier steps sampled, run the model, sample, store the
// tokens, copy results to page-locked memory. Nothing in Launch waits for the
// device.
//
// Invariants: once every launched step is done, each sequence's cache covers
// and holds exactly its positions [0, num_cached); all ranks hold the same
// sequences and tokens.
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
#include "worker/batch_packer.h"
#include "worker/batch_planner.h"
#include "worker/cache_store.h"
#include "worker/graph_cache.h"
#include "worker/graph_planner.h"
#include "worker/output_stage.h"
#include "worker/step_buffer.h"
#include "worker/step_device.h"
#include "worker/step_executor.h"
#include "worker/worker_sequence.h"

namespace switchyard {

class Executor final : public StepExecutor {
 public:
  // Null for `step_device`: the device's own. Tests give another.
  explicit Executor(std::unique_ptr<Device> device,
                    std::unique_ptr<StepDevice> step_device = nullptr);
  ~Executor() override;

  absl::StatusOr<v1::ConfigureResponse> Load(
      const v1::ConfigureRequest& request, Collective& collective,
      LoadProgress& progress) override;
  absl::Status AllocateCache(uint64_t arena_bytes) override;
  absl::Status Launch(const v1::StepPlan& plan) override;
  int num_steps() const override { return num_steps_; }
  absl::StatusOr<bool> Ready() override;
  absl::StatusOr<v1::StepResult> Collect() override;
  absl::Status PreparePlacement(
      uint64_t epoch, const std::vector<std::string>& mixer_names) override;
  absl::StatusOr<bool> Warm() override;
  absl::Status CommitPlacement(uint64_t epoch) override;
  absl::Status AbortPlacement(uint64_t epoch) override;

  // For benchmarks, and out of reach of a plan: the second sequence, of the
  // same placement and first tokens, gets a copy of what the first has cached,
  // as if it had computed it. InvalidArgument, also when it lacks the cache for
  // them. REQUIRES: no step is under way.
  absl::Status CopyCache(uint64_t from_id, uint64_t to_id);

  // For tests.
  int64_t num_sequences() const { return sequences_.size(); }
  int64_t num_cache_units_held() const {
    return cache_ == nullptr ? 0 : cache_->num_units_held();
  }
  int64_t num_graphs() const { return graphs_.size(); }

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
    int32_t max_rows = 0;        // of a graph, padding included
    int32_t overlap_tokens = 0;  // see CutBatch
    bool batch_invariant = false;
    bool poison_freed_cache = false;
  };
  // A step under way, or the place for one.
  struct Step {
    StepOutput output;
    bool graph = false;
    // Work of Warm lies between it and the step before.
    bool after_warming = false;
    absl::Duration record_time;
    absl::Duration collective_time;
  };
  struct Marks {
    std::unique_ptr<StreamMark> begin;
    std::unique_ptr<StreamMark> end;
  };
  struct RecordedStep {
    std::unique_ptr<StepGraph> graph;
    int64_t packed_bytes = 0;  // of the arrays before the block tables
  };

  absl::Status ReadLimits(const v1::ConfigureRequest& request);
  absl::Status LoadModel(const v1::ConfigureRequest& request, DType dtype,
                         LoadProgress& progress);
  // Libraries of collectives take memory at the first operation of a kind and
  // size: here, before what is left is counted, and while all ranks have just
  // met.
  absl::Status WarmCollective();
  absl::Status AllocateWorkspace();
  absl::Status MakeSteps();

  // The parts of a plan, in the order in which they apply.
  absl::Status Finish(const v1::StepPlan& plan);
  absl::Status LearnPlacements(const v1::StepPlan& plan);
  absl::Status Start(const v1::StepPlan& plan);
  absl::StatusOr<std::vector<Work>> Check(const v1::StepPlan& plan);
  // What a started sequence has in the cache already.
  absl::Status ShareCache(const v1::SequenceStart& start,
                          WorkerSequence& sequence);
  absl::Status CopyUnits(const v1::StepPlan& plan);
  absl::StatusOr<Work> CheckStep(const v1::SequenceStep& step);
  absl::Status Run(const std::vector<Work>& batch, Step& step);
  // A batch in the parts that it runs in, in the step buffer.
  struct PackedParts {
    std::vector<BatchPlan> plans;
    std::vector<BatchPacker> packers;  // of the plans
    std::vector<int32_t> first_rows;   // of each sequence's new positions
  };
  PackedParts PackParts(const std::vector<Work>& batch);
  absl::Status RunEager(const std::vector<Work>& batch, Step& step);
  // The batch's shape as a graph; nothing where it cannot be one.
  std::optional<GraphPlan> FindShape(const std::vector<Work>& batch) const;
  // `batch` may be empty: all of it is padding then.
  absl::Status RunPadded(const std::vector<Work>& batch, const GraphPlan& plan,
                         Step& step);
  // After a step that could not be recorded, but has been launched: a device
  // without memory for its graph goes on without any, anything else is an
  // error.
  absl::Status GiveUpGraphs(const GraphKey& key, const absl::Status& why);
  // Lists the graphs that batches of this placement are likely to need first.
  void PlanWarming(const Placement& placement);
  BatchEntry EntryOf(const Work& work) const;
  // From packed arrays to sampled tokens, all on the device.
  absl::StatusOr<HiddenState> RunOnDevice(absl::Span<const BatchPacker> parts,
                                          const StepOutput& output);
  absl::Status Upload();
  Marks& marks(uint64_t step_number) { return marks_[step_number % kNumMarks]; }
  Step& step(uint64_t step_number) { return steps_[step_number % kMaxSteps]; }

  // Of recorded graphs, at most, by an estimate: what a hundred graphs of six
  // hundred launches take. Kept free beside the cache where there are graphs.
  static constexpr int64_t kMaxGraphBytes = int64_t{128} << 20;

  // The marks of a step and of the one before it outlive the launches of those
  // that may follow before it is collected.
  static constexpr uint64_t kNumMarks = 4;

  const std::unique_ptr<Device> device_;
  const std::unique_ptr<StepDevice> step_device_;
  Limits limits_;
  ModelConfig config_;
  Collective* collective_ = nullptr;
  std::unique_ptr<SideStream> side_stream_;  // may be null
  std::unique_ptr<RankGroup> group_;
  std::optional<CacheSpec> cache_spec_;
  std::unique_ptr<Transformer> model_;
  std::unique_ptr<OutputStage> output_;
  DeviceBuffer workspace_buffer_;
  Workspace workspace_;
  StepBuffer step_buffer_;
  std::unique_ptr<CacheStore> cache_;

  Step steps_[kMaxSteps];
  Marks marks_[kNumMarks];
  uint64_t num_launched_ = 0;  // since the start
  int num_steps_ = 0;          // the last of them, not collected yet
  uint64_t num_started_ = 0;   // sequences, since the start

  bool graphs_enabled_ = false;
  // Gone before the collective that they may hold operations of.
  GraphCache<GraphKey, RecordedStep> graphs_;
  // Shapes of several placements that have run, and are not recorded.
  GraphCache<GraphKey, bool> seen_;
  int64_t graphs_generation_ = 0;   // of the step buffer they read
  std::vector<GraphPlan> to_warm_;  // the next one last
  bool warmed_ = false;             // since the last launch

  std::map<uint32_t, Placement> placements_;      // by id
  std::map<uint64_t, WorkerSequence> sequences_;  // by id
  std::optional<uint64_t> prepared_epoch_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_EXECUTOR_H_
