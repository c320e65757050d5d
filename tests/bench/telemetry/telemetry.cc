// What metrics and logs cost the engine's thread: per step, per token, per
// request.
#include <benchmark/benchmark.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "coordinator/engine_telemetry.h"
#include "coordinator/metrics.h"
#include "log/log.h"
#include "switchyard/v1/worker.pb.h"

namespace switchyard {
namespace {

SteadyTime Now() { return std::chrono::steady_clock::now(); }

struct Watched {
  explicit Watched(int num_ranks) {
    MetricsOptions options;
    options.model_name = "bench";
    options.max_context_tokens = 32768;
    options.num_ranks = num_ranks;
    metrics = std::make_unique<Metrics>(options);
    GroupFacts facts;
    facts.ranks.resize(num_ranks);
    facts.cache_bytes = uint64_t{1} << 30;
    telemetry =
        std::make_unique<EngineTelemetry>(facts, "all-gdn", metrics.get());
  }

  std::unique_ptr<RequestTrace> Request() const {
    auto request = std::make_unique<RequestTrace>();
    request->request_id = "req-00000000-123456";
    request->sequence_id = 7;
    request->placement = "all-gdn";
    request->num_prompt_tokens = 512;
    request->max_tokens = 128;
    request->received = Now();
    telemetry->OnQueued(request.get());
    return request;
  }

  std::unique_ptr<Metrics> metrics;
  std::unique_ptr<EngineTelemetry> telemetry;
};

void LogNothing() {
  LogOptions quiet;
  quiet.level = LogLevel::kError;
  ConfigureLog(quiet);
}

// A whole decode step of `batch` sequences on 8 ranks, without the engine.
void BM_DecodeStep(benchmark::State& state) {
  LogNothing();
  const int batch = static_cast<int>(state.range(0));
  Watched watched(8);
  std::vector<std::unique_ptr<RequestTrace>> requests;
  v1::StepPlan plan;
  for (int i = 0; i < batch; ++i) {
    requests.push_back(watched.Request());
    watched.telemetry->OnScheduled(requests.back().get(), 1);
    plan.add_batch()->set_num_tokens(1);
  }
  StepOutcome outcome;
  outcome.ranks.resize(8);
  for (RankStep& rank : outcome.ranks) {
    rank.execute_time = absl::Milliseconds(10);
  }
  EngineState engine;
  engine.cache_capacity_bytes = 1 << 30;
  for (auto unused : state) {
    watched.telemetry->OnSubmitted(plan);
    const SteadyTime taken = Now();
    watched.telemetry->OnStep(outcome, taken);
    watched.telemetry->OnState(engine);
    for (const auto& request : requests) {
      watched.telemetry->OnToken(request.get(), taken);
    }
  }
  state.SetItemsProcessed(state.iterations() * batch);
}
BENCHMARK(BM_DecodeStep)->Arg(1)->Arg(32)->Arg(256);

// From the queue to the end, with its two log lines (to stderr: send it away).
void BM_Request(benchmark::State& state) {
  LogOptions options;
  options.level = state.range(0) != 0 ? LogLevel::kInfo : LogLevel::kError;
  ConfigureLog(options);
  Watched watched(1);
  for (auto unused : state) {
    const std::unique_ptr<RequestTrace> request = watched.Request();
    watched.telemetry->OnScheduled(request.get(), 1);
    watched.telemetry->OnToken(request.get(), Now());
    watched.telemetry->OnFinished(request.get(), v1::FINISH_REASON_LENGTH);
  }
}
BENCHMARK(BM_Request)->ArgName("logs")->Arg(0)->Arg(1);

void BM_Scrape(benchmark::State& state) {
  LogNothing();
  Watched watched(8);
  for (const char* name : {"all-attention", "all-gdn", "all-kda", "fast"}) {
    watched.metrics->OfPlacement(name);
  }
  for (auto unused : state) {
    benchmark::DoNotOptimize(watched.metrics->Scrape());
  }
}
BENCHMARK(BM_Scrape);

}  // namespace
}  // namespace switchyard

BENCHMARK_MAIN();
