// What an executor refuses: plans, placements, requests to load.
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/device.h"
#include "model/config.h"
#include "tests/worker/executor_harness.h"
#include "worker/collective.h"
#include "worker/executor.h"

namespace switchyard {
namespace {

using ::testing::HasSubstr;

struct BadPlan {
  const char* name;
  // Spoils a plan that starts and runs one sequence of ten tokens.
  std::function<void(v1::StepPlan&)> spoil;
  const char* message;
};

class BadPlanTest : public ::testing::TestWithParam<BadPlan> {};

TEST_P(BadPlanTest, IsAnError) {
  const auto harness = Harness(kStochasticDir);
  v1::StepPlan plan;
  HarnessRequest request;
  request.prompt = Prompt(10);
  harness->Add(plan, harness->Start(plan, request), 10);
  GetParam().spoil(plan);
  const absl::Status status = harness->executor(0).Execute(plan).status();
  EXPECT_EQ(status.code(), GetParam().name == std::string("PlacementMixer")
                               ? absl::StatusCode::kFailedPrecondition
                               : absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(GetParam().message));
}

v1::SequenceStep& Step(v1::StepPlan& plan) { return *plan.mutable_batch(0); }
v1::SequenceStart& First(v1::StepPlan& plan) {
  return *plan.mutable_started(0);
}

INSTANTIATE_TEST_SUITE_P(
    Plans, BadPlanTest,
    ::testing::ValuesIn(std::vector<BadPlan>{
        {"UnknownFinished", [](auto& p) { p.add_finished(77); },
         "sequence 77 is to be forgotten, but is not known"},
        {"UnknownSequence", [](auto& p) { Step(p).set_sequence_id(77); },
         "sequence 77 is not known"},
        {"UnknownPlacement", [](auto& p) { First(p).set_placement_id(9); },
         "sequence 1 has placement 9, which is not known"},
        {"PlacementMixer",
         [](auto& p) {
           p.mutable_placements(0)->set_mixer_ids(1, 4000000000u);
         },
         "placement 0: "},
        {"StartedTwice", [](auto& p) { *p.add_started() = p.started(0); },
         "sequence 1 is started, but is running already"},
        {"NoTokens", [](auto& p) { First(p).clear_token_ids(); },
         "sequence 1: token_ids is empty"},
        {"TokenOutOfRange", [](auto& p) { First(p).set_token_ids(3, 320); },
         "sequence 1: token_ids has 320, the vocabulary has 320"},
        {"PromptLength", [](auto& p) { First(p).set_num_prompt_tokens(11); },
         "sequence 1: num_prompt_tokens is 11 of 10 tokens"},
        {"Temperature",
         [](auto& p) { First(p).mutable_sampling()->set_temperature(-1); },
         "sequence 1: temperature is -1"},
        {"BiasOutOfRange",
         [](auto& p) {
           (*First(p).mutable_sampling()->mutable_logit_bias())[320] = 1;
         },
         "sequence 1: logit_bias has token id 320"},
        {"TooManyLogprobs",
         [](auto& p) { First(p).mutable_sampling()->set_logprobs(21); },
         "sequence 1: logprobs is 21"},
        {"InTheBatchTwice", [](auto& p) { *p.add_batch() = p.batch(0); },
         "sequence 1 is twice in the batch"},
        {"NothingToRun", [](auto& p) { Step(p).set_num_tokens(0); },
         "sequence 1 has no token to run"},
        {"Gap", [](auto& p) { Step(p).set_start(1); },
         "sequence 1 starts at position 1, its cache ends at 0"},
        {"BeyondItsTokens",
         [](auto& p) { Step(p).set_num_tokens(4294967295u); },
         "but has only 10 tokens"},
        {"SamplesTooEarly", [](auto& p) { Step(p).set_num_tokens(9); },
         "sequence 1 samples after position 9 of 10"},
        {"CacheArrays", [](auto& p) { Step(p).add_cache_ids(1); },
         "sequence 1 has 3 cache layers, but 4 cache ids"},
        {"NoCache",
         [](auto& p) {
           Step(p).clear_cache_layers();
           Step(p).clear_cache_ids();
         },
         "sequence 1: layer 0 holds 0 blocks, 10 positions need 1"},
        {"CacheTwice", [](auto& p) { Step(p).set_cache_ids(1, 0); },
         "sequence 1: block 0 for layer 1 overlaps"},
        {"CacheBeyondTheArena",
         [](auto& p) { Step(p).set_cache_ids(1, 4294967295u); },
         "sequence 1: block 4294967295 for layer 1 ends at byte"},
        {"CacheLayer",
         [](auto& p) { Step(p).set_cache_layers(1, 4294967295u); },
         "sequence 1: cache for layer 4294967295"}}),
    [](const auto& info) { return info.param.name; });

TEST(ExecutorRefusalTest, RefusesMoreThanItIsConfiguredFor) {
  HarnessOptions options;
  options.model_dir = kStochasticDir;
  options.max_num_seqs = 2;
  options.max_num_batched_tokens = 16;
  const auto harness = ExecutorHarness::Create(options).value();
  HarnessRequest request;
  request.prompt = Prompt(17);
  v1::StepPlan large;
  harness->Add(large, harness->Start(large, request), 17);
  EXPECT_THAT(std::string(harness->Execute(large).status().message()),
              HasSubstr("17 tokens, max_num_batched_tokens is 16"));
  v1::StepPlan many;
  harness->Start(many, request);
  harness->Start(many, request);
  EXPECT_THAT(std::string(harness->Execute(many).status().message()),
              HasSubstr("max_num_seqs is 2"));
}

TEST(ExecutorRefusalTest, RefusesToShareABlockThatWouldBeWritten) {
  HarnessOptions options;
  options.model_dir = kStochasticDir;
  const auto harness = ExecutorHarness::Create(options).value();
  HarnessRequest request;
  request.prompt = Prompt(35);
  v1::StepPlan plan;
  const uint64_t first = harness->Start(plan, request);
  harness->Add(plan, first, 32);
  ASSERT_TRUE(harness->Execute(plan).ok());
  plan = v1::StepPlan();
  const ExecutorHarness::Prefix prefix = harness->Keep(plan, first);
  harness->Add(plan, first, 3);
  ASSERT_TRUE(harness->Execute(plan).ok());
  plan = v1::StepPlan();
  harness->AddWith(plan, harness->Start(plan, request), prefix, 3);
  plan.mutable_started(0)->set_num_cached(31);
  EXPECT_THAT(std::string(harness->Execute(plan).status().message()),
              HasSubstr("sequence 2 shares 2 blocks of layer 0, but its 31 "
                        "cached positions fill 1"));
}

TEST(ExecutorRefusalTest, PlacementsChangeInTwoPhases) {
  const auto harness = Harness(kStochasticDir);
  Executor& executor = harness->executor(0);
  EXPECT_EQ(executor.CommitPlacement(2).code(),
            absl::StatusCode::kFailedPrecondition);
  const absl::Status refused =
      executor.PreparePlacement(2, {"gdn", "gdn", "retnet"});
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("retnet"));
  EXPECT_FALSE(executor.CommitPlacement(2).ok());
  ASSERT_TRUE(executor.PreparePlacement(3, {"gdn", "gdn", "kda"}).ok());
  EXPECT_FALSE(executor.CommitPlacement(4).ok());
  EXPECT_TRUE(executor.CommitPlacement(3).ok());
  ASSERT_TRUE(executor.PreparePlacement(4, {"kda", "kda", "kda"}).ok());
  EXPECT_TRUE(executor.AbortPlacement(4).ok());
  EXPECT_FALSE(executor.CommitPlacement(4).ok());
}

class LoadTest : public ::testing::Test {
 protected:
  LoadTest() {
    request_.set_model_dir(kStochasticDir);
    request_.set_world_size(1);
    request_.set_dtype("auto");
    request_.set_max_num_seqs(2);
    request_.set_max_num_batched_tokens(8);
    request_.set_block_size(16);
    request_.set_config_fingerprint(
        Fingerprint(LoadModelConfig(kStochasticDir).value()));
  }

  absl::Status Load() {
    const auto collective = MakeLocalCollective();
    Executor executor(MakeCpuDevice(1));
    return executor.Load(request_, *collective, progress_).status();
  }

  v1::ConfigureRequest request_;
  LoadProgress progress_;
};

TEST_F(LoadTest, CountsEveryByte) {
  ASSERT_TRUE(Load().ok());
  EXPECT_GT(progress_.bytes_total.load(), 0u);
  EXPECT_EQ(progress_.bytes_loaded.load(), progress_.bytes_total.load());
}

TEST_F(LoadTest, RefusesAnotherModel) {
  request_.set_config_fingerprint(1);
  const absl::Status status = Load();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("config_fingerprint"));
}

TEST_F(LoadTest, NamesTheField) {
  request_.set_block_size(0);
  EXPECT_THAT(std::string(Load().message()), HasSubstr("block_size is 0"));
  request_.set_block_size(16);
  request_.set_dtype("int8");
  EXPECT_THAT(std::string(Load().message()), HasSubstr("dtype is \"int8\""));
  request_.set_dtype("bf16");
  EXPECT_EQ(Load().code(), absl::StatusCode::kUnimplemented);
  request_.set_dtype("fp32");
  request_.set_max_context_tokens(1 << 20);
  EXPECT_THAT(std::string(Load().message()), HasSubstr("max_context_tokens"));
  request_.set_max_context_tokens(0);
  request_.set_model_dir("no/such/model");
  EXPECT_EQ(Load().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace switchyard
