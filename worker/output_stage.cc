#include "worker/output_stage.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "kernels/check.h"
#include "kernels/logits.h"
#include "kernels/status.h"
#include "model/scratch.h"

namespace switchyard {
namespace {

// Both ends of a step's log-probabilities have the same layout: fields of
// 4 bytes, one behind the other.
template <typename T>
T* Take(std::byte*& next, int64_t num) {
  T* const taken = reinterpret_cast<T*>(next);
  next += num * sizeof(T);
  return taken;
}

RowLogprobs TakeLogprobs(std::byte*& next, int64_t rows) {
  RowLogprobs logprobs;
  logprobs.target = Take<float>(next, rows);
  logprobs.top_ids = Take<int32_t>(next, rows * kMaxTopLogprobs);
  logprobs.top = Take<float>(next, rows * kMaxTopLogprobs);
  return logprobs;
}

constexpr int64_t LogprobsBytes(int64_t rows) {
  return rows * (1 + 2 * kMaxTopLogprobs) * 4;
}

void FillLogprobs(const RowLogprobs& logprobs, int64_t row, int32_t top_wanted,
                  v1::TokenLogprobs& out) {
  out.set_logprob(logprobs.target[row]);
  for (int32_t i = 0; i < top_wanted; ++i) {
    const int64_t at = row * logprobs.num_top + i;
    v1::TopLogprob& best = *out.add_top();
    best.set_token_id(static_cast<uint32_t>(logprobs.top_ids[at]));
    best.set_logprob(logprobs.top[at]);
  }
}

}  // namespace

OutputStage::OutputStage(Device* device, StepDevice* step_device,
                         const OutputOptions& options, DeviceBuffer counts,
                         DeviceBuffer last_tokens, DeviceBuffer results)
    : device_(device),
      step_device_(step_device),
      options_(options),
      max_logits_rows_(std::max<int64_t>(kMinSlabRows, options.max_rows)),
      counts_(std::move(counts)),
      last_tokens_(std::move(last_tokens)),
      results_memory_(std::move(results)),
      free_counts_rows_(options.max_num_seqs),
      free_token_slots_(options.max_num_seqs) {
  std::iota(free_counts_rows_.rbegin(), free_counts_rows_.rend(), 0);
  std::iota(free_token_slots_.rbegin(), free_token_slots_.rend(), 0);
  std::byte* next = results_memory_.get();
  results_.tokens = Take<int32_t>(next, options_.max_rows);
  if (!options_.reports) return;
  const RowLogprobs logprobs = TakeLogprobs(next, options_.max_rows);
  results_.target_logprobs = logprobs.target;
  results_.top_ids = logprobs.top_ids;
  results_.top_logprobs = logprobs.top;
}

absl::StatusOr<std::unique_ptr<OutputStage>> OutputStage::Create(
    Device* device, StepDevice* step_device, const OutputOptions& options) {
  SY_CHECK(options.max_rows >= options.max_num_seqs);
  const int64_t counts_bytes =
      int64_t{options.max_num_seqs} * options.vocab_size * sizeof(uint16_t);
  SY_ASSIGN_OR_RETURN(DeviceBuffer counts, device->Allocate(counts_bytes));
  const int64_t last_bytes =
      (int64_t{options.max_num_seqs} + 1) * sizeof(int32_t);
  SY_ASSIGN_OR_RETURN(DeviceBuffer last, device->Allocate(last_bytes));
  SY_RETURN_IF_ERROR(device->Fill(last.get(), 0, last_bytes));
  const int64_t results_bytes =
      options.max_rows * int64_t{sizeof(int32_t)} +
      (options.reports ? LogprobsBytes(options.max_rows) : 0);
  SY_ASSIGN_OR_RETURN(DeviceBuffer results, device->Allocate(results_bytes));
  return std::unique_ptr<OutputStage>(
      new OutputStage(device, step_device, options, std::move(counts),
                      std::move(last), std::move(results)));
}

absl::StatusOr<StepOutput> OutputStage::MakeOutput() const {
  StepOutput output;
  int64_t bytes = options_.max_rows * int64_t{sizeof(int32_t)};
  if (options_.reports) {
    bytes += LogprobsBytes(options_.max_rows) +
             LogprobsBytes(options_.max_prompt_rows);
  }
  SY_ASSIGN_OR_RETURN(output.host, device_->AllocateHost(bytes));
  std::byte* next = output.host.get();
  output.tokens = Take<int32_t>(next, options_.max_rows);
  if (options_.reports) {
    output.sample_logprobs = TakeLogprobs(next, options_.max_rows);
    output.prompt_logprobs = TakeLogprobs(next, options_.max_prompt_rows);
  }
  return output;
}

void OutputStage::Admit(WorkerSequence& sequence) {
  SY_CHECK(!free_token_slots_.empty());
  sequence.token_slot = free_token_slots_.back();
  free_token_slots_.pop_back();
  if (!sequence.sampling.has_penalties) return;
  SY_CHECK(!free_counts_rows_.empty());
  constexpr uint16_t kMaxCount = kCountsPromptBit - 1;
  NewCounts counts;
  counts.counts.resize(options_.vocab_size);
  for (int32_t i = 0; i < sequence.num_tokens(); ++i) {
    uint16_t& count = counts.counts[sequence.tokens[i]];
    if (i < sequence.num_prompt_tokens) {
      count |= kCountsPromptBit;
    } else if ((count & kMaxCount) < kMaxCount) {
      ++count;
    }
  }
  sequence.counts_row = free_counts_rows_.back();
  free_counts_rows_.pop_back();
  counts.row = sequence.counts_row;
  new_counts_.push_back(std::move(counts));
}

void OutputStage::Forget(WorkerSequence& sequence) {
  free_token_slots_.push_back(sequence.token_slot);
  sequence.token_slot = -1;
  if (sequence.counts_row < 0) return;
  new_counts_.erase(std::remove_if(new_counts_.begin(), new_counts_.end(),
                                   [&sequence](const NewCounts& counts) {
                                     return counts.row == sequence.counts_row;
                                   }),
                    new_counts_.end());
  free_counts_rows_.push_back(sequence.counts_row);
  sequence.counts_row = -1;
}

void OutputStage::Begin(StepOutput& output) const {
  output.samples.clear();
  output.num_rows = 0;
  output.num_logprob_rows = 0;
  output.prompts.clear();
  output.prompt_rows.clear();
  output.prompt_targets.clear();
}

void OutputStage::AddSample(StepOutput& output, const WorkerSequence& sequence,
                            int32_t row) const {
  SY_CHECK(static_cast<int64_t>(output.samples.size()) < options_.max_num_seqs);
  StepOutput::Sample sample;
  sample.sequence_id = sequence.id;
  sample.incarnation = sequence.incarnation;
  sample.num_logprobs = sequence.sampling.num_logprobs;
  sample.row = row;
  sample.sequence = &sequence;
  output.samples.push_back(sample);
}

void OutputStage::AddPrompt(StepOutput& output, const WorkerSequence& sequence,
                            int32_t start, int32_t num_tokens,
                            int32_t first_row) const {
  if (!sequence.sampling.num_prompt_logprobs.has_value()) return;
  // The row of position p yields the token at p + 1.
  const int32_t end =
      std::min(start + num_tokens, sequence.num_prompt_tokens - 1);
  if (end <= start) return;
  output.prompts.push_back(
      {sequence.id, start + 1, *sequence.sampling.num_prompt_logprobs,
       static_cast<int64_t>(output.prompt_rows.size()), end - start});
  for (int32_t p = start; p < end; ++p) {
    output.prompt_rows.push_back(first_row + p - start);
    output.prompt_targets.push_back(sequence.tokens[p + 1]);
  }
}

int32_t OutputStage::NumBiases(const WorkerSequence& sequence) {
  const SequenceSampling& sampling = sequence.sampling;
  return static_cast<int32_t>(sequence.num_generated() < sampling.min_tokens
                                  ? sampling.early_bias.size()
                                  : sampling.bias.size());
}

SamplingRow OutputStage::RowOf(const WorkerSequence& sequence) const {
  SamplingRow row = sequence.sampling.row;
  row.counts_row = sequence.counts_row;
  row.draw = static_cast<uint32_t>(sequence.num_generated());
  return row;
}

void OutputStage::PackRows(StepOutput& output,
                           absl::Span<const int32_t> sample_of_row,
                           int32_t num_biases, StepBuffer& buffer) const {
  std::vector<int32_t> rows, slots, bias_ids(num_biases);
  std::vector<float> bias_values(num_biases);
  std::vector<SamplingRow> sampling;
  rows.reserve(sample_of_row.size());
  slots.reserve(sample_of_row.size());
  sampling.reserve(sample_of_row.size());
  int32_t num_used = 0;
  for (size_t r = 0; r < sample_of_row.size(); ++r) {
    if (sample_of_row[r] < 0) {
      SamplingRow padding;
      padding.temperature = 0;
      rows.push_back(static_cast<int32_t>(r));
      slots.push_back(padding_slot());
      sampling.push_back(padding);
      continue;
    }
    StepOutput::Sample& sample = output.samples[sample_of_row[r]];
    const WorkerSequence& sequence = *sample.sequence;
    sample.logits_row = static_cast<int32_t>(r);
    rows.push_back(sample.row);
    slots.push_back(sequence.token_slot);
    SamplingRow row = RowOf(sequence);
    row.bias_begin = num_used;
    const bool early = sequence.num_generated() < sequence.sampling.min_tokens;
    for (const TokenBias& bias :
         early ? sequence.sampling.early_bias : sequence.sampling.bias) {
      SY_CHECK(num_used < num_biases);
      bias_ids[num_used] = bias.token_id;
      bias_values[num_used++] = bias.value;
    }
    row.bias_end = num_used;
    sampling.push_back(row);
  }
  for (StepOutput::Sample& sample : output.samples) sample.sequence = nullptr;
  output.num_rows = static_cast<int32_t>(rows.size());
  output.sample_rows = buffer.Append(absl::MakeConstSpan(rows));
  output.token_slots = buffer.Append(absl::MakeConstSpan(slots));
  output.sampling = buffer.Append(absl::MakeConstSpan(sampling));
  output.bias_ids = buffer.Append(absl::MakeConstSpan(bias_ids));
  output.bias_values = buffer.Append(absl::MakeConstSpan(bias_values));
  output.prompt_rows_slice =
      buffer.Append(absl::MakeConstSpan(output.prompt_rows));
  output.prompt_targets_slice =
      buffer.Append(absl::MakeConstSpan(output.prompt_targets));
}

void OutputStage::Pack(StepOutput& output, StepBuffer& buffer) const {
  std::vector<int32_t> order(output.samples.size());
  std::iota(order.begin(), order.end(), 0);
  const auto middle =
      std::stable_partition(order.begin(), order.end(), [&output](int32_t i) {
        return output.samples[i].num_logprobs.has_value();
      });
  int32_t num_biases = 0;
  output.sample_logprobs.num_top = 0;
  for (const StepOutput::Sample& sample : output.samples) {
    num_biases += NumBiases(*sample.sequence);
    output.sample_logprobs.num_top = std::max(output.sample_logprobs.num_top,
                                              sample.num_logprobs.value_or(0));
  }
  output.num_logprob_rows =
      options_.reports ? static_cast<int32_t>(middle - order.begin()) : 0;
  output.prompt_logprobs.num_top = 0;
  for (const StepOutput::Prompt& prompt : output.prompts) {
    output.prompt_logprobs.num_top =
        std::max(output.prompt_logprobs.num_top, prompt.num_top);
  }
  PackRows(output, order, num_biases, buffer);
}

void OutputStage::PackPadded(StepOutput& output, int32_t num_rows,
                             int32_t num_biases, bool logprobs,
                             StepBuffer& buffer) const {
  SY_CHECK(output.prompts.empty() && num_rows <= options_.max_rows);
  std::vector<int32_t> sample_of_row(num_rows, -1);
  for (size_t i = 0; i < output.samples.size(); ++i) {
    sample_of_row[output.samples[i].row] = static_cast<int32_t>(i);
  }
  output.num_logprob_rows = options_.reports && logprobs ? num_rows : 0;
  output.sample_logprobs.num_top =
      std::min(kMaxTopLogprobs, options_.vocab_size);
  PackRows(output, sample_of_row, num_biases, buffer);
}

void OutputStage::PackCounts(StepBuffer& buffer) {
  for (NewCounts& counts : new_counts_) {
    counts.slice = buffer.Append(absl::MakeConstSpan(counts.counts));
  }
}

absl::Status OutputStage::ApplyCounts(const StepBuffer& buffer) {
  for (const NewCounts& counts : new_counts_) {
    const int64_t row_bytes = options_.vocab_size * int64_t{sizeof(uint16_t)};
    SY_RETURN_IF_ERROR(
        device_->CopyOnDevice(counts_.get() + counts.row * row_bytes,
                              buffer.device(counts.slice), row_bytes));
  }
  new_counts_.clear();
  return absl::OkStatus();
}

OutputStage::Scratch OutputStage::AllocateScratch(Workspace& workspace) const {
  const auto ints = [&workspace](int64_t num) {
    return reinterpret_cast<int32_t*>(workspace.Allocate(num * 4));
  };
  const auto floats = [&workspace](int64_t num) {
    return reinterpret_cast<float*>(workspace.Allocate(num * 4));
  };
  Scratch scratch;
  scratch.logits = AllocateMatrix(workspace, DType::kF32, max_logits_rows_,
                                  options_.vocab_size);
  if (options_.reports) {
    scratch.untouched = AllocateMatrix(workspace, DType::kF32,
                                       options_.max_rows, options_.vocab_size);
    scratch.target_logprobs = floats(max_logits_rows_);
    scratch.top_ids = ints(max_logits_rows_ * kMaxTopLogprobs);
    scratch.top_logprobs = floats(max_logits_rows_ * kMaxTopLogprobs);
  }
  return scratch;
}

int64_t OutputStage::ScratchBytes() const {
  Workspace counter;
  AllocateScratch(counter);
  return counter.used();
}

absl::Status OutputStage::Sample(const OpContext& context, RankGroup& group,
                                 const Transformer& model,
                                 const HiddenState& hidden,
                                 const StepBuffer& buffer,
                                 const StepOutput& output) {
  if (output.num_rows == 0) return absl::OkStatus();
  const int64_t mark = context.workspace->used();
  const Scratch scratch = AllocateScratch(*context.workspace);
  const MatrixView logits = scratch.logits.Rows(0, output.num_rows);
  SY_RETURN_IF_ERROR(model.Logits(context, group, hidden,
                                  buffer.device(output.sample_rows), logits));
  // Log-probabilities are the model's own, and Sample changes the logits.
  const MatrixView untouched =
      scratch.untouched.Rows(0, output.num_logprob_rows);
  if (output.num_logprob_rows > 0) {
    SY_RETURN_IF_ERROR(
        device_->CopyOnDevice(untouched.data, logits.data,
                              untouched.rows * untouched.cols * sizeof(float)));
  }
  SamplingArgs args;
  args.logits = logits;
  args.rows = buffer.device(output.sampling);
  args.host_rows = buffer.host(output.sampling);
  args.bias_ids = buffer.device(output.bias_ids);
  args.bias_values = buffer.device(output.bias_values);
  args.counts = reinterpret_cast<uint16_t*>(counts_.get());
  args.token_ids = results_.tokens;
  SY_RETURN_IF_ERROR(switchyard::Sample(context, args));

  StoreTokensArgs store;
  store.num_tokens = output.num_rows;
  store.token_ids = results_.tokens;
  store.slots = buffer.device(output.token_slots);
  store.last_tokens = reinterpret_cast<int32_t*>(last_tokens_.get());
  SY_RETURN_IF_ERROR(step_device_->StoreTokens(store));

  if (output.num_logprob_rows > 0) {
    LogprobsArgs logprobs;
    logprobs.logits = untouched;
    logprobs.targets = results_.tokens;
    logprobs.num_top = output.sample_logprobs.num_top;
    logprobs.target_logprobs = results_.target_logprobs;
    logprobs.top_ids = results_.top_ids;
    logprobs.top_logprobs = results_.top_logprobs;
    SY_RETURN_IF_ERROR(Logprobs(context, logprobs));
  }
  context.workspace->Rewind(mark);
  return absl::OkStatus();
}

absl::Status OutputStage::ReadSamples(StepOutput& output) {
  if (output.num_rows == 0) return absl::OkStatus();
  SY_RETURN_IF_ERROR(device_->CopyToHost(output.tokens, results_.tokens,
                                         output.num_rows * sizeof(int32_t)));
  const int64_t rows = output.num_logprob_rows;
  if (rows == 0) return absl::OkStatus();
  const RowLogprobs& logprobs = output.sample_logprobs;
  SY_RETURN_IF_ERROR(device_->CopyToHost(
      logprobs.target, results_.target_logprobs, rows * sizeof(float)));
  if (logprobs.num_top == 0) return absl::OkStatus();
  const int64_t top_bytes = rows * logprobs.num_top * sizeof(float);
  SY_RETURN_IF_ERROR(
      device_->CopyToHost(logprobs.top_ids, results_.top_ids, top_bytes));
  return device_->CopyToHost(logprobs.top, results_.top_logprobs, top_bytes);
}

absl::Status OutputStage::ScorePrompts(
    const OpContext& context, RankGroup& group, const Transformer& model,
    const HiddenState& hidden, const StepBuffer& buffer, StepOutput& output) {
  const int64_t mark = context.workspace->used();
  const Scratch scratch = AllocateScratch(*context.workspace);
  const RowLogprobs& out = output.prompt_logprobs;
  const int64_t num_rows = output.prompt_rows.size();
  for (int64_t begin = 0; begin < num_rows; begin += max_logits_rows_) {
    const MatrixView logits =
        scratch.logits.Rows(0, std::min(max_logits_rows_, num_rows - begin));
    SY_RETURN_IF_ERROR(
        model.Logits(context, group, hidden,
                     buffer.device(output.prompt_rows_slice) + begin, logits));
    if (!options_.reports) continue;
    LogprobsArgs args;
    args.logits = logits;
    args.targets = buffer.device(output.prompt_targets_slice) + begin;
    args.num_top = out.num_top;
    args.target_logprobs = scratch.target_logprobs;
    args.top_ids = scratch.top_ids;
    args.top_logprobs = scratch.top_logprobs;
    SY_RETURN_IF_ERROR(Logprobs(context, args));
    SY_RETURN_IF_ERROR(device_->CopyToHost(out.target + begin,
                                           scratch.target_logprobs,
                                           logits.rows * sizeof(float)));
    if (out.num_top == 0) continue;
    const int64_t top_bytes = logits.rows * out.num_top * sizeof(float);
    SY_RETURN_IF_ERROR(device_->CopyToHost(out.top_ids + begin * out.num_top,
                                           scratch.top_ids, top_bytes));
    SY_RETURN_IF_ERROR(device_->CopyToHost(out.top + begin * out.num_top,
                                           scratch.top_logprobs, top_bytes));
  }
  context.workspace->Rewind(mark);
  return absl::OkStatus();
}

void OutputStage::Report(const StepOutput& output,
                         v1::StepResult& result) const {
  SY_CHECK(options_.reports);
  for (const StepOutput::Sample& sample : output.samples) {
    v1::SampledToken& token = *result.add_tokens();
    token.set_sequence_id(sample.sequence_id);
    // kNoToken becomes the 0xffffffff of worker.proto.
    token.set_token_id(static_cast<uint32_t>(output.tokens[sample.logits_row]));
    if (!sample.num_logprobs.has_value()) continue;
    FillLogprobs(output.sample_logprobs, sample.logits_row,
                 *sample.num_logprobs, *token.mutable_logprobs());
  }
  for (const StepOutput::Prompt& prompt : output.prompts) {
    v1::PromptLogprobs& part = *result.add_prompt_logprobs();
    part.set_sequence_id(prompt.sequence_id);
    part.set_start(static_cast<uint32_t>(prompt.first_position));
    for (int64_t row = prompt.begin; row < prompt.begin + prompt.num; ++row) {
      FillLogprobs(output.prompt_logprobs, row, prompt.num_top,
                   *part.add_positions());
    }
  }
}

}  // namespace switchyard
