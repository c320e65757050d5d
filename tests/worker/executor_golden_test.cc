// The executor against the float64 reference: all cases of a golden file run
// together in one batch, whatever their placements, at several world sizes,
// chunked and unchunked.
#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/logits.h"
#include "tests/worker/executor_harness.h"

namespace switchyard {
namespace {

using nlohmann::json;

constexpr double kTolerance = 1e-3;  // of a log-probability, and of a margin

struct GoldenModel {
  const char* model;
  const char* golden;
};

// What failed first is enough: a wrong detail makes everything wrong.
void ExpectClose(double got, double want, const std::string& where,
                 double& worst) {
  const double difference = std::abs(got - want);
  worst = std::max(worst, difference);
  EXPECT_LE(difference, kTolerance)
      << where << ": got " << got << ", reference " << want;
}

// Gap between the reference's first and second choice at a step; the smallest
// of the case where the file has no more.
double Margin(const json& golden, size_t step) {
  if (!golden.contains("top5")) return golden["min_margin"];
  const json& top = golden["top5"][step];
  return top[0][1].get<double>() - top[1][1].get<double>();
}

void CheckPrompt(const json& golden, const HarnessResult& result,
                 const std::string& where, double& worst) {
  const json& want = golden["prompt_logprobs"];
  ASSERT_EQ(result.prompt_logprobs.size(), want.size()) << where;
  for (size_t p = 1; p < want.size(); ++p) {
    ExpectClose(result.prompt_logprobs[p].logprob(), want[p],
                where + " prompt position " + std::to_string(p), worst);
  }
}

void CheckGreedy(const json& golden, const HarnessResult& result,
                 const std::string& where, double& worst) {
  const json& want = golden["greedy_ids"];
  ASSERT_EQ(result.tokens.size(), want.size()) << where;
  for (size_t i = 0; i < want.size(); ++i) {
    const std::string here = where + " token " + std::to_string(i);
    if (result.tokens[i] != want[i].get<int32_t>()) {
      EXPECT_LE(Margin(golden, i), kTolerance) << here;
      return;  // from here on the texts differ
    }
    ExpectClose(result.logprobs[i].logprob(), golden["greedy_logprobs"][i],
                here, worst);
  }
}

// The best tokens after the prompt, against log softmax(last_logits).
void CheckLastLogits(const json& golden, const HarnessResult& result,
                     const std::string& where, double& worst) {
  const std::vector<double> logits = golden["last_logits"];
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (double logit : logits) sum += std::exp(logit - max);
  ASSERT_EQ(result.logprobs[0].top_size(), kMaxTopLogprobs);
  for (const v1::TopLogprob& top : result.logprobs[0].top()) {
    ExpectClose(top.logprob(), logits[top.token_id()] - max - std::log(sum),
                where + " logit of " + std::to_string(top.token_id()), worst);
  }
}

struct GoldenRun {
  GoldenModel model;
  int world_size;
  int token_budget;
};

class ExecutorGoldenTest : public ::testing::TestWithParam<GoldenRun> {};

TEST_P(ExecutorGoldenTest, MatchesTheReference) {
  const auto& [model, world_size, token_budget] = GetParam();
  std::ifstream file(std::string("tests/testdata/") + model.golden);
  const json golden = json::parse(file);
  const json& cases = golden["cases"];

  HarnessOptions options;
  options.model_dir = std::string("tests/testdata/") + model.model;
  options.world_size = world_size;
  options.max_num_seqs = static_cast<int32_t>(cases.size());
  options.arena_bytes = int64_t{512} << 20;
  auto harness = ExecutorHarness::Create(options);
  ASSERT_TRUE(harness.ok()) << harness.status();

  std::vector<HarnessRequest> requests;
  for (const json& one : cases) {
    HarnessRequest request;
    if (!one["placement"].is_null()) {
      request.mixers = one["placement"].get<std::vector<std::string>>();
    }
    request.prompt = one["prompt_ids"].get<std::vector<int32_t>>();
    request.max_tokens = static_cast<int32_t>(one["greedy_ids"].size());
    request.sampling =
        GreedyWithLogprobs(one.contains("last_logits") ? kMaxTopLogprobs : 0);
    requests.push_back(std::move(request));
  }
  const auto results = (*harness)->Generate(requests, token_budget);
  ASSERT_TRUE(results.ok()) << results.status();

  double worst = 0;
  for (size_t i = 0; i < cases.size(); ++i) {
    const std::string where = "case " + std::to_string(i) + " " +
                              cases[i]["placement"].dump() + " of " +
                              std::to_string(cases[i]["prompt_ids"].size());
    CheckPrompt(cases[i], (*results)[i], where, worst);
    CheckGreedy(cases[i], (*results)[i], where, worst);
    if (cases[i].contains("last_logits")) {
      CheckLastLogits(cases[i], (*results)[i], where, worst);
    }
  }
  RecordProperty("largest_difference", std::to_string(worst));
  EXPECT_EQ((*harness)->executor(0).num_sequences(), 0);
  EXPECT_EQ((*harness)->executor(0).num_cache_units_held(), 0);
}

constexpr GoldenModel kTiny = {"apriel2-tiny", "golden_generate.json"};
constexpr GoldenModel kStochastic = {"zoo-stochastic5",
                                     "golden_zoo-stochastic5.json"};
constexpr GoldenModel kPattern = {"zoo-pattern", "golden_zoo-pattern.json"};

// Every world size, chunked (29 tokens a step) or not, and both for one rank.
INSTANTIATE_TEST_SUITE_P(
    Models, ExecutorGoldenTest,
    ::testing::Values(GoldenRun{kTiny, 1, 29}, GoldenRun{kTiny, 1, 512},
                      GoldenRun{kTiny, 2, 29}, GoldenRun{kTiny, 4, 512},
                      GoldenRun{kStochastic, 1, 29},
                      GoldenRun{kStochastic, 1, 512},
                      GoldenRun{kStochastic, 2, 512},
                      GoldenRun{kStochastic, 4, 29}, GoldenRun{kPattern, 1, 29},
                      GoldenRun{kPattern, 1, 512}, GoldenRun{kPattern, 2, 29}),
    [](const auto& info) {
      std::string name = info.param.model.model;
      std::replace(name.begin(), name.end(), '-', '_');
      return name + "_world" + std::to_string(info.param.world_size) +
             "_budget" + std::to_string(info.param.token_budget);
    });

}  // namespace
}  // namespace switchyard
