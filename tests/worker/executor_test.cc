#include "worker/executor.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/device.h"
#include "tests/worker/executor_harness.h"
#include "worker/step_device.h"

namespace switchyard {
namespace {

using ::testing::HasSubstr;

// Bits, not closeness.
void ExpectSame(const HarnessResult& got, const HarnessResult& want,
                const std::string& what) {
  EXPECT_EQ(got.tokens, want.tokens) << what;
  const auto logprobs = [](const std::vector<v1::TokenLogprobs>& values) {
    std::vector<float> flat;
    for (const v1::TokenLogprobs& value : values) {
      flat.push_back(value.logprob());
      for (const auto& top : value.top()) flat.push_back(top.logprob());
    }
    return flat;
  };
  EXPECT_EQ(logprobs(got.logprobs), logprobs(want.logprobs)) << what;
  EXPECT_EQ(logprobs(got.prompt_logprobs), logprobs(want.prompt_logprobs))
      << what;
}

std::vector<HarnessRequest> MixedRequests() {
  const std::vector<std::vector<std::string>> placements = {
      {"attention", "gdn", "mamba"}, {"swa", "swa", "swa"},
      {"kda", "mamba", "attention"}, {"mamba", "kda", "gdn"},
      {"gdn", "gdn", "kda"},         {"attention", "swa", "attention"}};
  std::vector<HarnessRequest> requests;
  for (size_t i = 0; i < placements.size(); ++i) {
    HarnessRequest request;
    request.mixers = placements[i];
    request.prompt = Prompt(static_cast<int32_t>(1 + 17 * i), i);
    request.max_tokens = static_cast<int32_t>(4 + i);
    request.sampling = GreedyWithLogprobs(2);
    if (i % 2 == 1) {
      request.sampling.set_temperature(0.9f);
      request.sampling.set_top_p(0.95f);
      request.sampling.set_frequency_penalty(0.5f);
      request.seed = 100 + i;
    }
    requests.push_back(std::move(request));
  }
  return requests;
}

TEST(ExecutorTest, MixedPlacementsEqualSoloRuns) {
  const std::vector<HarnessRequest> requests = MixedRequests();
  for (const int32_t world_size : {1, 2}) {
    const auto harness = Harness(kStochasticDir, world_size);
    const auto together = harness->Generate(requests);
    const auto in_chunks = harness->Generate(requests, 11);
    ASSERT_TRUE(together.ok()) << together.status();
    ASSERT_TRUE(in_chunks.ok()) << in_chunks.status();
    for (size_t i = 0; i < requests.size(); ++i) {
      const auto solo = harness->GenerateOne(requests[i]);
      ASSERT_TRUE(solo.ok()) << solo.status();
      const std::string what = "request " + std::to_string(i) + " of world " +
                               std::to_string(world_size);
      ExpectSame((*together)[i], *solo, what);
      ExpectSame((*in_chunks)[i], *solo, what + ", in chunks");
    }
    EXPECT_EQ(harness->executor(0).num_cache_units_held(), 0);
  }
}

// The CPU's, but it claims to record graphs, and never can.
class GraphlessStepDevice final : public StepDeviceAsItIs {
 public:
  GraphlessStepDevice(Device* device, absl::Status why, int* num_tries)
      : StepDeviceAsItIs(device), why_(std::move(why)), tries_(num_tries) {}

  bool has_graphs() const override { return true; }
  absl::StatusOr<std::unique_ptr<StepGraph>> Record(
      absl::FunctionRef<absl::Status()>) override {
    ++*tries_;
    return why_;
  }

 private:
  const absl::Status why_;
  int* const tries_;
};

// The padded step that could not be recorded counts, and no other is padded.
TEST(ExecutorTest, WithoutMemoryForAGraphStepsGoOn) {
  std::vector<HarnessRequest> requests = MixedRequests();
  requests.resize(3);
  const auto want = Harness(kStochasticDir)->Generate(requests);
  ASSERT_TRUE(want.ok()) << want.status();

  HarnessOptions options;
  options.model_dir = kStochasticDir;
  options.enable_graphs = true;
  int num_tries = 0;
  const auto create = [&](const absl::Status& why) {
    options.make_step_device = [&num_tries, why](Device* device) {
      return std::make_unique<GraphlessStepDevice>(device, why, &num_tries);
    };
    return ExecutorHarness::Create(options).value();
  };
  const auto harness = create(absl::ResourceExhaustedError("out of memory"));
  for (int round = 0; round < 2; ++round) {
    const auto got = harness->Generate(requests);
    ASSERT_TRUE(got.ok()) << got.status();
    for (size_t i = 0; i < requests.size(); ++i) {
      ExpectSame((*got)[i], (*want)[i], "request " + std::to_string(i));
    }
  }
  EXPECT_EQ(num_tries, 1);
  Executor& executor = harness->executor(0);
  EXPECT_EQ(executor.num_graphs(), 0);
  ASSERT_TRUE(executor.PreparePlacement(2, {"mamba", "gdn", "kda"}).ok());
  EXPECT_FALSE(executor.Warm().value());
  EXPECT_EQ(num_tries, 1);

  const auto got =
      create(absl::InternalError("a broken device"))->Generate(requests);
  EXPECT_EQ(got.status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(got.status().message()),
              HasSubstr("rows: a broken device"));
}

// Memory runs out in the middle of warming up.
TEST(ExecutorTest, WithoutMemoryForAGraphWarmingEnds) {
  HarnessOptions options;
  options.model_dir = kStochasticDir;
  options.enable_graphs = true;
  int num_tries = 0;
  options.make_step_device = [&num_tries](Device* device) {
    return std::make_unique<GraphlessStepDevice>(
        device, absl::ResourceExhaustedError("out of memory"), &num_tries);
  };
  const auto harness = ExecutorHarness::Create(options).value();
  Executor& executor = harness->executor(0);
  v1::StepPlan plan;
  for (int32_t i = 0; i < 4; ++i) {
    HarnessRequest request;
    request.prompt = Prompt(5, i);
    const uint64_t id = harness->Start(plan, request);
    harness->Add(plan, id, harness->num_left(id));
  }
  ASSERT_TRUE(harness->Execute(plan).ok());
  ASSERT_TRUE(executor.PreparePlacement(2, {"mamba", "gdn", "kda"}).ok());
  const auto more = executor.Warm();
  ASSERT_TRUE(more.ok()) << more.status();
  EXPECT_FALSE(*more);
  EXPECT_EQ(num_tries, 1);
  EXPECT_EQ(executor.num_graphs(), 0);
}

// The next step is launched before a step's tokens are known here.
TEST(ExecutorTest, OverlappedStepsEqualStepsInTurn) {
  std::vector<HarnessRequest> requests = MixedRequests();
  requests[0].sampling.set_min_tokens(3);
  requests[0].sampling.add_stop_token_ids(5);
  requests[1].sampling.set_repetition_penalty(1.3f);
  for (const int32_t world_size : {1, 2}) {
    HarnessOptions options;
    options.model_dir = kStochasticDir;
    options.world_size = world_size;
    const auto in_turn = ExecutorHarness::Create(options).value();
    options.overlapped = true;
    const auto overlapped = ExecutorHarness::Create(options).value();
    for (const int32_t budget : {0, 11}) {
      const auto want = in_turn->Generate(requests, budget);
      const auto got = overlapped->Generate(requests, budget);
      ASSERT_TRUE(want.ok()) << want.status();
      ASSERT_TRUE(got.ok()) << got.status();
      for (size_t i = 0; i < requests.size(); ++i) {
        ExpectSame((*got)[i], (*want)[i],
                   "request " + std::to_string(i) + " of world " +
                       std::to_string(world_size));
      }
      EXPECT_EQ(overlapped->executor(0).num_cache_units_held(), 0);
      EXPECT_EQ(overlapped->executor(0).num_sequences(), 0);
    }
  }
}

TEST(ExecutorTest, ACopiedCacheIsAsGoodAsAComputedOne) {
  const auto harness = Harness(kStochasticDir, 2);
  for (HarnessRequest request : MixedRequests()) {
    request.prompt = Prompt(12);
    request.sampling = GreedyWithLogprobs(3);
    request.sampling.clear_prompt_logprobs();
    v1::StepPlan plan;
    const uint64_t from = harness->Start(plan, request);
    const uint64_t to = harness->Start(plan, request);
    harness->Add(plan, from, 10);
    harness->Add(plan, to, 1);
    ASSERT_TRUE(harness->Execute(plan).ok());
    ASSERT_TRUE(harness->CopyCache(from, to).ok());
    plan = v1::StepPlan();
    harness->Add(plan, from, 2);
    harness->Add(plan, to, 2);
    ExpectTwins(harness->Execute(plan));
    plan = v1::StepPlan();
    harness->Finish(plan, from);
    harness->Finish(plan, to);
    ASSERT_TRUE(harness->Execute(plan).ok());
  }
}

// One sequence leaves what it has cached, and is gone; another, which begins
// alike, goes on from there with the same bits as one that computes it all.
TEST(ExecutorTest, AKeptPrefixIsAsGoodAsAComputedOne) {
  for (const int32_t num_shared : {5, 32, 45}) {  // blocks have 16 positions
    const auto harness = Harness(kStochasticDir, 2);
    for (HarnessRequest request : MixedRequests()) {
      request.prompt = Prompt(num_shared + 3);
      request.sampling = GreedyWithLogprobs(3);
      request.sampling.clear_prompt_logprobs();
      HarnessRequest other = request;
      other.prompt.back() += 1;
      v1::StepPlan plan;
      const uint64_t first = harness->Start(plan, request);
      harness->Add(plan, first, num_shared);
      ASSERT_TRUE(harness->Execute(plan).ok());
      plan = v1::StepPlan();
      const ExecutorHarness::Prefix prefix = harness->Keep(plan, first);
      harness->Add(plan, first, 3);
      ASSERT_TRUE(harness->Execute(plan).ok());
      plan = v1::StepPlan();
      harness->Finish(plan, first);
      ASSERT_TRUE(harness->Execute(plan).ok());

      plan = v1::StepPlan();
      const uint64_t whole = harness->Start(plan, other);
      harness->Add(plan, whole, num_shared + 3);
      const uint64_t reusing = harness->Start(plan, other);
      harness->AddWith(plan, reusing, prefix, 3);
      for (int step = 0; step < 3; ++step) {
        ExpectTwins(harness->Execute(plan));
        plan = v1::StepPlan();
        harness->Add(plan, whole, 1);
        harness->Add(plan, reusing, 1);
      }
      plan = v1::StepPlan();
      harness->Finish(plan, whole);
      harness->Finish(plan, reusing);
      for (int32_t layer = 0; layer < 3; ++layer) {
        for (const auto* units : {&prefix.shared, &prefix.state}) {
          for (const uint32_t unit : (*units)[layer]) plan.add_dropped(unit);
        }
      }
      ASSERT_TRUE(harness->Execute(plan).ok());
      EXPECT_EQ(harness->executor(0).num_cache_units_held(), 0);
    }
  }
}

TEST(ExecutorTest, RefusesToCopyWhatTheSequenceWouldNotHaveComputed) {
  const auto harness = Harness(kTinyDir);
  HarnessRequest request;
  request.sampling.set_temperature(0);
  request.prompt = Prompt(40);
  v1::StepPlan plan;
  const uint64_t from = harness->Start(plan, request);
  const uint64_t short_of_cache = harness->Start(plan, request);
  request.prompt.back() += 1;
  const uint64_t other_tokens = harness->Start(plan, request);
  harness->Add(plan, from, 40);
  harness->Add(plan, short_of_cache, 1);
  harness->Add(plan, other_tokens, 39);
  ASSERT_TRUE(harness->Execute(plan).ok());
  for (const uint64_t to : {short_of_cache, other_tokens, from, uint64_t{99}}) {
    EXPECT_EQ(harness->CopyCache(from, to).code(),
              absl::StatusCode::kInvalidArgument)
        << to;
  }
}

// A sequence may be forgotten, and another take its id, while its last step is
// under way: the token that arrives late is not the newcomer's.
TEST(ExecutorTest, ALateTokenDoesNotReachANewSequenceOfTheSameId) {
  const auto harness = Harness(kTinyDir);
  HarnessRequest request;
  request.prompt = Prompt(6);
  request.sampling.set_temperature(0);
  v1::StepPlan first;
  harness->Add(first, harness->Start(first, request), 6);
  Executor& executor = harness->executor(0);
  ASSERT_TRUE(executor.Launch(first).ok());

  v1::StepPlan second = first;  // starts the same again, in the same cache
  second.clear_placements();
  second.add_finished(first.started(0).sequence_id());
  ASSERT_TRUE(executor.Launch(second).ok());
  const auto late = executor.Collect();
  ASSERT_TRUE(late.ok()) << late.status();
  const auto result = executor.Collect();
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ(result->tokens_size(), 1);
  EXPECT_EQ(result->tokens(0).token_id(), late->tokens(0).token_id());

  // It has seven tokens, not eight.
  v1::StepPlan third;
  v1::SequenceStep& step = *third.add_batch();
  step.set_sequence_id(first.started(0).sequence_id());
  step.set_start(6);
  step.set_num_tokens(2);
  EXPECT_THAT(std::string(executor.Launch(third).message()),
              HasSubstr("runs to position 8, but has only 7 tokens"));
}

// Prefill, single tokens, prefill again on one sequence, against one prefill.
class FollowUpTest : public ::testing::TestWithParam<const char*> {};

TEST_P(FollowUpTest, EqualsOneLongPrefill) {
  const auto harness = Harness(kStochasticDir);
  HarnessRequest request;
  request.mixers.assign(3, GetParam());
  request.prompt = Prompt(90);
  request.sampling = GreedyWithLogprobs(1);
  const auto whole = harness->GenerateOne(request);
  ASSERT_TRUE(whole.ok()) << whole.status();

  HarnessResult pieces;
  pieces.prompt_logprobs.resize(1);
  v1::StepPlan plan;
  const uint64_t id = harness->Start(plan, request);
  for (const int32_t num_tokens : {33, 1, 1, 1, 40, 1, 13}) {
    harness->Add(plan, id, num_tokens);
    const auto step = harness->Execute(plan);
    ASSERT_TRUE(step.ok()) << step.status();
    plan.Clear();
    for (const v1::PromptLogprobs& prompt : step->prompt_logprobs()) {
      EXPECT_EQ(prompt.start(), pieces.prompt_logprobs.size());
      pieces.prompt_logprobs.insert(pieces.prompt_logprobs.end(),
                                    prompt.positions().begin(),
                                    prompt.positions().end());
    }
    for (const v1::SampledToken& token : step->tokens()) {
      pieces.tokens.push_back(token.token_id());
      pieces.logprobs.push_back(token.logprobs());
    }
  }
  ExpectSame(pieces, *whole, GetParam());
}

INSTANTIATE_TEST_SUITE_P(Mixers, FollowUpTest,
                         ::testing::Values("attention", "swa", "gdn", "kda",
                                           "mamba"));

TEST(ExecutorTest, ARestartContinuesAsIfNothingHappened) {
  const auto harness = Harness(kStochasticDir);
  HarnessRequest request;
  request.mixers = {"gdn", "attention", "kda"};
  request.prompt = Prompt(20);
  request.max_tokens = 12;
  request.sampling.set_temperature(1.2f);
  request.sampling.set_presence_penalty(1.5f);
  request.sampling.set_repetition_penalty(1.3f);
  request.sampling.set_logprobs(0);
  request.seed = 5;
  const auto whole = harness->GenerateOne(request);
  ASSERT_TRUE(whole.ok()) << whole.status();

  // The same from its fifth token on, with a cache rebuilt from its tokens.
  HarnessRequest restarted = request;
  restarted.prompt.insert(restarted.prompt.end(), whole->tokens.begin(),
                          whole->tokens.begin() + 5);
  v1::StepPlan plan;
  const uint64_t id = harness->Start(plan, restarted);
  plan.mutable_started(0)->set_num_prompt_tokens(request.prompt.size());
  std::vector<int32_t> tokens(whole->tokens.begin(), whole->tokens.begin() + 5);
  while (tokens.size() < whole->tokens.size()) {
    harness->Add(plan, id, harness->num_left(id));
    const auto step = harness->Execute(plan);
    ASSERT_TRUE(step.ok()) << step.status();
    plan.Clear();
    ASSERT_EQ(step->tokens_size(), 1);
    tokens.push_back(step->tokens(0).token_id());
  }
  EXPECT_EQ(tokens, whole->tokens);
}

TEST(ExecutorTest, BiasesForceAndForbidTokens) {
  const auto harness = Harness(kTinyDir);
  HarnessRequest request;
  request.prompt = Prompt(9);
  request.max_tokens = 6;
  request.sampling = GreedyWithLogprobs();
  const HarnessResult plain = harness->GenerateOne(request).value();

  HarnessRequest forced = request;
  (*forced.sampling.mutable_logit_bias())[42] = 100;
  const HarnessResult biased = harness->GenerateOne(forced).value();
  EXPECT_EQ(biased.tokens, std::vector<int32_t>(6, 42));
  // Log-probabilities are the model's own.
  EXPECT_LT(biased.logprobs[0].logprob(), plain.logprobs[0].logprob());

  HarnessRequest patient = request;
  patient.sampling.set_min_tokens(3);
  for (int32_t token : plain.tokens) {
    patient.sampling.add_stop_token_ids(token);
  }
  const HarnessResult late = harness->GenerateOne(patient).value();
  for (int32_t i = 0; i < 3; ++i) {
    EXPECT_THAT(plain.tokens,
                ::testing::Not(::testing::Contains(late.tokens[i])));
  }
}

TEST(ExecutorTest, OnlyRankZeroReports) {
  const auto harness = Harness(kStochasticDir, 2);
  v1::StepPlan plan;
  HarnessRequest request;
  request.prompt = Prompt(5);
  const uint64_t id = harness->Start(plan, request);
  harness->Add(plan, id, 5);
  const auto result = harness->Execute(plan);
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ(result->tokens_size(), 1);
  EXPECT_EQ(result->tokens(0).sequence_id(), id);
  EXPECT_FALSE(result->tokens(0).has_logprobs());
  EXPECT_EQ(result->prompt_logprobs_size(), 0);
}

}  // namespace
}  // namespace switchyard
