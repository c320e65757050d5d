#include "cli/bench_engine.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "cli/commands.h"
#include "kernels/status.h"
#include "model/random_init.h"

namespace switchyard {
namespace {

constexpr double kGiB = 1 << 30;

// Shows on a terminal how far loading has come, until it is destroyed.
class ProgressLine {
 public:
  ProgressLine(const LoadProgress* progress, bool shown) {
    if (!shown || isatty(STDERR_FILENO) == 0) return;
    thread_ = std::thread([this, progress] {
      while (!done_) {
        std::fprintf(stderr, "\rloading %.1f of %.1f GiB",
                     progress->bytes_loaded / kGiB,
                     progress->bytes_total / kGiB);
        absl::SleepFor(absl::Milliseconds(200));
      }
      std::fprintf(stderr, "\r\033[K");
    });
  }
  ~ProgressLine() {
    done_ = true;
    if (thread_.joinable()) thread_.join();
  }

 private:
  std::atomic<bool> done_{false};
  std::thread thread_;
};

}  // namespace

void AddModelFlags(BenchModelOptions* options, FlagSet* flags) {
  flags->Section("What runs");
  flags->String("model", &options->model_dir, "DIR", "the checkpoint");
  flags->String("random-init", &options->random_init, "NAME",
                absl::StrCat("or random weights of a shape: ",
                             absl::StrJoin(NamedShapes(), ", ")));
  flags->List("mixers", &options->mixers, "A,B,...",
              "of the random weights, to leave memory for the cache "
              "(default: all)");
  flags->Choice("dtype", &options->dtype, {"auto", "fp32", "bf16"},
                "of weights and cache; auto: what suits the device");
  flags->Int("block-size", &options->block_size, 1, 1024,
             "tokens in a block of the attention cache; a power of two");
  flags->Bool("graphs", &options->graphs, "replay steps as CUDA graphs");
  flags->Bool("batch-invariant", &options->batch_invariant,
              "results that do not depend on the rest of the batch");
  flags->Int("overlap-tokens", &options->overlap_tokens, 0, 1 << 20,
             "on several GPUs, a step of twice as many tokens runs in two "
             "parts, so that the all-reduces of one hide behind the products "
             "of the other; 0: never");
  flags->Real("temperature", &options->temperature, 0, 100,
              "of sampling; 0: greedy");
  flags->Real("top-p", &options->top_p, 1e-6, 1, "of sampling");
}

StepTimes Summarize(std::vector<double> ms) {
  std::sort(ms.begin(), ms.end());
  const auto at = [&ms](double quantile) {
    return ms[static_cast<size_t>(quantile * (ms.size() - 1) + 0.5)];
  };
  return {at(0.5), at(0.1), at(0.9)};
}

absl::StatusOr<ModelConfig> BenchEngine::ReadConfig(
    const BenchModelOptions& model) {
  if (model.model_dir.empty() == model.random_init.empty()) {
    return absl::InvalidArgumentError(
        "one of --model DIR and --random-init NAME is needed");
  }
  if (model.random_init.empty()) {
    if (!model.mixers.empty()) {
      return absl::InvalidArgumentError(
          "--mixers is for --random-init; a checkpoint is loaded whole");
    }
    return LoadModelConfig(model.model_dir);
  }
  return NamedShape(model.mixers.empty()
                        ? model.random_init
                        : absl::StrCat(model.random_init, ":",
                                       absl::StrJoin(model.mixers, ",")));
}

absl::StatusOr<std::unique_ptr<BenchEngine>> BenchEngine::Load(
    const BenchModelOptions& model, const RankOptions& ranks,
    const Limits& limits) {
  std::unique_ptr<BenchEngine> engine(new BenchEngine);
  engine->model_ = model;
  engine->ranks_ = ranks;
  SY_ASSIGN_OR_RETURN(engine->config_, ReadConfig(model));
  SY_RETURN_IF_ERROR(engine->LoadExecutor(limits));
  return engine;
}

absl::Status BenchEngine::LoadExecutor(const Limits& limits) {
  SY_ASSIGN_OR_RETURN(RankDevice joined, JoinRanks(ranks_));
  collective_ = std::move(joined.collective);
  device_name_ = joined.device->name();
  SY_ASSIGN_OR_RETURN(ceilings_, MeasureCeilings(joined.device.get()));

  v1::ConfigureRequest request;
  request.set_model_dir(model_.model_dir);
  if (!model_.random_init.empty()) {
    request.set_random_init(absl::StrCat(model_.random_init,
                                         model_.mixers.empty() ? "" : ":",
                                         absl::StrJoin(model_.mixers, ",")));
  }
  request.set_rank(ranks_.rank);
  request.set_world_size(ranks_.world_size);
  request.set_dtype(model_.dtype);
  request.set_max_num_seqs(limits.max_num_seqs);
  request.set_max_num_batched_tokens(limits.max_num_batched_tokens);
  request.set_max_context_tokens(limits.max_context_tokens);
  request.set_block_size(model_.block_size);
  request.set_config_fingerprint(Fingerprint(config_));
  request.set_batch_invariant(model_.batch_invariant);
  request.set_enable_graphs(model_.graphs);
  request.set_overlap_tokens(model_.overlap_tokens);
  executor_ = std::make_unique<Executor>(std::move(joined.device));
  LoadProgress progress;
  v1::ConfigureResponse response;
  {
    const ProgressLine line(&progress, is_first_rank());
    const absl::Time start = absl::Now();
    SY_ASSIGN_OR_RETURN(response,
                        executor_->Load(request, *collective_, progress));
    load_seconds_ = absl::ToDoubleSeconds(absl::Now() - start);
  }
  weights_bytes_ = static_cast<int64_t>(response.weights_bytes());
  available_cache_bytes_ =
      static_cast<int64_t>(response.available_cache_bytes());
  matrix_element_bytes_ = static_cast<int32_t>(response.kv_element_bytes());
  CacheSpecOptions cache;
  cache.world_size = ranks_.world_size;
  cache.block_size = model_.block_size;
  cache.kv_element_bytes = static_cast<int32_t>(response.kv_element_bytes());
  SY_ASSIGN_OR_RETURN(cache_spec_, CacheSpec::Create(config_, cache));
  return absl::OkStatus();
}

nlohmann::json BenchEngine::Describe() const {
  return {{"device", device_name_},
          {"model",
           model_.random_init.empty() ? model_.model_dir : model_.random_init},
          {"mixers", model_.mixers},
          {"matrix_element_bytes", matrix_element_bytes_},
          {"graphs", model_.graphs},
          {"batch_invariant", model_.batch_invariant},
          {"overlap_tokens", model_.overlap_tokens},
          {"temperature", model_.temperature},
          {"world_size", ranks_.world_size},
          {"weights_bytes", weights_bytes_},
          {"load_seconds", load_seconds_},
          {"ceilings", ToJson(ceilings_)}};
}

void BenchEngine::PrintHeading(const char* benchmark) const {
  if (!is_first_rank()) return;
  std::printf(
      "bench %s: %s%s%s, %d rank%s on %s\n"
      "weights %.2f GiB a rank, loaded in %.1f s; ceilings: read %.0f GB/s, "
      "copy %.0f GB/s, GEMM %.3g TFLOP/s\n",
      benchmark,
      (model_.random_init.empty() ? model_.model_dir : model_.random_init)
          .c_str(),
      model_.mixers.empty() ? "" : " with ",
      absl::StrJoin(model_.mixers, ", ").c_str(), ranks_.world_size,
      ranks_.world_size == 1 ? "" : "s", device_name_.c_str(),
      weights_bytes_ / kGiB, load_seconds_, ceilings_.read_gbps,
      ceilings_.copy_gbps, ceilings_.gemm_tflops);
  std::fflush(stdout);
}

int64_t BenchEngine::CacheBytes(const Placement& placement, int32_t batch,
                                int32_t context) const {
  return batch * cache_spec_->SequenceBytes(placement, context);
}

absl::Status BenchEngine::AllocateCache(int64_t bytes) {
  return executor_->AllocateCache(static_cast<uint64_t>(bytes));
}

BenchEngine::Sequence BenchEngine::StartSequence(v1::StepPlan& plan,
                                                 const Placement& placement,
                                                 int32_t num_tokens) {
  if (placement_ != placement) {
    placement_ = placement;
    v1::PlacementEntry& entry = *plan.add_placements();
    entry.set_placement_id(0);
    for (const int32_t mixer : placement.mixers()) entry.add_mixer_ids(mixer);
  }
  Sequence sequence;
  sequence.id = next_sequence_id_++;
  sequence.num_units.assign(config_.num_layers(), 0);
  v1::SequenceStart& start = *plan.add_started();
  start.set_sequence_id(sequence.id);
  start.set_placement_id(0);
  uint32_t state = 12345;  // the same tokens for all
  for (int32_t i = 0; i < num_tokens; ++i) {
    state = state * 1664525u + 1013904223u;
    start.add_token_ids((state >> 8) % config_.vocab_size);
  }
  start.set_num_prompt_tokens(num_tokens);
  start.mutable_sampling()->set_temperature(model_.temperature);
  start.mutable_sampling()->set_top_p(model_.top_p);
  start.set_seed(sequence.id);
  return sequence;
}

void BenchEngine::AddStep(v1::StepPlan& plan, Sequence& sequence,
                          int32_t num_tokens, int64_t cover, bool sample) {
  v1::SequenceStep& step = *plan.add_batch();
  step.set_sequence_id(sequence.id);
  step.set_start(sequence.num_cached);
  step.set_num_tokens(num_tokens);
  step.set_sample(sample);
  sequence.num_cached += num_tokens;
  // Position by position, not layer by layer: so a coordinator hands them out.
  bool more = true;
  for (int64_t i = 0; more; ++i) {
    more = false;
    for (int32_t layer = 0; layer < config_.num_layers(); ++layer) {
      const int32_t mixer = (*placement_)[layer];
      const int64_t needed = cache_spec_->NumUnits(layer, mixer, cover);
      if (i >= needed) continue;
      more = true;
      if (i < sequence.num_units[layer]) continue;
      step.add_cache_layers(layer);
      step.add_cache_ids(static_cast<uint32_t>(arena_used_ / kCacheUnitBytes));
      arena_used_ += cache_spec_->At(layer, mixer).unit_bytes;
      sequence.num_units[layer] = i + 1;
    }
  }
}

absl::Status BenchEngine::Launch(v1::StepPlan plan) {
  plan.set_step_id(next_step_id_++);
  plan.set_epoch(1);
  return executor_->Launch(plan);
}

absl::Status BenchEngine::Execute(v1::StepPlan plan) {
  SY_RETURN_IF_ERROR(Launch(std::move(plan)));
  return executor_->Collect().status();
}

absl::StatusOr<double> BenchEngine::Prefill(const Placement& placement,
                                            int32_t num_tokens, int32_t chunk) {
  v1::StepPlan plan;
  Sequence sequence = StartSequence(plan, placement, num_tokens);
  SY_RETURN_IF_ERROR(collective_->Barrier());
  const absl::Time start = absl::Now();
  while (sequence.num_cached < num_tokens) {
    const int32_t num = std::min(chunk, num_tokens - sequence.num_cached);
    const int32_t end = sequence.num_cached + num;
    AddStep(plan, sequence, num, end, end == num_tokens);
    SY_RETURN_IF_ERROR(Execute(std::move(plan)));
    plan = v1::StepPlan();
  }
  const double ms = absl::ToDoubleMilliseconds(absl::Now() - start);
  sequences_.push_back(std::move(sequence));
  SY_RETURN_IF_ERROR(Clear());
  return ms;
}

absl::Status BenchEngine::Fill(const Placement& placement, int32_t batch,
                               int32_t context, int32_t chunk) {
  // The token at position `context` - 1 is the first one to decode.
  const int32_t num_cached = context - 1;
  for (int32_t i = 0; i < batch; ++i) {
    v1::StepPlan plan;
    Sequence sequence = StartSequence(plan, placement, context);
    if (i == 0) {
      while (sequence.num_cached < num_cached) {
        const int32_t num = std::min(chunk, num_cached - sequence.num_cached);
        AddStep(plan, sequence, num, sequence.num_cached + num, false);
        SY_RETURN_IF_ERROR(Execute(std::move(plan)));
        plan = v1::StepPlan();
      }
    } else {
      // A first position of its own brings it the cache to copy into.
      AddStep(plan, sequence, 1, num_cached, false);
      SY_RETURN_IF_ERROR(Execute(std::move(plan)));
      SY_RETURN_IF_ERROR(
          executor_->CopyCache(sequences_.front().id, sequence.id));
      sequence.num_cached = num_cached;
    }
    sequences_.push_back(std::move(sequence));
  }
  return absl::OkStatus();
}

absl::Status BenchEngine::LaunchDecode() {
  v1::StepPlan plan;
  for (Sequence& sequence : sequences_) {
    AddStep(plan, sequence, 1, sequence.num_cached + 1, true);
  }
  return Launch(std::move(plan));
}

absl::Status BenchEngine::Clear() {
  v1::StepPlan plan;
  for (const Sequence& sequence : sequences_) plan.add_finished(sequence.id);
  sequences_.clear();
  arena_used_ = 0;
  return Execute(std::move(plan));
}

absl::StatusOr<nlohmann::json> ReadJson(const std::string& path) {
  std::ifstream file(path);
  nlohmann::json json =
      nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) {
    return absl::UnavailableError(
        absl::StrCat(path, " is not there or no JSON"));
  }
  return json;
}

absl::Status WriteJson(const std::optional<std::string>& path,
                       const nlohmann::json& json) {
  if (!path.has_value()) return absl::OkStatus();
  std::ofstream file(*path);
  file << json.dump(1) << "\n";
  file.close();
  if (!file)
    return absl::UnavailableError(absl::StrCat("cannot write ", *path));
  return absl::OkStatus();
}

void EndBench(const char* name, const absl::Status& status) {
  std::fflush(stdout);
  Fail(absl::StrCat("bench ", name).c_str(), status);
  std::_Exit(kExitFailure);
}

}  // namespace switchyard
