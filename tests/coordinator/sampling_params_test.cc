#include "coordinator/sampling_params.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <ostream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/match.h"

namespace switchyard {
namespace {

using v1::SamplingParams;

constexpr uint32_t kVocabSize = 100;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

struct Case {
  std::string name;
  std::function<void(SamplingParams&)> set;
  std::string message;  // empty: it is valid
};

std::ostream& operator<<(std::ostream& out, const Case& c) {
  return out << c.name;
}

class SamplingParamsTest : public testing::TestWithParam<Case> {};

TEST_P(SamplingParamsTest, NamesTheField) {
  SamplingParams params;
  GetParam().set(params);
  const absl::Status status = ValidateSamplingParams(params, kVocabSize);
  if (GetParam().message.empty()) {
    EXPECT_TRUE(status.ok()) << status;
  } else {
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(absl::StrContains(status.message(), GetParam().message))
        << status;
  }
}

const Case kCases[] = {
    {"Nothing", [](auto&) {}, ""},
    {"TemperatureZero", [](auto& p) { p.set_temperature(0); }, ""},
    {"TemperatureNegative", [](auto& p) { p.set_temperature(-0.5f); },
     "sampling.temperature must be a finite number of at least 0, and is -0.5"},
    {"TemperatureNan", [](auto& p) { p.set_temperature(kNan); },
     "sampling.temperature"},
    {"TemperatureInf", [](auto& p) { p.set_temperature(kInf); },
     "sampling.temperature"},
    {"TopPOne", [](auto& p) { p.set_top_p(1); }, ""},
    {"TopPZero", [](auto& p) { p.set_top_p(0); },
     "sampling.top_p must be above 0 and at most 1, and is 0"},
    {"TopPJustBeyond", [](auto& p) { p.set_top_p(1.0000001f); },
     "sampling.top_p must be above 0 and at most 1, and is 1.00000012"},
    {"TopPBeyond", [](auto& p) { p.set_top_p(1.01f); }, "sampling.top_p"},
    {"TopPNan", [](auto& p) { p.set_top_p(kNan); }, "sampling.top_p"},
    {"TopKLarge", [](auto& p) { p.set_top_k(UINT32_MAX); }, ""},
    {"MinPOne", [](auto& p) { p.set_min_p(1); }, ""},
    {"MinPNegative", [](auto& p) { p.set_min_p(-0.1f); }, "sampling.min_p"},
    {"MinPNan", [](auto& p) { p.set_min_p(kNan); }, "sampling.min_p"},
    {"FrequencyLow", [](auto& p) { p.set_frequency_penalty(-2); }, ""},
    {"FrequencyHigh", [](auto& p) { p.set_frequency_penalty(2.1f); },
     "sampling.frequency_penalty must be from -2 to 2"},
    {"FrequencyNan", [](auto& p) { p.set_frequency_penalty(kNan); },
     "sampling.frequency_penalty"},
    {"PresenceLow", [](auto& p) { p.set_presence_penalty(-2.1f); },
     "sampling.presence_penalty"},
    {"PresenceInf", [](auto& p) { p.set_presence_penalty(kInf); },
     "sampling.presence_penalty"},
    {"Repetition", [](auto& p) { p.set_repetition_penalty(1.3f); }, ""},
    {"RepetitionZero", [](auto& p) { p.set_repetition_penalty(0); },
     "sampling.repetition_penalty must be a finite number above 0"},
    {"RepetitionInf", [](auto& p) { p.set_repetition_penalty(kInf); },
     "sampling.repetition_penalty"},
    {"MaxTokensZero", [](auto& p) { p.set_max_tokens(0); },
     "sampling.max_tokens must be at least 1"},
    {"MinAlone", [](auto& p) { p.set_min_tokens(1000); }, ""},
    {"MinBeyondMax",
     [](auto& p) {
       p.set_min_tokens(6);
       p.set_max_tokens(5);
     },
     "sampling.min_tokens must be at most max_tokens, which is 5, and is 6"},
    {"StopsMost",
     [](auto& p) {
       for (int i = 0; i < 16; ++i) p.add_stop(std::string(1024, 'x'));
     },
     ""},
    {"StopsTooMany",
     [](auto& p) {
       for (int i = 0; i < 17; ++i) p.add_stop("x");
     },
     "sampling.stop must be at most 16 strings, and is 17"},
    {"StopEmpty",
     [](auto& p) {
       p.add_stop("x");
       p.add_stop("");
     },
     "sampling.stop[1] must be from 1 to 1024 bytes, and is 0"},
    {"StopLong", [](auto& p) { p.add_stop(std::string(1025, 'x')); },
     "sampling.stop[0]"},
    {"StopId", [](auto& p) { p.add_stop_token_ids(99); }, ""},
    {"StopIdBeyond", [](auto& p) { p.add_stop_token_ids(100); },
     "sampling.stop_token_ids[0] must be below the vocabulary size 100, and is "
     "100"},
    {"StopIdsTooMany",
     [](auto& p) {
       for (int i = 0; i < 1025; ++i) p.add_stop_token_ids(1);
     },
     "sampling.stop_token_ids"},
    {"Logprobs", [](auto& p) { p.set_logprobs(20); }, ""},
    {"LogprobsBeyond", [](auto& p) { p.set_logprobs(21); },
     "sampling.logprobs must be at most 20, and is 21"},
    {"PromptLogprobsBeyond", [](auto& p) { p.set_prompt_logprobs(UINT32_MAX); },
     "sampling.prompt_logprobs must be at most 20"},
    {"Bias", [](auto& p) { (*p.mutable_logit_bias())[99] = -100; }, ""},
    {"BiasId", [](auto& p) { (*p.mutable_logit_bias())[100] = 1; },
     "sampling.logit_bias has the token id 100"},
    {"BiasBeyond", [](auto& p) { (*p.mutable_logit_bias())[5] = 101; },
     "sampling.logit_bias[5] must be from -100 to 100, and is 101"},
    {"BiasNan", [](auto& p) { (*p.mutable_logit_bias())[5] = kNan; },
     "sampling.logit_bias[5]"},
    {"BiasesTooMany",
     [](auto& p) {
       for (int i = 0; i < 1025; ++i) (*p.mutable_logit_bias())[i] = 1;
     },
     "sampling.logit_bias must be at most 1024 entries"},
};

INSTANTIATE_TEST_SUITE_P(Cases, SamplingParamsTest, testing::ValuesIn(kCases),
                         [](const auto& info) { return info.param.name; });

const SamplingDefaults kDefaults = {{7, 3}, 50, 12345};

TEST(ResolveSamplingParamsTest, FillsInEveryDefault) {
  const SamplingParams params = ResolveSamplingParams({}, kDefaults);
  EXPECT_TRUE(params.has_temperature());
  EXPECT_EQ(params.temperature(), 1.0f);
  EXPECT_TRUE(params.has_top_p());
  EXPECT_EQ(params.top_p(), 1.0f);
  EXPECT_TRUE(params.has_top_k());
  EXPECT_EQ(params.top_k(), 0u);
  EXPECT_TRUE(params.has_min_p());
  EXPECT_EQ(params.min_p(), 0.0f);
  EXPECT_TRUE(params.has_frequency_penalty());
  EXPECT_TRUE(params.has_presence_penalty());
  EXPECT_TRUE(params.has_repetition_penalty());
  EXPECT_EQ(params.repetition_penalty(), 1.0f);
  EXPECT_EQ(params.max_tokens(), 50u);
  EXPECT_TRUE(params.has_min_tokens());
  EXPECT_EQ(params.min_tokens(), 0u);
  EXPECT_EQ(params.seed(), 12345u);
  EXPECT_TRUE(params.skip_special_tokens());
  EXPECT_FALSE(params.has_logprobs());
  EXPECT_FALSE(params.has_prompt_logprobs());
  ASSERT_EQ(params.stop_token_ids_size(), 2);
  EXPECT_EQ(params.stop_token_ids(0), 3u);
  EXPECT_EQ(params.stop_token_ids(1), 7u);
}

TEST(ResolveSamplingParamsTest, KeepsWhatIsSet) {
  SamplingParams params;
  params.set_temperature(0);
  params.set_top_p(0.5f);
  params.set_top_k(4);
  params.set_min_p(0.25f);
  params.set_frequency_penalty(-1);
  params.set_presence_penalty(1);
  params.set_repetition_penalty(2);
  params.set_max_tokens(10);
  params.set_min_tokens(5);
  params.add_stop("x");
  params.add_stop_token_ids(9);
  params.set_ignore_eos(true);
  params.set_seed(0);
  params.set_logprobs(0);
  params.set_prompt_logprobs(2);
  (*params.mutable_logit_bias())[1] = 2;
  params.set_skip_special_tokens(false);
  const SamplingParams resolved = ResolveSamplingParams(params, kDefaults);
  EXPECT_EQ(resolved.SerializeAsString(), params.SerializeAsString());
}

TEST(ResolveSamplingParamsTest, StaysWithinTheContext) {
  SamplingParams params;
  params.set_max_tokens(80);
  params.set_min_tokens(60);
  const SamplingParams resolved = ResolveSamplingParams(params, kDefaults);
  EXPECT_EQ(resolved.max_tokens(), 50u);
  EXPECT_EQ(resolved.min_tokens(), 50u);
}

TEST(ResolveSamplingParamsTest, NamesEachStopTokenOnce) {
  SamplingParams params;
  for (uint32_t id : {7u, 1u, 7u, 3u}) params.add_stop_token_ids(id);
  const SamplingParams resolved = ResolveSamplingParams(params, kDefaults);
  const auto& ids = resolved.stop_token_ids();
  EXPECT_EQ(std::vector<uint32_t>(ids.begin(), ids.end()),
            (std::vector<uint32_t>{1, 3, 7}));
}

}  // namespace
}  // namespace switchyard
