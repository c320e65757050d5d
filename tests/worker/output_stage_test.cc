#include "worker/output_stage.h"

#include <memory>
#include <utility>

#include "gtest/gtest.h"
#include "kernels/device.h"
#include "kernels/logits.h"
#include "worker/step_buffer.h"
#include "worker/step_device.h"

namespace switchyard {
namespace {

// A graph has room for the most log-probabilities that a request may want; a
// small vocabulary has no more than its tokens.
TEST(OutputStageTest, APaddedStepWantsNoMoreTokensThanThereAre) {
  const std::unique_ptr<Device> device = MakeCpuDevice(1);
  const std::unique_ptr<StepDevice> step_device = MakeStepDevice(device.get());
  for (const int32_t vocab_size : {10, 300}) {
    OutputOptions options;
    options.vocab_size = vocab_size;
    options.max_num_seqs = options.max_rows = 4;
    options.max_prompt_rows = 16;
    options.reports = true;
    auto stage =
        OutputStage::Create(device.get(), step_device.get(), options).value();
    StepOutput output = stage->MakeOutput().value();
    StepBuffer buffer(device.get());
    stage->Begin(output);
    buffer.Clear();
    stage->PackPadded(output, 4, 64, /*logprobs=*/true, buffer);
    EXPECT_EQ(output.num_logprob_rows, 4);
    EXPECT_EQ(output.sample_logprobs.num_top,
              vocab_size == 10 ? 10 : kMaxTopLogprobs);
  }
}

}  // namespace
}  // namespace switchyard
