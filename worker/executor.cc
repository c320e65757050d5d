#include "worker/executor.h"

#include <algorithm>
#include <limits>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "kernels/check.h"
#include "kernels/status.h"
#include "worker/batch_packer.h"
#include "worker/batch_planner.h"

namespace switchyard {
namespace {

constexpr int64_t kMaxGraphs = 128;  // far more than a few placements need

absl::Status BadSequence(uint64_t sequence_id, absl::string_view problem) {
  return absl::InvalidArgumentError(
      absl::StrCat("sequence ", sequence_id, " ", problem));
}

// Adds what the plan was doing to a status of a lower layer.
absl::Status Annotate(const absl::Status& status, absl::string_view context) {
  if (status.ok()) return status;
  return absl::Status(status.code(),
                      absl::StrCat(context, ": ", status.message()));
}

}  // namespace

Executor::Executor(std::unique_ptr<Device> device,
                   std::unique_ptr<StepDevice> step_device)
    : device_(std::move(device)),
      step_device_(step_device != nullptr ? std::move(step_device)
                                          : MakeStepDevice(device_.get())),
      step_buffer_(device_.get()),
      graphs_({kMaxGraphs, kMaxGraphBytes}),
      seen_({kMaxGraphs, kMaxGraphBytes}) {}

Executor::~Executor() {
  // Memory that the device still works on must not be freed. What went wrong
  // there, if anything, has been reported or is no longer of interest.
  if (side_stream_ != nullptr) {
    const absl::StatusOr<int64_t> mark = side_stream_->Mark();
    if (mark.ok()) (void)side_stream_->Join(*mark);
  }
  (void)device_->Synchronize();
}

absl::Status Executor::AllocateCache(uint64_t arena_bytes) {
  SY_CHECK(cache_spec_.has_value());
  CacheStoreOptions options;
  options.arena_bytes = static_cast<int64_t>(
      std::min<uint64_t>(arena_bytes, std::numeric_limits<int64_t>::max()));
  options.max_context_tokens = limits_.max_context_tokens;
  options.poison_freed = limits_.poison_freed_cache;
  SY_ASSIGN_OR_RETURN(
      cache_, CacheStore::Create(device_.get(), &*cache_spec_, options));
  return absl::OkStatus();
}

absl::Status Executor::Launch(const v1::StepPlan& plan) {
  SY_CHECK(cache_ != nullptr && num_steps_ < kMaxSteps);
  Step& step = this->step(num_launched_);
  const absl::Duration before = collective_->time_spent();
  output_->Begin(step.output);
  step.graph = false;
  step.record_time = absl::ZeroDuration();
  step.after_warming = std::exchange(warmed_, false);
  for (const uint32_t id : plan.kept()) {
    SY_RETURN_IF_ERROR(cache_->Keep(id));
  }
  SY_RETURN_IF_ERROR(Finish(plan));
  for (const uint32_t id : plan.dropped()) {
    SY_RETURN_IF_ERROR(cache_->Drop(id));
  }
  SY_RETURN_IF_ERROR(LearnPlacements(plan));
  SY_RETURN_IF_ERROR(Start(plan));
  SY_ASSIGN_OR_RETURN(const std::vector<Work> batch, Check(plan));
  SY_RETURN_IF_ERROR(CopyUnits(plan));
  if (batch.empty()) {
    SY_RETURN_IF_ERROR(marks(num_launched_).begin->Set());
    SY_RETURN_IF_ERROR(marks(num_launched_).end->Set());
  } else {
    SY_RETURN_IF_ERROR(Run(batch, step));
  }
  step.collective_time = collective_->time_spent() - before;
  ++num_launched_;
  ++num_steps_;
  return absl::OkStatus();
}

absl::StatusOr<bool> Executor::Ready() {
  SY_CHECK(num_steps_ > 0);
  return marks(num_launched_ - num_steps_).end->Reached();
}

absl::StatusOr<v1::StepResult> Executor::Collect() {
  SY_CHECK(num_steps_ > 0);
  const uint64_t number = num_launched_ - num_steps_;
  for (;;) {
    SY_ASSIGN_OR_RETURN(const bool ready, Ready());
    if (ready) break;
    std::this_thread::yield();
  }
  --num_steps_;
  const Step& step = this->step(number);
  v1::StepResult result;
  for (const StepOutput::Sample& sample : step.output.samples) {
    const auto it = sequences_.find(sample.sequence_id);
    // It may have been forgotten meanwhile, and another have its id.
    if (it == sequences_.end() ||
        it->second.incarnation != sample.incarnation) {
      continue;
    }
    it->second.tokens.push_back(step.output.tokens[sample.logits_row]);
    --it->second.num_pending;
  }
  if (group_->rank() == 0) output_->Report(step.output, result);
  result.set_collective_ms(absl::ToDoubleMilliseconds(step.collective_time));
  result.set_graph(step.graph);
  result.set_record_ms(absl::ToDoubleMilliseconds(step.record_time));
  SY_ASSIGN_OR_RETURN(const absl::Duration run,
                      marks(number).end->Since(*marks(number).begin));
  result.set_device_ms(absl::ToDoubleMilliseconds(run));
  // Between the two the device may have run what warms it up.
  if (number > 0 && !step.after_warming) {
    SY_ASSIGN_OR_RETURN(const absl::Duration idle,
                        marks(number).begin->Since(*marks(number - 1).end));
    result.set_device_idle_ms(absl::ToDoubleMilliseconds(idle));
  }
  return result;
}

absl::Status Executor::Finish(const v1::StepPlan& plan) {
  for (uint64_t id : plan.finished()) {
    const auto it = sequences_.find(id);
    if (it == sequences_.end()) {
      return BadSequence(id, "is to be forgotten, but is not known");
    }
    output_->Forget(it->second);
    SY_RETURN_IF_ERROR(cache_->Release(it->second.cache));
    sequences_.erase(it);
  }
  return absl::OkStatus();
}

absl::Status Executor::LearnPlacements(const v1::StepPlan& plan) {
  for (const v1::PlacementEntry& entry : plan.placements()) {
    std::vector<int32_t> mixers;
    for (uint32_t mixer : entry.mixer_ids()) {
      mixers.push_back(static_cast<int32_t>(
          std::min<uint32_t>(mixer, std::numeric_limits<int32_t>::max())));
    }
    absl::StatusOr<Placement> placement =
        Placement::FromIndices(config_, mixers);
    const std::string name = absl::StrCat("placement ", entry.placement_id());
    if (!placement.ok()) return Annotate(placement.status(), name);
    placements_.insert_or_assign(entry.placement_id(), *std::move(placement));
  }
  return absl::OkStatus();
}

absl::Status Executor::Start(const v1::StepPlan& plan) {
  const SequenceLimits limits{config_.vocab_size, limits_.max_context_tokens};
  for (const v1::SequenceStart& start : plan.started()) {
    const uint64_t id = start.sequence_id();
    if (sequences_.count(id) > 0) {
      return BadSequence(id, "is started, but is running already");
    }
    if (static_cast<int64_t>(sequences_.size()) >= limits_.max_num_seqs) {
      return BadSequence(id, absl::StrCat("is one too many: max_num_seqs is ",
                                          limits_.max_num_seqs));
    }
    const auto placement = placements_.find(start.placement_id());
    if (placement == placements_.end()) {
      return BadSequence(id,
                         absl::StrCat("has placement ", start.placement_id(),
                                      ", which is not known"));
    }
    SY_ASSIGN_OR_RETURN(WorkerSequence sequence,
                        MakeWorkerSequence(start, placement->second, limits));
    SY_RETURN_IF_ERROR(ShareCache(start, sequence));
    const auto it = sequences_.emplace(id, std::move(sequence)).first;
    it->second.incarnation = ++num_started_;
    output_->Admit(it->second);
  }
  return absl::OkStatus();
}

absl::Status Executor::ShareCache(const v1::SequenceStart& start,
                                  WorkerSequence& sequence) {
  const uint64_t id = start.sequence_id();
  if (start.num_cached() >= sequence.tokens.size()) {
    return BadSequence(id, absl::StrCat("has ", start.num_cached(),
                                        " cached positions, but only ",
                                        sequence.tokens.size(), " tokens"));
  }
  if (start.shared_layers_size() != start.shared_ids_size()) {
    return BadSequence(id, absl::StrCat("has ", start.shared_layers_size(),
                                        " shared layers, but ",
                                        start.shared_ids_size(), " ids"));
  }
  sequence.num_cached = static_cast<int32_t>(start.num_cached());
  for (int i = 0; i < start.shared_ids_size(); ++i) {
    SY_RETURN_IF_ERROR(
        Annotate(cache_->Share(sequence.cache, start.shared_layers(i),
                               start.shared_ids(i)),
                 absl::StrCat("sequence ", id)));
  }
  // What follows full blocks is written, and others read what is shared.
  const int64_t num_full = start.num_cached() / cache_spec_->block_size();
  for (const uint32_t layer : start.shared_layers()) {
    const int64_t num_shared = sequence.cache.ids(layer).size();
    if (num_shared <= num_full) continue;
    return BadSequence(
        id, absl::StrCat("shares ", num_shared, " blocks of layer ", layer,
                         ", but its ", start.num_cached(),
                         " cached positions fill ", num_full));
  }
  return absl::OkStatus();
}

absl::Status Executor::CopyUnits(const v1::StepPlan& plan) {
  std::vector<CacheStore::UnitCopy> copies;
  copies.reserve(plan.copies_size());
  for (const v1::CacheCopy& copy : plan.copies()) {
    copies.push_back({copy.from_id(), copy.to_id(), copy.keep()});
  }
  return cache_->Copy(copies);
}

absl::StatusOr<std::vector<Executor::Work>> Executor::Check(
    const v1::StepPlan& plan) {
  std::vector<Work> batch;
  std::set<uint64_t> ids;
  int64_t num_tokens = 0;
  for (const v1::SequenceStep& step : plan.batch()) {
    if (!ids.insert(step.sequence_id()).second) {
      return BadSequence(step.sequence_id(), "is twice in the batch");
    }
    SY_ASSIGN_OR_RETURN(const Work work, CheckStep(step));
    num_tokens += work.num_tokens;
    batch.push_back(work);
  }
  if (num_tokens > limits_.max_num_batched_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the batch has ", num_tokens, " tokens, max_num_batched_tokens is ",
        limits_.max_num_batched_tokens));
  }
  return batch;
}

absl::StatusOr<Executor::Work> Executor::CheckStep(
    const v1::SequenceStep& step) {
  const uint64_t id = step.sequence_id();
  const auto it = sequences_.find(id);
  if (it == sequences_.end()) return BadSequence(id, "is not known");
  WorkerSequence& sequence = it->second;

  if (step.num_tokens() == 0) return BadSequence(id, "has no token to run");
  if (step.start() != static_cast<uint32_t>(sequence.num_cached)) {
    return BadSequence(
        id, absl::StrCat("starts at position ", step.start(),
                         ", its cache ends at ", sequence.num_cached));
  }
  const int64_t end = int64_t{step.start()} + step.num_tokens();
  if (end > sequence.num_tokens()) {
    return BadSequence(id,
                       absl::StrCat("runs to position ", end, ", but has only ",
                                    sequence.num_tokens(), " tokens"));
  }
  if (step.sample() && end != sequence.num_tokens()) {
    return BadSequence(id, absl::StrCat("samples after position ", end, " of ",
                                        sequence.num_tokens()));
  }
  if (end > limits_.max_context_tokens) {
    return BadSequence(
        id, absl::StrCat("runs to position ", end, ", max_context_tokens is ",
                         limits_.max_context_tokens));
  }
  // A step samples only after all its tokens, so of the tokens that are not
  // here yet a plan can reach but the newest.
  const int64_t num_known = sequence.tokens.size();
  if (end > num_known &&
      std::max<int64_t>(step.start(), num_known) + 1 != sequence.num_tokens()) {
    return BadSequence(
        id,
        absl::StrCat("runs to position ", end, ", but only ", num_known,
                     " of its ", sequence.num_tokens(), " tokens are known"));
  }
  const std::string name = absl::StrCat("sequence ", id);
  if (step.cache_layers_size() != step.cache_ids_size()) {
    return BadSequence(id, absl::StrCat("has ", step.cache_layers_size(),
                                        " cache layers, but ",
                                        step.cache_ids_size(), " cache ids"));
  }
  for (int i = 0; i < step.cache_ids_size(); ++i) {
    SY_RETURN_IF_ERROR(Annotate(
        cache_->Append(sequence.cache, step.cache_layers(i), step.cache_ids(i)),
        name));
  }
  SY_RETURN_IF_ERROR(Annotate(cache_->CheckCovers(sequence.cache, end), name));
  return Work{&sequence, static_cast<int32_t>(step.start()),
              static_cast<int32_t>(step.num_tokens()), step.sample()};
}

absl::Status Executor::Run(const std::vector<Work>& batch, Step& step) {
  const std::optional<GraphPlan> shape = FindShape(batch);
  SY_RETURN_IF_ERROR(shape.has_value() ? RunPadded(batch, *shape, step)
                                       : RunEager(batch, step));
  for (const Work& work : batch) {
    work.sequence->num_cached += work.num_tokens;
    if (work.sample) ++work.sequence->num_pending;
  }
  return absl::OkStatus();
}

BatchEntry Executor::EntryOf(const Work& work) const {
  const WorkerSequence& sequence = *work.sequence;
  const int32_t num_known =
      std::min(work.num_tokens,
               static_cast<int32_t>(sequence.tokens.size()) - work.start);
  BatchEntry entry;
  entry.placement = &sequence.cache.placement();
  entry.token_ids =
      absl::MakeConstSpan(sequence.tokens).subspan(work.start, num_known);
  entry.start = work.start;
  // At most the sequence's newest token is unknown: CheckStep saw to it.
  if (num_known < work.num_tokens) entry.token_slot = sequence.token_slot;
  return entry;
}

Executor::PackedParts Executor::PackParts(const std::vector<Work>& batch) {
  std::vector<BatchEntry> entries;
  for (const Work& work : batch) entries.push_back(EntryOf(work));
  const std::vector<BatchPart> parts =
      CutBatch(entries, limits_.overlap_tokens);

  PackedParts packed;
  packed.plans.resize(parts.size());
  packed.first_rows.resize(batch.size());
  int32_t num_rows = 0;
  for (size_t p = 0; p < parts.size(); ++p) {
    std::vector<BatchEntry> pieces;
    std::vector<const SequenceCache*> caches;
    for (const BatchPiece& piece : parts[p]) {
      pieces.push_back(piece.entry);
      caches.push_back(&batch[piece.index].sequence->cache);
    }
    BatchPlan& plan = packed.plans[p];
    plan = PlanBatch(pieces);
    for (size_t i = 0; i < parts[p].size(); ++i) {
      const int32_t index = parts[p][i].index;
      if (pieces[i].start != batch[index].start) continue;  // the second piece
      packed.first_rows[index] = num_rows + plan.first_rows[i];
    }
    num_rows += plan.num_tokens;
    packed.packers.emplace_back(&plan).Pack(caches, *cache_, step_buffer_);
  }
  return packed;
}

absl::Status Executor::RunEager(const std::vector<Work>& batch, Step& step) {
  step_buffer_.Clear();
  const PackedParts packed = PackParts(batch);
  for (size_t i = 0; i < batch.size(); ++i) {
    const Work& work = batch[i];
    const int32_t first_row = packed.first_rows[i];
    if (work.sample) {
      output_->AddSample(step.output, *work.sequence,
                         first_row + work.num_tokens - 1);
    }
    output_->AddPrompt(step.output, *work.sequence, work.start, work.num_tokens,
                       first_row);
  }

  output_->Pack(step.output, step_buffer_);
  SY_RETURN_IF_ERROR(Upload());
  SY_ASSIGN_OR_RETURN(const HiddenState hidden,
                      RunOnDevice(packed.packers, step.output));
  SY_RETURN_IF_ERROR(output_->ReadSamples(step.output));
  if (!step.output.prompts.empty()) {
    const OpContext context{device_.get(), &workspace_,
                            limits_.batch_invariant};
    SY_RETURN_IF_ERROR(output_->ScorePrompts(context, *group_, *model_, hidden,
                                             step_buffer_, step.output));
  }
  return marks(num_launched_).end->Set();
}

absl::Status Executor::Upload() {
  output_->PackCounts(step_buffer_);
  SY_RETURN_IF_ERROR(step_buffer_.Upload());
  SY_RETURN_IF_ERROR(output_->ApplyCounts(step_buffer_));
  // The copies count as idle: the device computes nothing meanwhile.
  return marks(num_launched_).begin->Set();
}

absl::StatusOr<HiddenState> Executor::RunOnDevice(
    absl::Span<const BatchPacker> parts, const StepOutput& output) {
  workspace_.Reset();
  const OpContext context{device_.get(), &workspace_, limits_.batch_invariant};
  std::vector<ForwardBatch> batches;
  for (const BatchPacker& part : parts) {
    SY_RETURN_IF_ERROR(step_device_->FetchTokens(
        part.Fetch(output_->last_tokens(), step_buffer_)));
    batches.push_back(part.Resolve(*cache_, step_buffer_));
  }
  SY_ASSIGN_OR_RETURN(const HiddenState hidden,
                      model_->Forward(context, *group_, batches));
  SY_RETURN_IF_ERROR(
      output_->Sample(context, *group_, *model_, hidden, step_buffer_, output));
  return hidden;
}

absl::Status Executor::PreparePlacement(
    uint64_t epoch, const std::vector<std::string>& mixer_names) {
  SY_CHECK(model_ != nullptr);
  SY_ASSIGN_OR_RETURN(const Placement placement,
                      Placement::FromNames(config_, mixer_names));
  prepared_epoch_ = epoch;
  PlanWarming(placement);
  return absl::OkStatus();
}

absl::Status Executor::CommitPlacement(uint64_t epoch) {
  if (prepared_epoch_ != epoch) {
    return absl::FailedPreconditionError(
        absl::StrCat("epoch ", epoch, " is to be committed, but ",
                     prepared_epoch_.has_value()
                         ? absl::StrCat("epoch ", *prepared_epoch_, " is")
                         : "none is",
                     " prepared"));
  }
  prepared_epoch_.reset();
  return absl::OkStatus();
}

absl::Status Executor::AbortPlacement(uint64_t epoch) {
  if (prepared_epoch_ == epoch) {
    prepared_epoch_.reset();
    to_warm_.clear();
  }
  return absl::OkStatus();
}

}  // namespace switchyard
