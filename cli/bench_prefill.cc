// switchyard bench prefill: one prompt at a time, against the rate of a large
// matrix product.
#include <algorithm>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "cli/bench.h"
#include "cli/bench_engine.h"
#include "cli/bench_work.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "kernels/status.h"

namespace switchyard {
namespace {

struct PrefillOptions {
  BenchModelOptions model;
  RankOptions ranks;
  std::vector<std::string> placements = {"all-attention"};
  std::vector<std::string> lengths = {"8192"};
  std::vector<std::string> chunks = {"8192"};
  int32_t num_repeats = 3;
  std::optional<std::string> json_path;
};

absl::StatusOr<std::vector<int32_t>> ParseTokens(
    const char* flag, const std::vector<std::string>& texts) {
  std::vector<int32_t> counts;
  for (const std::string& text : texts) {
    int32_t count = 0;
    if (!absl::SimpleAtoi(text, &count) || count < 1 || count > (1 << 20)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--", flag, ": '", text, "' is no number of tokens"));
    }
    counts.push_back(count);
  }
  return counts;
}

absl::Status Run(const PrefillOptions& options) {
  SY_ASSIGN_OR_RETURN(const std::vector<int32_t> lengths,
                      ParseTokens("lengths", options.lengths));
  SY_ASSIGN_OR_RETURN(const std::vector<int32_t> chunks,
                      ParseTokens("chunks", options.chunks));
  SY_ASSIGN_OR_RETURN(const ModelConfig config,
                      BenchEngine::ReadConfig(options.model));
  std::vector<Placement> placements;
  for (const std::string& text : options.placements) {
    SY_ASSIGN_OR_RETURN(Placement placement, ParseBenchPlacement(config, text));
    placements.push_back(std::move(placement));
  }
  BenchEngine::Limits limits;
  limits.max_context_tokens = *std::max_element(lengths.begin(), lengths.end());
  limits.max_num_batched_tokens =
      *std::max_element(chunks.begin(), chunks.end());
  SY_ASSIGN_OR_RETURN(const std::unique_ptr<BenchEngine> engine,
                      BenchEngine::Load(options.model, options.ranks, limits));
  int64_t arena_bytes = 0;
  for (const Placement& placement : placements) {
    arena_bytes =
        std::max(arena_bytes,
                 engine->CacheBytes(placement, 1, limits.max_context_tokens));
  }
  SY_RETURN_IF_ERROR(engine->AllocateCache(arena_bytes));
  engine->PrintHeading("prefill");
  if (engine->is_first_rank()) {
    std::printf("%-16s %8s %8s %10s %10s %10s %10s %9s\n", "placement",
                "tokens", "chunk", "ms", "p90", "tokens/s", "TFLOP/s",
                "of GEMM");
  }

  nlohmann::json results = nlohmann::json::array();
  for (size_t i = 0; i < placements.size(); ++i) {
    for (const int32_t length : lengths) {
      for (const int32_t chunk : chunks) {
        std::vector<double> ms;
        for (int32_t repeat = 0; repeat <= options.num_repeats; ++repeat) {
          SY_ASSIGN_OR_RETURN(const double time,
                              engine->Prefill(placements[i], length, chunk));
          if (repeat > 0) ms.push_back(time);  // the first makes plans
        }
        if (!engine->is_first_rank()) continue;
        const StepTimes times = Summarize(std::move(ms));
        const double flops = PrefillFlops(config, options.ranks.world_size,
                                          placements[i], length);
        const double tflops = flops / times.median_ms / 1e9;
        const double share = tflops / engine->ceilings().gemm_tflops;
        std::printf("%-16s %8d %8d %10.2f %10.2f %10.0f %10.2f %8.1f%%\n",
                    options.placements[i].c_str(), length, chunk,
                    times.median_ms, times.p90_ms,
                    1e3 * length / times.median_ms, tflops, 100 * share);
        std::fflush(stdout);
        results.push_back(
            {{"placement", options.placements[i]},
             {"tokens", length},
             {"chunk", chunk},
             {"median_ms", times.median_ms},
             {"p10_ms", times.p10_ms},
             {"p90_ms", times.p90_ms},
             {"tokens_per_second", 1e3 * length / times.median_ms},
             {"flops_per_rank", flops},
             {"tflops_per_rank", tflops},
             {"share_of_gemm", share}});
      }
    }
  }
  if (!engine->is_first_rank()) return absl::OkStatus();
  nlohmann::json json = engine->Describe();
  json["benchmark"] = "prefill";
  json["results"] = std::move(results);
  return WriteJson(options.json_path, json);
}

}  // namespace

int BenchPrefill(absl::Span<const std::string> args) {
  PrefillOptions options;
  FlagSet flags("switchyard bench prefill",
                "Times one prompt at a time through the executor of a worker "
                "in this process, up to its first token, and tells its "
                "floating-point rate as a share of a large matrix product's.",
                "(--model DIR | --random-init NAME) [flags]");
  AddModelFlags(&options.model, &flags);
  AddRankFlags(&options.ranks, &flags);
  flags.Section("What is measured");
  flags.List("placement", &options.placements, "P,P,...",
             "all-NAME; one mixer a layer joined by +; 3/25/4/16: layers of "
             "attention, sliding-window attention, kda, gdn");
  flags.List("lengths", &options.lengths, "N,N,...", "tokens of the prompt");
  flags.List("chunks", &options.chunks, "N,N,...", "tokens in one step");
  flags.Int("repeats", &options.num_repeats, 1, 1000, "timed, after one more");
  flags.String("json", &options.json_path, "FILE", "the results as JSON, too");
  if (std::optional<int> exit_code = flags.ParseOrExitCode(args))
    return *exit_code;

  std::vector<std::string> command = {"bench", "prefill"};
  command.insert(command.end(), args.begin(), args.end());
  const absl::StatusOr<std::unique_ptr<BenchRanks>> ranks =
      BenchRanks::Start(command, &options.ranks);
  if (!ranks.ok()) EndBench("prefill", ranks.status());
  const absl::Status status = Run(options);
  if (!status.ok()) EndBench("prefill", status);
  return kExitOk;
}

}  // namespace switchyard
