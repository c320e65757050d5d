// OutputStage: from a step's hidden state to what the coordinator learns of it,
// sampled tokens and log-probabilities.
//
// Every rank runs it and draws the same tokens; only one that reports computes
// log-probabilities. One thread uses it. Per step, in this order: Begin, Add*,
// Pack, (upload), Run, (synchronize), tokens and Report.
#ifndef SWITCHYARD_WORKER_OUTPUT_STAGE_H_
#define SWITCHYARD_WORKER_OUTPUT_STAGE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device.h"
#include "kernels/op_context.h"
#include "kernels/sampling.h"
#include "model/rank_group.h"
#include "model/transformer.h"
#include "switchyard/v1/worker.pb.h"
#include "worker/step_buffer.h"
#include "worker/worker_sequence.h"

namespace switchyard {

struct OutputOptions {
  int32_t vocab_size = 0;
  int32_t max_num_seqs = 0;
  bool reports = false;  // rank 0
};

class OutputStage {
 public:
  static absl::StatusOr<std::unique_ptr<OutputStage>> Create(
      Device* device, const OutputOptions& options);

  // Counts the tokens of a new sequence, if its sampling has penalties.
  absl::Status Admit(WorkerSequence& sequence);
  void Forget(WorkerSequence& sequence);

  void Begin();
  // The token after the sequence's last one is drawn from batch row `row`.
  void AddSample(const WorkerSequence& sequence, int32_t row);
  // Positions [start, start + num_tokens) lie in batch rows from `first_row`
  // on: the log-probabilities of the prompt tokens after them are wanted.
  void AddPrompt(const WorkerSequence& sequence, int32_t start,
                 int32_t num_tokens, int32_t first_row);

  void Pack(StepBuffer& buffer);
  absl::Status Run(const OpContext& context, RankGroup& group,
                   const Transformer& model, const HiddenState& hidden,
                   const StepBuffer& buffer);

  // The drawn tokens, in the order of AddSample.
  const std::vector<int32_t>& tokens() const { return tokens_; }
  // Fills tokens and prompt_logprobs. REQUIRES: reports.
  void Report(v1::StepResult& result) const;

  // Rows of logits computed at once: all samples, prompts in slabs.
  int64_t max_logits_rows() const { return max_logits_rows_; }
  // Workspace that Run takes besides the model's.
  int64_t ScratchBytes() const;

 private:
  struct SampleItem {
    const WorkerSequence* sequence = nullptr;
    int32_t row = 0;
  };
  // Entries [begin, begin + num) of the prompt rows.
  struct PromptItem {
    uint64_t sequence_id = 0;
    int32_t first_position = 0;  // of the first entry's token
    int32_t num_top = 0;
    int64_t begin = 0;
    int64_t num = 0;
  };
  struct Scratch {
    MatrixView logits;  // [max_logits_rows, vocab] fp32
    MatrixView
        untouched;  // [max_num_seqs, vocab]: a copy for log-probabilities
    int32_t* token_ids = nullptr;      // [max_num_seqs]
    float* target_logprobs = nullptr;  // [max_logits_rows]
    int32_t* top_ids = nullptr;        // [max_logits_rows, kMaxTopLogprobs]
    float* top_logprobs = nullptr;     // [max_logits_rows, kMaxTopLogprobs]
  };
  // Log-probabilities of many rows, on the host.
  struct RowLogprobs {
    int32_t num_top = 0;
    std::vector<float> target;
    std::vector<int32_t> top_ids;  // [rows, num_top]
    std::vector<float> top;        // [rows, num_top]

    void Resize(int64_t rows, int32_t top_per_row);
    void Fill(int64_t row, int32_t top_wanted, v1::TokenLogprobs& out) const;
  };

  OutputStage(Device* device, const OutputOptions& options,
              DeviceBuffer counts);

  Scratch AllocateScratch(Workspace& workspace) const;
  // Fills rows [begin, begin + logits.rows) of `out`.
  absl::Status ReadLogprobs(const OpContext& context, const MatrixView& logits,
                            const int32_t* targets, const Scratch& scratch,
                            int64_t begin, RowLogprobs& out);
  absl::Status RunSamples(const OpContext& context, RankGroup& group,
                          const Transformer& model, const HiddenState& hidden,
                          const StepBuffer& buffer, const Scratch& scratch);
  absl::Status RunPrompts(const OpContext& context, RankGroup& group,
                          const Transformer& model, const HiddenState& hidden,
                          const StepBuffer& buffer, const Scratch& scratch);

  Device* const device_;
  const OutputOptions options_;
  const int64_t max_logits_rows_;
  DeviceBuffer counts_;  // [max_num_seqs, vocab] uint16, see SamplingArgs
  std::vector<int32_t> free_counts_rows_;
  std::vector<uint16_t> counts_staging_;  // [vocab]

  // Of the step at hand.
  std::vector<SampleItem> samples_;
  std::vector<int32_t> sample_order_;  // row of logits -> index of samples_;
                                       // those with log-probabilities first
  int32_t num_with_logprobs_ = 0;
  std::vector<PromptItem> prompts_;
  std::vector<int32_t> prompt_rows_;
  std::vector<int32_t> prompt_targets_;
  StepBuffer::Slice<int32_t> sample_rows_slice_;
  StepBuffer::Slice<SamplingRow> sampling_slice_;
  StepBuffer::Slice<int32_t> bias_ids_slice_;
  StepBuffer::Slice<float> bias_values_slice_;
  StepBuffer::Slice<int32_t> prompt_rows_slice_;
  StepBuffer::Slice<int32_t> prompt_targets_slice_;
  std::vector<int32_t> drawn_;   // by row of logits
  std::vector<int32_t> tokens_;  // by index of samples_
  RowLogprobs sample_logprobs_;  // by row of logits
  RowLogprobs prompt_logprobs_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_OUTPUT_STAGE_H_
