// switchyard bench decode: a step of a batch that generates, against the time
// that its memory traffic takes.
#include <algorithm>
#include <cstdio>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "cli/bench.h"
#include "cli/bench_engine.h"
#include "cli/bench_work.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "kernels/status.h"

namespace switchyard {
namespace {

struct Shape {
  int32_t batch = 0;
  int32_t context = 0;
};

struct DecodeOptions {
  BenchModelOptions model;
  RankOptions ranks;
  std::vector<std::string> placements = {"all-attention"};
  std::vector<std::string> shapes = {"1x2048", "16x2048"};
  int32_t num_steps = 64;
  int32_t num_warm_steps = 8;
  int32_t chunk = 2048;
  bool overlap = true;
  std::optional<std::string> json_path;
};

struct DecodeResult {
  std::string placement;
  Shape shape;
  StepTimes times;
  StepTraffic traffic;
  double floor_ms = 0;
  double fill_seconds = 0;
  // By the device's own clock; 0 where it has none.
  double device_ms = 0;    // the median
  double idle_share = 0;   // of the time from the first step to the last
  double graph_share = 0;  // of the steps
};

absl::StatusOr<std::vector<Shape>> ParseShapes(
    const std::vector<std::string>& texts) {
  std::vector<Shape> shapes;
  for (const std::string& text : texts) {
    const std::vector<std::string> parts = absl::StrSplit(text, 'x');
    Shape shape;
    if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &shape.batch) ||
        !absl::SimpleAtoi(parts[1], &shape.context) || shape.batch < 1 ||
        shape.context < 2) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--shapes: '", text, "' is not BATCHxCONTEXT, such as 16x2048"));
    }
    shapes.push_back(shape);
  }
  return shapes;
}

void PrintHeading() {
  std::printf("%-16s %6s %8s %9s %9s %9s %9s %7s %10s %6s %9s %6s %7s\n",
              "placement", "batch", "context", "ms/step", "p10", "p90",
              "floor ms", "ratio", "tokens/s", "GB/s", "device ms", "idle",
              "graphs");
}

double GigabytesPerSecond(const DecodeResult& result) {
  return (result.traffic.weight_bytes + result.traffic.kv_bytes +
          2.0 * result.traffic.state_bytes) /
         result.times.median_ms / 1e6;
}

void PrintRow(const DecodeResult& result) {
  std::printf(
      "%-16s %6d %8d %9.3f %9.3f %9.3f %9.3f %7.2f %10.1f %6.0f %9.3f %5.1f%% "
      "%6.0f%%\n",
      result.placement.c_str(), result.shape.batch, result.shape.context,
      result.times.median_ms, result.times.p10_ms, result.times.p90_ms,
      result.floor_ms, result.times.median_ms / result.floor_ms,
      1e3 * result.shape.batch / result.times.median_ms,
      GigabytesPerSecond(result), result.device_ms, 100 * result.idle_share,
      100 * result.graph_share);
  std::fflush(stdout);
}

nlohmann::json ResultJson(const DecodeResult& result,
                          const Ceilings& ceilings) {
  return {
      {"placement", result.placement},
      {"batch", result.shape.batch},
      {"context", result.shape.context},
      {"median_ms", result.times.median_ms},
      {"p10_ms", result.times.p10_ms},
      {"p90_ms", result.times.p90_ms},
      {"floor_ms", result.floor_ms},
      {"ratio_to_floor", result.times.median_ms / result.floor_ms},
      {"tokens_per_second", 1e3 * result.shape.batch / result.times.median_ms},
      {"weight_bytes", result.traffic.weight_bytes},
      {"kv_bytes", result.traffic.kv_bytes},
      {"state_bytes", result.traffic.state_bytes},
      {"gbps", GigabytesPerSecond(result)},
      {"share_of_read", GigabytesPerSecond(result) / ceilings.read_gbps},
      {"device_ms", result.device_ms},
      {"device_idle_share", result.idle_share},
      {"graph_share", result.graph_share},
      {"fill_seconds", result.fill_seconds}};
}

absl::StatusOr<DecodeResult> MeasureDecode(const DecodeOptions& options,
                                           const std::string& placement_text,
                                           const Shape& shape,
                                           BenchEngine& engine) {
  SY_ASSIGN_OR_RETURN(const Placement placement,
                      ParseBenchPlacement(engine.config(), placement_text));
  DecodeResult result;
  result.placement = placement_text;
  result.shape = shape;
  result.traffic = engine.Traffic(placement, shape.batch, shape.context);
  result.floor_ms = result.traffic.FloorMs(engine.ceilings().read_gbps,
                                           engine.ceilings().copy_gbps);
  const absl::Time fill_start = absl::Now();
  SY_RETURN_IF_ERROR(
      engine.Fill(placement, shape.batch, shape.context, options.chunk));
  result.fill_seconds = absl::ToDoubleSeconds(absl::Now() - fill_start);

  // A step's time is that from the end of the one before it to its own, as a
  // stream of tokens sees it.
  const int32_t num_steps = options.num_warm_steps + options.num_steps;
  std::vector<double> ms, device_ms;
  double idle_ms = 0;
  int32_t num_graphs = 0;
  absl::Time last = absl::Now();
  SY_RETURN_IF_ERROR(engine.LaunchDecode());
  for (int32_t i = 0; i < num_steps; ++i) {
    if (options.overlap && i + 1 < num_steps) {
      SY_RETURN_IF_ERROR(engine.LaunchDecode());
    }
    SY_ASSIGN_OR_RETURN(const v1::StepResult step, engine.Collect());
    const absl::Time now = absl::Now();
    if (!options.overlap && i + 1 < num_steps) {
      SY_RETURN_IF_ERROR(engine.LaunchDecode());
    }
    if (i >= options.num_warm_steps) {
      ms.push_back(absl::ToDoubleMilliseconds(now - last));
      device_ms.push_back(step.device_ms());
      idle_ms += step.device_idle_ms();
      num_graphs += step.graph() ? 1 : 0;
    }
    last = now;
  }
  double total_device_ms = 0;
  for (const double time : device_ms) total_device_ms += time;
  result.times = Summarize(std::move(ms));
  result.device_ms = Summarize(std::move(device_ms)).median_ms;
  result.idle_share =
      total_device_ms > 0 ? idle_ms / (idle_ms + total_device_ms) : 0;
  result.graph_share = static_cast<double>(num_graphs) / options.num_steps;
  SY_RETURN_IF_ERROR(engine.Clear());
  return result;
}

absl::Status Run(const DecodeOptions& options,
                 const std::vector<Shape>& shapes) {
  const int32_t num_new = options.num_warm_steps + options.num_steps;
  BenchEngine::Limits limits;
  limits.max_num_batched_tokens = options.chunk;
  for (const Shape& shape : shapes) {
    limits.max_num_seqs = std::max(limits.max_num_seqs, shape.batch);
    limits.max_context_tokens =
        std::max(limits.max_context_tokens, shape.context + num_new);
  }
  limits.max_num_batched_tokens =
      std::max(limits.max_num_batched_tokens, limits.max_num_seqs);
  SY_ASSIGN_OR_RETURN(const ModelConfig config,
                      BenchEngine::ReadConfig(options.model));
  std::vector<Placement> placements;
  for (const std::string& text : options.placements) {
    SY_ASSIGN_OR_RETURN(Placement placement, ParseBenchPlacement(config, text));
    placements.push_back(std::move(placement));
  }
  SY_ASSIGN_OR_RETURN(const std::unique_ptr<BenchEngine> engine,
                      BenchEngine::Load(options.model, options.ranks, limits));

  int64_t arena_bytes = 0;
  const auto bytes_of = [&](const Placement& placement, const Shape& shape) {
    return engine->CacheBytes(placement, shape.batch, shape.context + num_new);
  };
  for (const Placement& placement : placements) {
    for (const Shape& shape : shapes) {
      const int64_t bytes = bytes_of(placement, shape);
      if (bytes <= engine->available_cache_bytes())
        arena_bytes = std::max(arena_bytes, bytes);
    }
  }
  if (arena_bytes == 0) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "no shape's cache fits in the ", engine->available_cache_bytes(),
        " bytes that the weights leave; see --mixers"));
  }
  SY_RETURN_IF_ERROR(engine->AllocateCache(arena_bytes));
  engine->PrintHeading("decode");
  if (engine->is_first_rank()) PrintHeading();

  nlohmann::json results = nlohmann::json::array();
  for (size_t i = 0; i < placements.size(); ++i) {
    for (const Shape& shape : shapes) {
      const int64_t bytes = bytes_of(placements[i], shape);
      if (bytes > arena_bytes) {
        if (engine->is_first_rank()) {
          std::printf(
              "%-16s %6d %8d does not fit: %.2f GiB of cache, %.2f "
              "GiB are free\n",
              options.placements[i].c_str(), shape.batch, shape.context,
              bytes / double{1 << 30},
              engine->available_cache_bytes() / double{1 << 30});
        }
        continue;
      }
      SY_ASSIGN_OR_RETURN(
          const DecodeResult result,
          MeasureDecode(options, options.placements[i], shape, *engine));
      if (!engine->is_first_rank()) continue;
      PrintRow(result);
      results.push_back(ResultJson(result, engine->ceilings()));
    }
  }
  if (!engine->is_first_rank()) return absl::OkStatus();
  nlohmann::json json = engine->Describe();
  json["benchmark"] = "decode";
  json["num_steps"] = options.num_steps;
  json["overlap"] = options.overlap;
  json["results"] = std::move(results);
  return WriteJson(options.json_path, json);
}

}  // namespace

int BenchDecode(absl::Span<const std::string> args) {
  DecodeOptions options;
  FlagSet flags("switchyard bench decode",
                "Times the steps of batches that generate, through the "
                "executor of a worker in this process: layers, logits and "
                "sampling, without gRPC. Beside each the floor: the time in "
                "which the step's weights, keys, values and states could be "
                "read (and states written) at the rates measured before.",
                "(--model DIR | --random-init NAME) [flags]");
  AddModelFlags(&options.model, &flags);
  AddRankFlags(&options.ranks, &flags);
  flags.Section("What is measured");
  flags.List("placement", &options.placements, "P,P,...",
             "all-NAME; one mixer a layer joined by +; 3/25/4/16: layers of "
             "attention, sliding-window attention, kda, gdn");
  flags.List("shapes", &options.shapes, "BATCHxCONTEXT,...",
             "sequences, and tokens in the cache of each");
  flags.Int("steps", &options.num_steps, 1, 1 << 20, "timed");
  flags.Int("warm-steps", &options.num_warm_steps, 0, 1 << 20,
            "before them, not timed");
  flags.Bool("overlap", &options.overlap,
             "launch a step before the one before it has ended");
  flags.Int("chunk", &options.chunk, 1, 1 << 20,
            "tokens in a step while the cache is filled");
  flags.String("json", &options.json_path, "FILE", "the results as JSON, too");
  if (std::optional<int> exit_code = flags.ParseOrExitCode(args))
    return *exit_code;
  const absl::StatusOr<std::vector<Shape>> shapes = ParseShapes(options.shapes);
  if (!shapes.ok()) return Fail("bench decode", shapes.status());

  std::vector<std::string> command = {"bench", "decode"};
  command.insert(command.end(), args.begin(), args.end());
  const absl::StatusOr<std::unique_ptr<BenchRanks>> ranks =
      BenchRanks::Start(command, &options.ranks);
  if (!ranks.ok()) EndBench("decode", ranks.status());
  const absl::Status status = Run(options, *shapes);
  if (!status.ok()) EndBench("decode", status);
  return kExitOk;
}

}  // namespace switchyard
