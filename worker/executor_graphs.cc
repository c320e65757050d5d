// Steps as recorded graphs, in an Executor.
#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "kernels/check.h"
#include "kernels/status.h"
#include "log/log.h"
#include "worker/executor.h"

namespace switchyard {
namespace {

// Device memory of a recorded launch: parameters and the driver's own records.
constexpr int64_t kBytesPerNode = 2048;

constexpr int32_t kPaddingToken = 0;

}  // namespace

std::optional<GraphPlan> Executor::FindShape(
    const std::vector<Work>& batch) const {
  if (!graphs_enabled_) return std::nullopt;
  std::vector<GraphEntry> entries;
  entries.reserve(batch.size());
  for (const Work& work : batch) {
    if (work.num_tokens != 1 || !work.sample) return std::nullopt;
    const WorkerSequence& sequence = *work.sequence;
    entries.push_back({&sequence.cache.placement(),
                       OutputStage::NumBiases(sequence),
                       sequence.sampling.num_logprobs.has_value()});
  }
  return PlanGraph(entries, {limits_.max_rows});
}

absl::Status Executor::RunPadded(const std::vector<Work>& batch,
                                 const GraphPlan& shape, Step& step) {
  const GraphKey& key = shape.key;
  std::vector<SequenceCache> padding;
  padding.reserve(key.groups.size());
  std::vector<BatchEntry> entries;
  std::vector<const SequenceCache*> caches;
  for (const GraphGroup& group : key.groups) {
    padding.push_back(cache_->PaddingCache(group.placement));
    for (int32_t i = 0; i < group.num_rows; ++i) {
      const int32_t row = static_cast<int32_t>(entries.size());
      const int32_t entry = shape.entries[row];
      if (entry < 0) {
        entries.push_back({&padding.back().placement(),
                           absl::MakeConstSpan(&kPaddingToken, 1), 0});
        caches.push_back(&padding.back());
        continue;
      }
      entries.push_back(EntryOf(batch[entry]));
      caches.push_back(&batch[entry].sequence->cache);
    }
  }
  // The samples are reported in the order of the plan.
  std::vector<int32_t> row_of_entry(batch.size());
  for (size_t row = 0; row < shape.entries.size(); ++row) {
    if (shape.entries[row] >= 0) row_of_entry[shape.entries[row]] = row;
  }
  for (size_t i = 0; i < batch.size(); ++i) {
    output_->AddSample(step.output, *batch[i].sequence, row_of_entry[i]);
  }

  // A graph serves whatever contexts there may be. It reads the tables from
  // where they begin; how long they are does not move anything.
  const BatchPlan plan = PlanBatch(entries, limits_.max_context_tokens);
  step_buffer_.Clear();
  output_->PackPadded(step.output, plan.num_seqs, key.num_biases, key.logprobs,
                      step_buffer_);
  BatchPacker packer(&plan);
  packer.Pack(caches, *cache_, step_buffer_);
  const int64_t packed_bytes = packer.tables_offset();
  SY_RETURN_IF_ERROR(Upload());
  if (graphs_generation_ != step_buffer_.generation()) {
    graphs_.Clear();  // the arrays they read have moved
    graphs_generation_ = step_buffer_.generation();
  }

  RecordedStep* const recorded = graphs_.Find(key);
  if (recorded != nullptr) {
    SY_CHECK(recorded->packed_bytes == packed_bytes);
    SY_RETURN_IF_ERROR(recorded->graph->Launch());
    step.graph = true;
  } else {
    SY_RETURN_IF_ERROR(RunOnDevice({&packer, 1}, step.output).status());
  }
  SY_RETURN_IF_ERROR(output_->ReadSamples(step.output));
  SY_RETURN_IF_ERROR(marks(num_launched_).end->Set());
  if (recorded != nullptr) return absl::OkStatus();
  // While placements change hands, most mixed shapes come once: a second time
  // makes them worth recording.
  if (key.groups.size() > 1 && seen_.Find(key) == nullptr) {
    seen_.Insert(key, true, 0);
    return absl::OkStatus();
  }

  // The device is at work on what was just launched: recording the same again
  // costs this thread's time only.
  const absl::Time start = absl::Now();
  absl::StatusOr<std::unique_ptr<StepGraph>> graph = step_device_->Record([&] {
    return RunOnDevice({&packer, 1}, step.output).status();
  });
  if (!graph.ok()) return GiveUpGraphs(key, graph.status());
  const int64_t num_nodes = (*graph)->num_nodes();
  graphs_.Insert(key, {*std::move(graph), packed_bytes},
                 num_nodes * kBytesPerNode);
  step.record_time = absl::Now() - start;
  Log(LogLevel::kInfo, "recorded a graph",
      {{"rows", key.num_rows()},
       {"placements", key.groups.size()},
       {"launches", num_nodes},
       {"seconds", absl::ToDoubleSeconds(step.record_time)},
       {"graphs", graphs_.size()}});
  return absl::OkStatus();
}

absl::Status Executor::GiveUpGraphs(const GraphKey& key,
                                    const absl::Status& why) {
  // Ranks of a group cannot part ways here: NCCL wants an operation to be in a
  // graph on all of them or on none.
  if (!absl::IsResourceExhausted(why) || group_->world_size() > 1) {
    return absl::Status(why.code(),
                        absl::StrCat("recording a graph of ", key.num_rows(),
                                     " rows: ", why.message()));
  }
  Log(LogLevel::kWarning,
      "no memory for another graph: goes on without graphs, slower",
      {{"rows", key.num_rows()},
       {"placements", key.groups.size()},
       {"graphs", graphs_.size()},
       {"why", why.message()}});
  graphs_enabled_ = false;
  graphs_.Clear();
  seen_.Clear();
  to_warm_.clear();
  return absl::OkStatus();
}

void Executor::PlanWarming(const Placement& placement) {
  to_warm_.clear();
  // Ranks prepare at moments of their own, so a run here would mix up the order
  // of their collectives; in a group, steps record what they meet.
  if (!graphs_enabled_ || group_->world_size() > 1) return;
  const int32_t most = BatchBucket(
      std::max<int32_t>(1, static_cast<int32_t>(sequences_.size())));
  for (int32_t rows = most; rows >= 1;) {
    const std::vector<GraphEntry> entries(rows,
                                          GraphEntry{&placement, 0, false});
    std::optional<GraphPlan> plan = PlanGraph(entries, {limits_.max_rows});
    if (plan.has_value() && graphs_.Find(plan->key) == nullptr) {
      plan->entries.assign(plan->entries.size(), -1);
      to_warm_.push_back(*std::move(plan));
    }
    --rows;
    while (rows >= 1 && BatchBucket(rows) != rows) --rows;
  }
}

absl::StatusOr<bool> Executor::Warm() {
  if (to_warm_.empty()) return false;
  SY_CHECK(num_steps_ < kMaxSteps);
  const GraphPlan shape = std::move(to_warm_.back());
  to_warm_.pop_back();
  if (graphs_.Find(shape.key) == nullptr) {
    // A step of padding alone; its place is free until the next launch, whose
    // marks and arrays come after it in the stream.
    Step& step = this->step(num_launched_);
    output_->Begin(step.output);
    warmed_ = true;
    SY_RETURN_IF_ERROR(RunPadded({}, shape, step));
    // The host's side of its arrays is the one that the next step will turn
    // from, so the step after that may not be packed before the copy is done.
    SY_RETURN_IF_ERROR(device_->Synchronize());
  }
  return !to_warm_.empty();
}

}  // namespace switchyard
