#include "coordinator/engine_telemetry.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "coordinator/engine.h"
#include "coordinator/metrics.h"
#include "coordinator/request.h"
#include "tests/coordinator/fake_group.h"
#include "tests/coordinator/scrape.h"
#include "tests/coordinator/supernet.h"
#include "tests/coordinator/tiny_tokenizer.h"

namespace switchyard {
namespace {

constexpr int kNumLayers = 3;

// Only tells the end.
class QuietSink : public RequestSink {
 public:
  void OnAdmitted() override { admitted.Notify(); }
  void OnTokens(const TokenDelta& /*delta*/) override {}
  void OnComplete(v1::GenerateComplete /*complete*/) override { over.Notify(); }
  void OnError(const absl::Status& /*status*/) override { over.Notify(); }

  absl::Notification admitted;
  absl::Notification over;
};

class EngineTelemetryTest : public ::testing::TestWithParam<bool> {
 protected:
  EngineTelemetryTest() {
    model_.name = "made-up";
    model_.config = MakeSupernet(kNumLayers);
    model_.config.vocab_size = kTinyVocabSize;
    model_.config.eos_token_ids = {kTinyEos};
    model_.max_context_tokens = 4096;
    options_.async_scheduling = GetParam();
    options_.scheduler.max_num_seqs = 16;
    options_.scheduler.max_num_batched_tokens = 24;
  }

  ~EngineTelemetryTest() override {
    if (group_ == nullptr) return;
    group_->Release();
    engine_->Stop();
    EXPECT_EQ(group_->complaints(), std::vector<std::string>());
  }

  void Start(int64_t arena_bytes = int64_t{64} << 20) {
    const CacheSpec spec = MakeSpec(model_.config);
    group_ = std::make_unique<FakeGroup>(&model_.config, spec, arena_bytes);
    MetricsOptions metrics_options;
    metrics_options.model_name = model_.name;
    metrics_options.max_context_tokens = model_.max_context_tokens;
    metrics_options.num_ranks = static_cast<int>(group_->facts().ranks.size());
    metrics_ = std::make_unique<Metrics>(metrics_options);
    PlacementTable table =
        PlacementTable::Create(&model_.config, {}, "").value();
    telemetry_ = std::make_unique<EngineTelemetry>(
        group_->facts(), table.default_name(), metrics_.get());
    options_.observer = telemetry_.get();
    engine_ =
        std::make_unique<Engine>(options_, &model_, std::move(table), spec,
                                 group_.get(), [](const absl::Status&) {});
  }

  uint64_t Submit(std::vector<uint32_t> prompt, uint32_t max_tokens,
                  const std::string& preset, RequestSink* sink) {
    v1::GenerateRequest request;
    *request.mutable_token_ids()->mutable_ids() = {prompt.begin(),
                                                   prompt.end()};
    request.mutable_sampling()->set_max_tokens(max_tokens);
    request.mutable_sampling()->set_ignore_eos(true);
    if (!preset.empty()) request.mutable_placement()->set_preset(preset);
    const std::string id = absl::StrCat("request-", ++num_requests_);
    return engine_->Submit(ParseGenerateRequest(request, model_, id, 7).value(),
                           sink);
  }

  double Value(const std::string& name,
               const std::vector<std::string>& labels = {}) {
    const std::optional<double> value =
        ScrapedValue(metrics_->Scrape(), name, labels);
    EXPECT_TRUE(value.has_value()) << name;
    return value.value_or(-1);
  }
  // What the engine reports when it goes idle comes after the last event.
  bool Becomes(double wanted, const std::string& name,
               const std::vector<std::string>& labels = {}) {
    const absl::Time deadline = absl::Now() + absl::Minutes(1);
    while (absl::Now() < deadline) {
      if (Value(name, labels) == wanted) return true;
      std::this_thread::yield();
    }
    return false;
  }

  ServedModel model_;
  EngineOptions options_;
  std::unique_ptr<FakeGroup> group_;
  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<EngineTelemetry> telemetry_;
  std::unique_ptr<Engine> engine_;
  int num_requests_ = 0;
};

const char kGdnLabel[] = "placement=\"all-gdn\"";
const char kAttentionLabel[] = "placement=\"all-attention\"";

TEST_P(EngineTelemetryTest, CountsTokensAndTimesByPlacement) {
  Start();
  QuietSink first;
  QuietSink second;
  Submit({1, 2, 3}, 5, "all-gdn", &first);
  Submit({1, 2, 3, 4}, 1, "", &second);  // the default: attention everywhere
  first.over.WaitForNotification();
  second.over.WaitForNotification();
  EXPECT_EQ(Value("prompt_tokens_total", {kGdnLabel}), 3);
  EXPECT_EQ(Value("generation_tokens_total", {kGdnLabel}), 5);
  EXPECT_EQ(Value("prompt_tokens_total", {kAttentionLabel}), 4);
  EXPECT_EQ(Value("generation_tokens_total", {kAttentionLabel}), 1);
  for (const char* placement : {kGdnLabel, kAttentionLabel}) {
    EXPECT_EQ(Value("request_success_total",
                    {placement, "finished_reason=\"length\""}),
              1);
    for (const char* name :
         {"time_to_first_token_seconds_count",
          "e2e_request_latency_seconds_count",
          "request_queue_time_seconds_count",
          "request_prefill_time_seconds_count",
          "request_decode_time_seconds_count",
          "request_inference_time_seconds_count", "request_prompt_tokens_count",
          "request_generation_tokens_count",
          "request_params_max_tokens_count"}) {
      EXPECT_EQ(Value(name, {placement}), 1) << name;
    }
    EXPECT_EQ(Value("num_requests_live", {placement}), 0);
  }
  // Four gaps between five tokens; none after a single one.
  EXPECT_EQ(Value("inter_token_latency_seconds_count", {kGdnLabel}), 4);
  EXPECT_EQ(Value("inter_token_latency_seconds_count", {kAttentionLabel}), 0);
  EXPECT_EQ(Value("request_time_per_output_token_seconds_count", {kGdnLabel}),
            1);
  EXPECT_EQ(
      Value("request_time_per_output_token_seconds_count", {kAttentionLabel}),
      0);
  // The parts of a request's time are its whole, as far as they go.
  const double parts = Value("request_queue_time_seconds_sum", {kGdnLabel}) +
                       Value("request_prefill_time_seconds_sum", {kGdnLabel}) +
                       Value("request_decode_time_seconds_sum", {kGdnLabel});
  EXPECT_LE(parts, Value("e2e_request_latency_seconds_sum", {kGdnLabel}));
  EXPECT_NEAR(Value("request_prefill_time_seconds_sum", {kGdnLabel}) +
                  Value("request_decode_time_seconds_sum", {kGdnLabel}),
              Value("request_inference_time_seconds_sum", {kGdnLabel}), 1e-9);
  // 3 + 4 prompt tokens, and all generated ones but the last of each.
  EXPECT_EQ(Value("iteration_tokens_total_sum"), 3 + 4 + 4);
  EXPECT_TRUE(Becomes(0, "num_requests_running"));
  EXPECT_EQ(Value("kv_cache_usage_perc"), 0);
}

TEST_P(EngineTelemetryTest, ShowsWhatRunsAndWhatWaits) {
  options_.scheduler.max_num_seqs = 1;
  options_.max_waiting_seqs = 1;
  Start();
  group_->Hold();
  QuietSink running;
  QuietSink waiting;
  QuietSink refused;
  Submit({1, 2, 3}, 8, "all-gdn", &running);
  running.admitted.WaitForNotification();
  ASSERT_TRUE(group_->Allow(1));
  Submit({1, 2, 3}, 8, "all-gdn", &waiting);
  Submit({1, 2, 3}, 8, "all-gdn", &refused);
  ASSERT_TRUE(group_->Allow(1));
  refused.over.WaitForNotification();
  ASSERT_TRUE(group_->Allow(1));
  EXPECT_TRUE(Becomes(1, "num_requests_running"));
  EXPECT_TRUE(Becomes(1, "num_requests_waiting"));
  EXPECT_EQ(Value("num_requests_live", {kGdnLabel}), 1);
  EXPECT_GT(Value("cache_used_bytes", {"kind=\"recurrent\""}), 0);
  EXPECT_EQ(Value("cache_used_bytes", {"kind=\"kv\""}), 0);
  EXPECT_GT(Value("kv_cache_usage_perc"), 0);
  EXPECT_EQ(Value("requests_refused_total", {"code=\"RESOURCE_EXHAUSTED\""}),
            1);
  group_->Release();
  running.over.WaitForNotification();
  waiting.over.WaitForNotification();
  EXPECT_TRUE(Becomes(0, "num_requests_waiting"));
  EXPECT_TRUE(Becomes(0, "cache_used_bytes", {"kind=\"recurrent\""}));
}

TEST_P(EngineTelemetryTest, CountsCancelledRequests) {
  Start();
  group_->Hold();
  QuietSink sink;
  const uint64_t handle = Submit({1, 2, 3}, 50, "all-kda", &sink);
  sink.admitted.WaitForNotification();
  engine_->Cancel(handle);
  group_->Release();
  sink.over.WaitForNotification();
  EXPECT_EQ(Value("request_success_total",
                  {"placement=\"all-kda\"", "finished_reason=\"abort\""}),
            1);
  EXPECT_EQ(Value("num_requests_live", {"placement=\"all-kda\""}), 0);
}

TEST_P(EngineTelemetryTest, CountsSwitchesByPolicyAndOutcome) {
  Start();
  group_->Hold();
  QuietSink sink;
  Submit({1, 2, 3}, 8, "", &sink);
  sink.admitted.WaitForNotification();
  const auto never = [] { return false; };
  v1::Placement gdn;
  gdn.set_preset("all-gdn");
  v1::Placement unknown;
  unknown.set_preset("nowhere");
  EXPECT_FALSE(
      engine_->SetDefaultPlacement(unknown, v1::IN_FLIGHT_FINISH, never).ok());
  group_->RefusePrepare(absl::AbortedError("rank 1 will not"));
  EXPECT_FALSE(
      engine_->SetDefaultPlacement(gdn, v1::IN_FLIGHT_DRAIN, never).ok());
  group_->RefusePrepare(absl::OkStatus());
  group_->Release();
  EXPECT_TRUE(
      engine_->SetDefaultPlacement(gdn, v1::IN_FLIGHT_RECOMPUTE, never).ok());
  sink.over.WaitForNotification();

  EXPECT_EQ(Value("placement_switches_total",
                  {"policy=\"finish\"", "outcome=\"refused\""}),
            1);
  EXPECT_EQ(Value("placement_switches_total",
                  {"policy=\"drain\"", "outcome=\"refused\""}),
            1);
  EXPECT_EQ(Value("placement_switches_total",
                  {"policy=\"recompute\"", "outcome=\"success\""}),
            1);
  EXPECT_EQ(Value("placement_switch_pause_seconds_count"), 1);
  EXPECT_TRUE(Becomes(2, "epoch"));
  EXPECT_EQ(Value("default_placement_info", {kGdnLabel}), 1);
}

TEST_P(EngineTelemetryTest, CountsPreemptions) {
  // Room for the cache of about two such sequences.
  const int64_t one =
      MakeSpec(model_.config).SequenceBytes(Placement::Main(model_.config), 44);
  Start(2 * one + one / 2);
  std::vector<std::unique_ptr<QuietSink>> sinks;
  for (int i = 0; i < 6; ++i) {
    sinks.push_back(std::make_unique<QuietSink>());
    Submit({1, 2, 3, 4}, 40, "all-attention", sinks.back().get());
  }
  for (const auto& sink : sinks) sink->over.WaitForNotification();
  EXPECT_GT(Value("num_preemptions_total"), 0);
  EXPECT_EQ(Value("num_preemptions_total"),
            static_cast<double>(engine_->load()->num_preemptions()));
  EXPECT_EQ(Value("request_success_total",
                  {kAttentionLabel, "finished_reason=\"length\""}),
            6);
}

TEST_P(EngineTelemetryTest, SaysThatTheGroupIsLost) {
  Start();
  EXPECT_EQ(Value("group_up"), 1);
  group_->Hold();
  QuietSink sink;
  Submit({1, 2, 3}, 8, "all-gdn", &sink);
  sink.admitted.WaitForNotification();
  group_->Lose(absl::UnavailableError("rank 1 is gone"));
  sink.over.WaitForNotification();
  EXPECT_TRUE(Becomes(0, "group_up"));
  EXPECT_EQ(
      Value("request_success_total", {kGdnLabel, "finished_reason=\"error\""}),
      1);
}

INSTANTIATE_TEST_SUITE_P(BothLoops, EngineTelemetryTest, ::testing::Bool(),
                         [](const auto& info) {
                           return info.param ? "Overlapped" : "Simple";
                         });

}  // namespace
}  // namespace switchyard
