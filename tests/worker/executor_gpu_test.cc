// The executor on a GPU: against the CPU, and against itself under every way of
// running the same steps. Needs a GPU; runs from the root of the source tree or
// of a bundle.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/worker/executor_harness.h"

namespace switchyard {
namespace {

HarnessOptions OnGpu(const std::string& dir, const std::string& dtype) {
  HarnessOptions options;
  options.model_dir = dir;
  options.device = "cuda:0";
  options.dtype = dtype;
  return options;
}

std::vector<HarnessResult> GenerateAll(
    const HarnessOptions& options, const std::vector<HarnessRequest>& requests,
    int32_t token_budget = 0) {
  const auto harness = ExecutorHarness::Create(options);
  EXPECT_TRUE(harness.ok()) << harness.status();
  if (!harness.ok()) return std::vector<HarnessResult>(requests.size());
  const auto results = (*harness)->Generate(requests, token_budget);
  EXPECT_TRUE(results.ok()) << results.status();
  EXPECT_EQ((*harness)->executor(0).num_cache_units_held(), 0);
  if (options.enable_graphs) {
    EXPECT_GT((*harness)->executor(0).num_graphs(), 0);
  }
  if (!results.ok()) return std::vector<HarnessResult>(requests.size());
  return *results;
}

HarnessRequest Greedy(std::vector<std::string> mixers, int32_t length,
                      int32_t salt, int32_t max_tokens) {
  HarnessRequest request;
  request.mixers = std::move(mixers);
  request.prompt = Prompt(length, salt);
  request.max_tokens = max_tokens;
  request.sampling = GreedyWithLogprobs(2);
  return request;
}

std::vector<HarnessRequest> MixedRequests() {
  const std::vector<std::vector<std::string>> placements = {
      {"attention", "gdn", "mamba"}, {"swa", "swa", "swa"},
      {"kda", "mamba", "attention"}, {"mamba", "kda", "gdn"},
      {"gdn", "gdn", "kda"},         {"attention", "swa", "attention"}};
  std::vector<HarnessRequest> requests;
  for (size_t i = 0; i < placements.size(); ++i) {
    requests.push_back(Greedy(placements[i], static_cast<int32_t>(1 + 17 * i),
                              i, static_cast<int32_t>(8 + i)));
  }
  return requests;
}

// Several of two placements, with everything that sampling can do.
std::vector<HarnessRequest> SampledRequests() {
  std::vector<HarnessRequest> requests;
  for (int32_t i = 0; i < 8; ++i) {
    HarnessRequest request =
        i < 4 ? Greedy({"attention", "gdn", "swa"}, 5 + 7 * i, i, 20)
              : Greedy({"kda", "mamba", "attention"}, 40 - 3 * i, i, 20);
    request.sampling.clear_prompt_logprobs();
    request.sampling.set_temperature(0.9f);
    request.seed = 100 + i;
    if (i % 2 == 1) {
      request.sampling.set_top_p(0.9f);
      request.sampling.set_top_k(50);
      request.sampling.set_frequency_penalty(0.5f);
      request.sampling.set_repetition_penalty(1.2f);
      (*request.sampling.mutable_logit_bias())[17] = 2;
    }
    if (i % 4 == 2) {
      request.sampling.set_min_tokens(6);
      request.sampling.add_stop_token_ids(11);
    }
    requests.push_back(std::move(request));
  }
  return requests;
}

// Where texts part, the first choice must have been close; until then
// log-probabilities are.
void ExpectClose(const std::vector<HarnessResult>& got,
                 const std::vector<HarnessResult>& want, double tolerance,
                 const std::string& what) {
  double worst = 0, sum = 0;
  int num = 0, num_parted = 0;
  const auto compare = [&](const v1::TokenLogprobs& a,
                           const v1::TokenLogprobs& b) {
    const double difference = std::abs(a.logprob() - b.logprob());
    EXPECT_LE(difference, tolerance) << what;
    worst = std::max(worst, difference);
    sum += difference;
    ++num;
  };
  for (size_t r = 0; r < want.size(); ++r) {
    ASSERT_EQ(got[r].prompt_logprobs.size(), want[r].prompt_logprobs.size());
    for (size_t i = 1; i < want[r].prompt_logprobs.size(); ++i) {
      compare(got[r].prompt_logprobs[i], want[r].prompt_logprobs[i]);
    }
    ASSERT_EQ(got[r].tokens.size(), want[r].tokens.size()) << what;
    for (size_t i = 0; i < want[r].tokens.size(); ++i) {
      if (got[r].tokens[i] != want[r].tokens[i]) {
        const auto& top = want[r].logprobs[i].top();
        ASSERT_EQ(top.size(), 2);
        EXPECT_LE(top[0].logprob() - top[1].logprob(), 2 * tolerance)
            << what << ": request " << r << " token " << i;
        ++num_parted;
        break;
      }
      compare(got[r].logprobs[i], want[r].logprobs[i]);
    }
  }
  std::printf("  %-44s mean %.5f  largest %.5f of %d; %d of %zu texts part\n",
              what.c_str(), sum / std::max(num, 1), worst, num, num_parted,
              want.size());
}

// Bits.
void ExpectSame(const std::vector<HarnessResult>& got,
                const std::vector<HarnessResult>& want,
                const std::string& what) {
  const auto flat = [](const std::vector<v1::TokenLogprobs>& values) {
    std::vector<float> all;
    for (const v1::TokenLogprobs& value : values) {
      all.push_back(value.logprob());
      for (const auto& top : value.top()) all.push_back(top.logprob());
    }
    return all;
  };
  ASSERT_EQ(got.size(), want.size());
  for (size_t r = 0; r < want.size(); ++r) {
    const std::string here = what + ", request " + std::to_string(r);
    EXPECT_EQ(got[r].tokens, want[r].tokens) << here;
    EXPECT_EQ(flat(got[r].logprobs), flat(want[r].logprobs)) << here;
    EXPECT_EQ(flat(got[r].prompt_logprobs), flat(want[r].prompt_logprobs))
        << here;
  }
}

std::vector<HarnessResult> GenerateAlone(
    const HarnessOptions& options,
    const std::vector<HarnessRequest>& requests) {
  const auto harness = ExecutorHarness::Create(options);
  EXPECT_TRUE(harness.ok()) << harness.status();
  std::vector<HarnessResult> results(requests.size());
  for (size_t i = 0; harness.ok() && i < requests.size(); ++i) {
    const auto result = (*harness)->GenerateOne(requests[i]);
    EXPECT_TRUE(result.ok()) << result.status();
    if (result.ok()) results[i] = *result;
  }
  return results;
}

TEST(ExecutorGpuTest, Fp32EqualsTheCpu) {
  HarnessOptions on_cpu;
  on_cpu.model_dir = kStochasticDir;
  const std::vector<HarnessRequest> requests = MixedRequests();
  const auto want = GenerateAll(on_cpu, requests);
  HarnessOptions options = OnGpu(kStochasticDir, "fp32");
  ExpectClose(GenerateAll(options, requests), want, 2e-3,
              "fp32 against the CPU");
  ExpectClose(GenerateAll(options, requests, 11), want, 2e-3, "fp32 in chunks");
  options.enable_graphs = true;
  options.overlapped = true;
  ExpectClose(GenerateAll(options, requests), want, 2e-3,
              "fp32, graphs, overlapped");

  on_cpu.model_dir = kTinyDir;
  options.model_dir = kTinyDir;
  const std::vector<HarnessRequest> tiny = {Greedy({}, 130, 1, 24),
                                            Greedy({}, 3, 2, 40)};
  ExpectClose(GenerateAll(options, tiny), GenerateAll(on_cpu, tiny), 2e-3,
              "fp32, tiny");
}

TEST(ExecutorGpuTest, Bf16AgreesWithItselfHoweverItRuns) {
  const std::vector<HarnessRequest> requests = MixedRequests();
  HarnessOptions on_cpu;
  on_cpu.model_dir = kStochasticDir;
  HarnessOptions options = OnGpu(kStochasticDir, "bf16");
  const auto plain = GenerateAll(options, requests);
  // Random weights: logits are nearly flat, and the penalties sharpen what
  // rounding leaves; the float64 goldens of this checkpoint are 0.47 off, too.
  ExpectClose(plain, GenerateAll(on_cpu, requests), 0.5,
              "bf16 against the CPU");
  ExpectClose(GenerateAll(options, requests, 11), plain, 0.1, "bf16 in chunks");
  ExpectClose(GenerateAlone(options, requests), plain, 0.1, "bf16 alone");
  options.overlapped = true;
  ExpectSame(GenerateAll(options, requests), plain, "bf16 overlapped");
  options.enable_graphs = true;
  const auto graphs = GenerateAll(options, requests);
  ExpectClose(graphs, plain, 0.1, "bf16 with graphs, overlapped");
  options.overlapped = false;
  ExpectSame(GenerateAll(options, requests), graphs,
             "bf16 with graphs, in turn");
}

// Where nothing is padded, a graph does the very same launches.
TEST(ExecutorGpuTest, GraphsOfFullBucketsChangeNoBit) {
  const std::vector<HarnessRequest> requests = SampledRequests();
  HarnessOptions options = OnGpu(kStochasticDir, "bf16");
  options.enable_graphs = false;
  const auto plain = GenerateAll(options, requests);
  options.overlapped = true;
  ExpectSame(GenerateAll(options, requests), plain, "overlapped");
  options.enable_graphs = true;
  ExpectSame(GenerateAll(options, requests), plain, "graphs, overlapped");
  options.overlapped = false;
  ExpectSame(GenerateAll(options, requests), plain, "graphs, in turn");
}

TEST(ExecutorGpuTest, BatchInvariantRunsDifferInNoBit) {
  std::vector<HarnessRequest> requests = MixedRequests();
  requests.resize(5);  // padded to another bucket in company
  HarnessOptions options = OnGpu(kStochasticDir, "bf16");
  options.batch_invariant = true;
  const auto plain = GenerateAll(options, requests);
  ExpectSame(GenerateAll(options, requests, 11), plain, "in chunks");
  ExpectSame(GenerateAlone(options, requests), plain, "alone");
  options.enable_graphs = true;
  options.overlapped = true;
  ExpectSame(GenerateAll(options, requests), plain, "graphs, overlapped");
}

// A sequence that begins with what another has cached goes on with its bits,
// in prefill, and in decode steps as graphs.
TEST(ExecutorGpuTest, AKeptPrefixIsAsGoodAsAComputedOne) {
  for (const bool graphs : {false, true}) {
    HarnessOptions options = OnGpu(kStochasticDir, "bf16");
    options.batch_invariant = true;
    options.enable_graphs = graphs;
    const auto harness = ExecutorHarness::Create(options).value();
    for (HarnessRequest request : MixedRequests()) {
      request.prompt = Prompt(48, 3);
      request.sampling = GreedyWithLogprobs(2);
      request.sampling.clear_prompt_logprobs();
      v1::StepPlan plan;
      const uint64_t first = harness->Start(plan, request);
      harness->Add(plan, first, 45);  // blocks have 16 positions
      ASSERT_TRUE(harness->Execute(plan).ok());
      plan.Clear();
      const ExecutorHarness::Prefix prefix = harness->Keep(plan, first);
      ASSERT_TRUE(harness->Execute(plan).ok());
      plan.Clear();
      harness->Add(plan, first, 3);
      const uint64_t second = harness->Start(plan, request);
      harness->AddWith(plan, second, prefix, 3);
      for (int step = 0; step < 4; ++step) {
        ExpectTwins(harness->Execute(plan));
        plan.Clear();
        harness->Add(plan, first, 1);
        harness->Add(plan, second, 1);
      }
      plan.Clear();
      harness->Finish(plan, first);
      harness->Finish(plan, second);
      ASSERT_TRUE(harness->Execute(plan).ok());
    }
  }
}

// A graph serves contexts of all lengths; batches that shrink need others.
TEST(ExecutorGpuTest, GraphsFollowGrowingContexts) {
  std::vector<HarnessRequest> requests;
  for (int32_t i = 0; i < 5; ++i) {
    requests.push_back(
        Greedy({"attention", "swa", "attention"}, 8 + 40 * i, i, 30 + 10 * i));
  }
  HarnessOptions options = OnGpu(kStochasticDir, "bf16");
  const auto plain = GenerateAll(options, requests);
  options.enable_graphs = true;
  options.overlapped = true;
  ExpectClose(GenerateAll(options, requests), plain, 0.1, "growing, shrinking");

  const auto harness = ExecutorHarness::Create(options).value();
  ASSERT_TRUE(harness->GenerateOne(requests[0]).ok());
  const int64_t num_graphs = harness->executor(0).num_graphs();
  ASSERT_TRUE(harness->GenerateOne(requests[4]).ok());
  EXPECT_EQ(harness->executor(0).num_graphs(), num_graphs);
}

TEST(ExecutorGpuTest, WarmingChangesNothingAndSavesTheFirstStep) {
  HarnessOptions options = OnGpu(kStochasticDir, "bf16");
  options.enable_graphs = true;
  const auto harness = ExecutorHarness::Create(options).value();
  const HarnessRequest request = Greedy({"gdn", "kda", "attention"}, 9, 4, 12);
  const HarnessResult before = harness->GenerateOne(request).value();
  Executor& executor = harness->executor(0);
  const int64_t num_graphs = executor.num_graphs();

  // While a sequence runs.
  v1::StepPlan plan;
  const uint64_t id = harness->Start(plan, request);
  harness->Add(plan, id, harness->num_left(id));
  ASSERT_TRUE(harness->Execute(plan).ok());
  ASSERT_TRUE(executor.PreparePlacement(2, {"mamba", "gdn", "kda"}).ok());
  std::vector<int32_t> tokens = {harness->tokens(id).back()};
  for (int32_t i = 1; i < request.max_tokens; ++i) {
    plan.Clear();
    harness->Add(plan, id, 1);
    ASSERT_TRUE(harness->Launch(plan).ok());
    const auto more = executor.Warm();
    ASSERT_TRUE(more.ok()) << more.status();
    const auto step = harness->Collect();
    ASSERT_TRUE(step.ok()) << step.status();
    EXPECT_TRUE(step->graph());
    // The first one after the padding has no time that the device idled.
    if (i == 2) {
      EXPECT_EQ(step->device_idle_ms(), 0);
    } else {
      EXPECT_GT(step->device_idle_ms(), 0);
    }
    tokens.push_back(step->tokens(0).token_id());
  }
  EXPECT_EQ(tokens, before.tokens);
  EXPECT_EQ(executor.num_graphs(), num_graphs + 1);
  ASSERT_TRUE(executor.CommitPlacement(2).ok());

  HarnessRequest other = Greedy({"mamba", "gdn", "kda"}, 9, 4, 2);
  other.sampling.clear_logprobs();  // as most requests, and so what is warmed
  other.sampling.clear_prompt_logprobs();
  plan.Clear();
  harness->Finish(plan, id);
  const uint64_t next = harness->Start(plan, other);
  harness->Add(plan, next, harness->num_left(next));
  ASSERT_TRUE(harness->Execute(plan).ok());
  plan.Clear();
  harness->Add(plan, next, 1);
  const auto step = harness->Execute(plan);
  ASSERT_TRUE(step.ok()) << step.status();
  EXPECT_TRUE(step->graph());
  EXPECT_GT(step->device_ms(), 0);
}

}  // namespace
}  // namespace switchyard
