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

// Prompt rows whose logits are computed at once, at least.
constexpr int64_t kMinSlabRows = 64;

}  // namespace

OutputStage::OutputStage(Device* device, const OutputOptions& options,
                         DeviceBuffer counts)
    : device_(device),
      options_(options),
      max_logits_rows_(std::max<int64_t>(kMinSlabRows, options.max_num_seqs)),
      counts_(std::move(counts)),
      free_counts_rows_(options.max_num_seqs),
      counts_staging_(options.vocab_size) {
  std::iota(free_counts_rows_.rbegin(), free_counts_rows_.rend(), 0);
}

absl::StatusOr<std::unique_ptr<OutputStage>> OutputStage::Create(
    Device* device, const OutputOptions& options) {
  const int64_t counts_bytes =
      int64_t{options.max_num_seqs} * options.vocab_size * sizeof(uint16_t);
  SY_ASSIGN_OR_RETURN(DeviceBuffer counts, device->Allocate(counts_bytes));
  return std::unique_ptr<OutputStage>(
      new OutputStage(device, options, std::move(counts)));
}

absl::Status OutputStage::Admit(WorkerSequence& sequence) {
  if (!sequence.sampling.has_penalties) return absl::OkStatus();
  SY_CHECK(!free_counts_rows_.empty());
  constexpr uint16_t kMaxCount = kCountsPromptBit - 1;
  std::fill(counts_staging_.begin(), counts_staging_.end(), 0);
  for (int32_t i = 0; i < sequence.num_tokens(); ++i) {
    uint16_t& count = counts_staging_[sequence.tokens[i]];
    if (i < sequence.num_prompt_tokens) {
      count |= kCountsPromptBit;
    } else if ((count & kMaxCount) < kMaxCount) {
      ++count;
    }
  }
  sequence.counts_row = free_counts_rows_.back();
  free_counts_rows_.pop_back();
  const int64_t row_bytes = counts_staging_.size() * sizeof(uint16_t);
  SY_RETURN_IF_ERROR(
      device_->CopyToDevice(counts_.get() + sequence.counts_row * row_bytes,
                            counts_staging_.data(), row_bytes));
  // The staging area serves the next sequence too.
  return device_->Synchronize();
}

void OutputStage::Forget(WorkerSequence& sequence) {
  if (sequence.counts_row < 0) return;
  free_counts_rows_.push_back(sequence.counts_row);
  sequence.counts_row = -1;
}

void OutputStage::Begin() {
  samples_.clear();
  sample_order_.clear();
  num_with_logprobs_ = 0;
  prompts_.clear();
  prompt_rows_.clear();
  prompt_targets_.clear();
}

void OutputStage::AddSample(const WorkerSequence& sequence, int32_t row) {
  SY_CHECK(static_cast<int64_t>(samples_.size()) < options_.max_num_seqs);
  samples_.push_back({&sequence, row});
}

void OutputStage::AddPrompt(const WorkerSequence& sequence, int32_t start,
                            int32_t num_tokens, int32_t first_row) {
  if (!sequence.sampling.num_prompt_logprobs.has_value()) return;
  // The row of position p yields the token at p + 1.
  const int32_t end =
      std::min(start + num_tokens, sequence.num_prompt_tokens - 1);
  if (end <= start) return;
  prompts_.push_back({sequence.id, start + 1,
                      *sequence.sampling.num_prompt_logprobs,
                      static_cast<int64_t>(prompt_rows_.size()), end - start});
  for (int32_t p = start; p < end; ++p) {
    prompt_rows_.push_back(first_row + p - start);
    prompt_targets_.push_back(sequence.tokens[p + 1]);
  }
}

void OutputStage::Pack(StepBuffer& buffer) {
  sample_order_.resize(samples_.size());
  std::iota(sample_order_.begin(), sample_order_.end(), 0);
  const auto middle = std::stable_partition(
      sample_order_.begin(), sample_order_.end(), [this](int32_t i) {
        return samples_[i].sequence->sampling.num_logprobs.has_value();
      });
  num_with_logprobs_ =
      options_.reports ? static_cast<int32_t>(middle - sample_order_.begin())
                       : 0;

  std::vector<int32_t> rows;
  std::vector<SamplingRow> sampling;
  std::vector<int32_t> bias_ids;
  std::vector<float> bias_values;
  for (int32_t i : sample_order_) {
    const WorkerSequence& sequence = *samples_[i].sequence;
    rows.push_back(samples_[i].row);
    SamplingRow row = sequence.sampling.row;
    row.counts_row = sequence.counts_row;
    row.draw = static_cast<uint32_t>(sequence.num_generated());
    row.bias_begin = static_cast<int32_t>(bias_ids.size());
    const bool early = sequence.num_generated() < sequence.sampling.min_tokens;
    for (const TokenBias& bias :
         early ? sequence.sampling.early_bias : sequence.sampling.bias) {
      bias_ids.push_back(bias.token_id);
      bias_values.push_back(bias.value);
    }
    row.bias_end = static_cast<int32_t>(bias_ids.size());
    sampling.push_back(row);
  }
  sample_rows_slice_ = buffer.Append(absl::MakeConstSpan(rows));
  sampling_slice_ = buffer.Append(absl::MakeConstSpan(sampling));
  bias_ids_slice_ = buffer.Append(absl::MakeConstSpan(bias_ids));
  bias_values_slice_ = buffer.Append(absl::MakeConstSpan(bias_values));
  prompt_rows_slice_ = buffer.Append(absl::MakeConstSpan(prompt_rows_));
  prompt_targets_slice_ = buffer.Append(absl::MakeConstSpan(prompt_targets_));
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
  scratch.token_ids = ints(options_.max_num_seqs);
  if (options_.reports) {
    scratch.untouched = AllocateMatrix(
        workspace, DType::kF32, options_.max_num_seqs, options_.vocab_size);
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

absl::Status OutputStage::Run(const OpContext& context, RankGroup& group,
                              const Transformer& model,
                              const HiddenState& hidden,
                              const StepBuffer& buffer) {
  const int64_t mark = context.workspace->used();
  const Scratch scratch = AllocateScratch(*context.workspace);
  tokens_.clear();
  if (!samples_.empty()) {
    SY_RETURN_IF_ERROR(
        RunSamples(context, group, model, hidden, buffer, scratch));
  }
  if (!prompts_.empty()) {
    SY_RETURN_IF_ERROR(
        RunPrompts(context, group, model, hidden, buffer, scratch));
  }
  SY_RETURN_IF_ERROR(device_->Synchronize());
  tokens_.resize(samples_.size());
  for (size_t row = 0; row < sample_order_.size(); ++row) {
    tokens_[sample_order_[row]] = drawn_[row];
  }
  context.workspace->Rewind(mark);
  return absl::OkStatus();
}

absl::Status OutputStage::RunSamples(const OpContext& context, RankGroup& group,
                                     const Transformer& model,
                                     const HiddenState& hidden,
                                     const StepBuffer& buffer,
                                     const Scratch& scratch) {
  const MatrixView logits = scratch.logits.Rows(0, samples_.size());
  SY_RETURN_IF_ERROR(model.Logits(context, group, hidden,
                                  buffer.device(sample_rows_slice_), logits));
  // Log-probabilities are the model's own, and Sample changes the logits.
  const MatrixView untouched = scratch.untouched.Rows(0, num_with_logprobs_);
  if (num_with_logprobs_ > 0) {
    SY_RETURN_IF_ERROR(
        device_->CopyOnDevice(untouched.data, logits.data,
                              untouched.rows * untouched.cols * sizeof(float)));
  }
  SamplingArgs args;
  args.logits = logits;
  args.rows = buffer.device(sampling_slice_);
  args.host_rows = buffer.host(sampling_slice_);
  args.bias_ids = buffer.device(bias_ids_slice_);
  args.bias_values = buffer.device(bias_values_slice_);
  args.counts = reinterpret_cast<uint16_t*>(counts_.get());
  args.token_ids = scratch.token_ids;
  SY_RETURN_IF_ERROR(Sample(context, args));
  drawn_.resize(samples_.size());
  SY_RETURN_IF_ERROR(device_->CopyToHost(drawn_.data(), scratch.token_ids,
                                         drawn_.size() * sizeof(int32_t)));
  if (num_with_logprobs_ == 0) return absl::OkStatus();

  int32_t num_top = 0;
  for (int32_t row = 0; row < num_with_logprobs_; ++row) {
    num_top = std::max(
        num_top, *samples_[sample_order_[row]].sequence->sampling.num_logprobs);
  }
  sample_logprobs_.Resize(num_with_logprobs_, num_top);
  return ReadLogprobs(context, untouched, scratch.token_ids, scratch, 0,
                      sample_logprobs_);
}

absl::Status OutputStage::RunPrompts(const OpContext& context, RankGroup& group,
                                     const Transformer& model,
                                     const HiddenState& hidden,
                                     const StepBuffer& buffer,
                                     const Scratch& scratch) {
  const int64_t num_rows = prompt_rows_.size();
  if (options_.reports) {
    int32_t num_top = 0;
    for (const PromptItem& item : prompts_) {
      num_top = std::max(num_top, item.num_top);
    }
    prompt_logprobs_.Resize(num_rows, num_top);
  }
  for (int64_t begin = 0; begin < num_rows; begin += max_logits_rows_) {
    const MatrixView logits =
        scratch.logits.Rows(0, std::min(max_logits_rows_, num_rows - begin));
    SY_RETURN_IF_ERROR(model.Logits(context, group, hidden,
                                    buffer.device(prompt_rows_slice_) + begin,
                                    logits));
    if (!options_.reports) continue;
    SY_RETURN_IF_ERROR(ReadLogprobs(
        context, logits, buffer.device(prompt_targets_slice_) + begin, scratch,
        begin, prompt_logprobs_));
  }
  return absl::OkStatus();
}

absl::Status OutputStage::ReadLogprobs(const OpContext& context,
                                       const MatrixView& logits,
                                       const int32_t* targets,
                                       const Scratch& scratch, int64_t begin,
                                       RowLogprobs& out) {
  LogprobsArgs args;
  args.logits = logits;
  args.targets = targets;
  args.num_top = out.num_top;
  args.target_logprobs = scratch.target_logprobs;
  args.top_ids = scratch.top_ids;
  args.top_logprobs = scratch.top_logprobs;
  SY_RETURN_IF_ERROR(Logprobs(context, args));
  SY_RETURN_IF_ERROR(device_->CopyToHost(out.target.data() + begin,
                                         scratch.target_logprobs,
                                         logits.rows * sizeof(float)));
  if (out.num_top == 0) return absl::OkStatus();
  const int64_t top_bytes = logits.rows * out.num_top * sizeof(float);
  SY_RETURN_IF_ERROR(device_->CopyToHost(
      out.top_ids.data() + begin * out.num_top, scratch.top_ids, top_bytes));
  return device_->CopyToHost(out.top.data() + begin * out.num_top,
                             scratch.top_logprobs, top_bytes);
}

void OutputStage::RowLogprobs::Resize(int64_t rows, int32_t top_per_row) {
  num_top = top_per_row;
  target.resize(rows);
  top_ids.resize(rows * top_per_row);
  top.resize(rows * top_per_row);
}

void OutputStage::RowLogprobs::Fill(int64_t row, int32_t top_wanted,
                                    v1::TokenLogprobs& out) const {
  out.set_logprob(target[row]);
  for (int32_t i = 0; i < top_wanted; ++i) {
    v1::TopLogprob& best = *out.add_top();
    best.set_token_id(static_cast<uint32_t>(top_ids[row * num_top + i]));
    best.set_logprob(top[row * num_top + i]);
  }
}

void OutputStage::Report(v1::StepResult& result) const {
  SY_CHECK(options_.reports);
  for (size_t i = 0; i < samples_.size(); ++i) {
    v1::SampledToken& token = *result.add_tokens();
    token.set_sequence_id(samples_[i].sequence->id);
    token.set_token_id(static_cast<uint32_t>(tokens_[i]));
  }
  for (int32_t row = 0; row < num_with_logprobs_; ++row) {
    const int32_t i = sample_order_[row];
    sample_logprobs_.Fill(row, *samples_[i].sequence->sampling.num_logprobs,
                          *result.mutable_tokens(i)->mutable_logprobs());
  }
  for (const PromptItem& item : prompts_) {
    v1::PromptLogprobs& prompt = *result.add_prompt_logprobs();
    prompt.set_sequence_id(item.sequence_id);
    prompt.set_start(static_cast<uint32_t>(item.first_position));
    for (int64_t row = item.begin; row < item.begin + item.num; ++row) {
      prompt_logprobs_.Fill(row, item.num_top, *prompt.add_positions());
    }
  }
}

}  // namespace switchyard
