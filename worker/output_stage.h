// OutputStage: from a step's hidden state to what the coordinator learns of it,
// sampled tokens and log-probabilities.
//
// Every rank runs it and draws the same tokens; only one that reports computes
// log-probabilities. One thread uses it. Per step, in this order: Begin, Add*,
// Pack, (upload), ApplyCounts, Sample, ReadSamples, ScorePrompts; and once the
// device is done, tokens and Report. Nothing here waits for the device, and
// what a step leaves lies in its StepOutput, so a step may be begun before the
// one before it has been reported.
#ifndef SWITCHYARD_WORKER_OUTPUT_STAGE_H_
#define SWITCHYARD_WORKER_OUTPUT_STAGE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/device.h"
#include "kernels/op_context.h"
#include "kernels/sampling.h"
#include "model/rank_group.h"
#include "model/transformer.h"
#include "switchyard/v1/worker.pb.h"
#include "worker/step_buffer.h"
#include "worker/step_device.h"
#include "worker/worker_sequence.h"

namespace switchyard {

struct OutputOptions {
  int32_t vocab_size = 0;
  int32_t max_num_seqs = 0;
  int32_t max_rows = 0;         // that sample in a step, padding included
  int32_t max_prompt_rows = 0;  // with log-probabilities, in a step
  bool reports = false;         // rank 0
};

// Log-probabilities of many rows, in page-locked host memory. A copy from the
// device may be on its way.
struct RowLogprobs {
  int32_t num_top = 0;
  float* target = nullptr;     // [rows]
  int32_t* top_ids = nullptr;  // [rows, num_top]
  float* top = nullptr;        // [rows, num_top]
};

// What one step samples and scores.
struct StepOutput {
  struct Sample {
    uint64_t sequence_id = 0;
    uint64_t incarnation = 0;
    std::optional<int32_t> num_logprobs;
    int32_t row = 0;                           // of the batch
    int32_t logits_row = 0;                    // of the logits
    const WorkerSequence* sequence = nullptr;  // until Pack
  };
  // Entries [begin, begin + num) of the prompt rows.
  struct Prompt {
    uint64_t sequence_id = 0;
    int32_t first_position = 0;  // of the first entry's token
    int32_t num_top = 0;
    int64_t begin = 0;
    int64_t num = 0;
  };

  std::vector<Sample> samples;   // in the order of AddSample
  int32_t num_rows = 0;          // of logits to sample from
  int32_t num_logprob_rows = 0;  // the first of them
  std::vector<Prompt> prompts;
  std::vector<int32_t> prompt_rows;
  std::vector<int32_t> prompt_targets;

  StepBuffer::Slice<int32_t> sample_rows;
  StepBuffer::Slice<int32_t> token_slots;
  StepBuffer::Slice<SamplingRow> sampling;
  StepBuffer::Slice<int32_t> bias_ids;
  StepBuffer::Slice<float> bias_values;
  StepBuffer::Slice<int32_t> prompt_rows_slice;
  StepBuffer::Slice<int32_t> prompt_targets_slice;

  DeviceBuffer host;          // what the pointers below point into
  int32_t* tokens = nullptr;  // [num_rows] by row of logits
  RowLogprobs sample_logprobs;
  RowLogprobs prompt_logprobs;
};

class OutputStage {
 public:
  static absl::StatusOr<std::unique_ptr<OutputStage>> Create(
      Device* device, StepDevice* step_device, const OutputOptions& options);

  absl::StatusOr<StepOutput> MakeOutput() const;

  // Gives a new sequence its slot for tokens, and counts its tokens if its
  // sampling has penalties.
  void Admit(WorkerSequence& sequence);
  void Forget(WorkerSequence& sequence);

  void Begin(StepOutput& output) const;
  // The token after the sequence's last one is drawn from batch row `row`.
  void AddSample(StepOutput& output, const WorkerSequence& sequence,
                 int32_t row) const;
  // Positions [start, start + num_tokens) lie in batch rows from `first_row`
  // on: the log-probabilities of the prompt tokens after them are wanted.
  void AddPrompt(StepOutput& output, const WorkerSequence& sequence,
                 int32_t start, int32_t num_tokens, int32_t first_row) const;
  // How many tokens the sequence biases in the step after its last token.
  static int32_t NumBiases(const WorkerSequence& sequence);

  // Logits in the order of rows that costs least.
  void Pack(StepOutput& output, StepBuffer& buffer) const;
  // Logits row r is batch row r, for `num_rows` of them; those without a sample
  // are padding. What is appended to the buffer has a size that depends on the
  // arguments alone, and so have all launches of Sample.
  void PackPadded(StepOutput& output, int32_t num_rows, int32_t num_biases,
                  bool logprobs, StepBuffer& buffer) const;
  // Appends the counts of sequences admitted since the last call, which
  // ApplyCounts puts in place after the upload.
  void PackCounts(StepBuffer& buffer);
  absl::Status ApplyCounts(const StepBuffer& buffer);

  // Samples; leaves the tokens in their sequences' slots. Takes no more from
  // the host than the output's sizes, so it can be recorded.
  absl::Status Sample(const OpContext& context, RankGroup& group,
                      const Transformer& model, const HiddenState& hidden,
                      const StepBuffer& buffer, const StepOutput& output);
  absl::Status ReadSamples(StepOutput& output);
  // Computes and reads what the prompts want.
  absl::Status ScorePrompts(const OpContext& context, RankGroup& group,
                            const Transformer& model, const HiddenState& hidden,
                            const StepBuffer& buffer, StepOutput& output);

  // Fills tokens and prompt_logprobs. REQUIRES: reports; the device is done.
  void Report(const StepOutput& output, v1::StepResult& result) const;

  // By token slot: the newest sampled token. On the device.
  const int32_t* last_tokens() const {
    return reinterpret_cast<const int32_t*>(last_tokens_.get());
  }
  // Prompt rows whose logits are computed at once, at least.
  static constexpr int64_t kMinSlabRows = 64;
  // Rows of logits computed at once: all samples, prompts in slabs.
  int64_t max_logits_rows() const { return max_logits_rows_; }
  // Workspace that a step takes here besides the model's.
  int64_t ScratchBytes() const;

 private:
  struct Scratch {
    MatrixView logits;     // [max_logits_rows, vocab] fp32
    MatrixView untouched;  // [max_rows, vocab]: a copy for log-probabilities
    float* target_logprobs = nullptr;  // [max_logits_rows]
    int32_t* top_ids = nullptr;        // [max_logits_rows, kMaxTopLogprobs]
    float* top_logprobs = nullptr;     // [max_logits_rows, kMaxTopLogprobs]
  };
  // What samples leave on the device.
  struct Results {
    int32_t* tokens = nullptr;         // [max_rows]
    float* target_logprobs = nullptr;  // [max_rows]
    int32_t* top_ids = nullptr;        // [max_rows, kMaxTopLogprobs]
    float* top_logprobs = nullptr;     // [max_rows, kMaxTopLogprobs]
  };
  struct NewCounts {
    int32_t row = 0;
    std::vector<uint16_t> counts;  // [vocab]
    StepBuffer::Slice<uint16_t> slice;
  };

  OutputStage(Device* device, StepDevice* step_device,
              const OutputOptions& options, DeviceBuffer counts,
              DeviceBuffer last_tokens, DeviceBuffer results);

  int32_t padding_slot() const { return options_.max_num_seqs; }
  SamplingRow RowOf(const WorkerSequence& sequence) const;
  void PackRows(StepOutput& output, absl::Span<const int32_t> sample_of_row,
                int32_t num_biases, StepBuffer& buffer) const;
  Scratch AllocateScratch(Workspace& workspace) const;

  Device* const device_;
  StepDevice* const step_device_;
  const OutputOptions options_;
  const int64_t max_logits_rows_;
  DeviceBuffer counts_;       // [max_num_seqs, vocab] uint16, see SamplingArgs
  DeviceBuffer last_tokens_;  // [max_num_seqs + 1], the last is the padding's
  DeviceBuffer results_memory_;
  Results results_;
  std::vector<int32_t> free_counts_rows_;
  std::vector<int32_t> free_token_slots_;
  std::vector<NewCounts> new_counts_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_OUTPUT_STAGE_H_
