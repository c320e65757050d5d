#include "tests/worker/executor_harness.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "kernels/check.h"
#include "kernels/device.h"
#include "kernels/status.h"
#include "tests/worker/thread_collective.h"

namespace switchyard {

v1::SamplingParams GreedyWithLogprobs(int32_t num_top) {
  v1::SamplingParams sampling;
  sampling.set_temperature(0);
  sampling.set_logprobs(num_top);
  sampling.set_prompt_logprobs(num_top);
  return sampling;
}

absl::StatusOr<std::unique_ptr<ExecutorHarness>> ExecutorHarness::Create(
    const HarnessOptions& options) {
  std::unique_ptr<ExecutorHarness> harness(new ExecutorHarness);
  harness->options_ = options;
  SY_ASSIGN_OR_RETURN(harness->config_, LoadModelConfig(options.model_dir));
  harness->collectives_ = MakeThreadCollectives(options.world_size);
  if (options.wrap_collective) {
    for (std::unique_ptr<Collective>& collective : harness->collectives_) {
      collective = options.wrap_collective(std::move(collective));
    }
  }

  v1::ConfigureRequest request;
  request.set_model_dir(options.model_dir);
  request.set_world_size(options.world_size);
  request.set_dtype(options.dtype);
  request.set_max_num_seqs(options.max_num_seqs);
  request.set_max_num_batched_tokens(options.max_num_batched_tokens);
  request.set_block_size(options.block_size);
  request.set_config_fingerprint(Fingerprint(harness->config_));
  request.set_poison_freed_cache(options.poison_freed_cache);
  request.set_enable_graphs(options.enable_graphs);
  request.set_batch_invariant(options.batch_invariant);
  request.set_overlap_tokens(options.overlap_tokens);
  LoadProgress progress;
  CacheSpecOptions cache;
  cache.world_size = options.world_size;
  cache.block_size = options.block_size;
  for (int rank = 0; rank < options.world_size; ++rank) {
    request.set_rank(rank);
    SY_ASSIGN_OR_RETURN(std::unique_ptr<Device> device,
                        MakeDevice(options.device, 1));
    std::unique_ptr<StepDevice> step_device;
    if (options.make_step_device) {
      step_device = options.make_step_device(device.get());
    }
    auto executor =
        std::make_unique<Executor>(std::move(device), std::move(step_device));
    SY_ASSIGN_OR_RETURN(
        const v1::ConfigureResponse response,
        executor->Load(request, *harness->collectives_[rank], progress));
    cache.kv_element_bytes = static_cast<int32_t>(response.kv_element_bytes());
    SY_RETURN_IF_ERROR(executor->AllocateCache(options.arena_bytes));
    harness->executors_.push_back(std::move(executor));
  }
  SY_ASSIGN_OR_RETURN(harness->cache_spec_,
                      CacheSpec::Create(harness->config_, cache));
  return harness;
}

uint32_t ExecutorHarness::AllocateUnit(int64_t bytes) {
  std::vector<uint32_t>& free = free_units_[bytes];
  if (!free.empty()) {
    const uint32_t id = free.back();
    free.pop_back();
    return id;
  }
  const uint32_t id = static_cast<uint32_t>(arena_used_ / kCacheUnitBytes);
  arena_used_ += bytes;
  return id;
}

uint32_t ExecutorHarness::PlacementId(v1::StepPlan& plan,
                                      const Placement& placement) {
  const auto it = std::find(placements_.begin(), placements_.end(), placement);
  const uint32_t id = static_cast<uint32_t>(it - placements_.begin());
  if (it != placements_.end()) return id;
  placements_.push_back(placement);
  v1::PlacementEntry& entry = *plan.add_placements();
  entry.set_placement_id(id);
  for (int32_t mixer : placement.mixers()) entry.add_mixer_ids(mixer);
  return id;
}

uint64_t ExecutorHarness::Start(v1::StepPlan& plan,
                                const HarnessRequest& request) {
  const uint64_t id = next_id_++;
  const Placement placement =
      request.mixers.empty()
          ? Placement::Main(config_)
          : Placement::FromNames(config_, request.mixers).value();
  Sequence& sequence = sequences_[id];
  sequence.placement = placement;
  sequence.tokens = request.prompt;
  sequence.units.resize(placement.num_layers());
  v1::SequenceStart& start = *plan.add_started();
  start.set_sequence_id(id);
  start.set_placement_id(PlacementId(plan, placement));
  for (int32_t token : request.prompt) start.add_token_ids(token);
  start.set_num_prompt_tokens(request.prompt.size());
  *start.mutable_sampling() = request.sampling;
  start.set_seed(request.seed);
  return id;
}

void ExecutorHarness::Add(v1::StepPlan& plan, uint64_t id, int32_t num_tokens) {
  Sequence& sequence = sequences_.at(id);
  v1::SequenceStep& step = *plan.add_batch();
  step.set_sequence_id(id);
  step.set_start(sequence.num_cached);
  step.set_num_tokens(num_tokens);
  sequence.num_cached += num_tokens;
  step.set_sample(sequence.num_cached == sequence.num_tokens());
  for (int32_t layer = 0; layer < config_.num_layers(); ++layer) {
    const int32_t mixer = sequence.placement[layer];
    const int64_t needed =
        cache_spec_->NumUnits(layer, mixer, sequence.num_cached);
    std::vector<uint32_t>& units = sequence.units[layer];
    while (static_cast<int64_t>(units.size()) < needed) {
      units.push_back(AllocateUnit(cache_spec_->At(layer, mixer).unit_bytes));
      step.add_cache_layers(layer);
      step.add_cache_ids(units.back());
    }
  }
}

ExecutorHarness::Prefix ExecutorHarness::Keep(v1::StepPlan& plan, uint64_t id) {
  const Sequence& sequence = sequences_.at(id);
  Prefix prefix;
  prefix.num_tokens = sequence.num_cached;
  for (int32_t layer = 0; layer < config_.num_layers(); ++layer) {
    const MixerCacheSpec& spec =
        cache_spec_->At(layer, sequence.placement[layer]);
    const bool grows = spec.kind == CacheKind::kBlocks && spec.ring_blocks == 0;
    const size_t num_full =
        grows ? sequence.num_cached / cache_spec_->block_size() : 0;
    std::vector<uint32_t>& shared = prefix.shared.emplace_back();
    std::vector<uint32_t>& state = prefix.state.emplace_back();
    for (size_t i = 0; i < sequence.units[layer].size(); ++i) {
      const uint32_t unit = sequence.units[layer][i];
      if (i < num_full) {
        if (shared_units_.insert(unit).second) plan.add_kept(unit);
        shared.push_back(unit);
        continue;
      }
      state.push_back(AllocateUnit(spec.unit_bytes));
      v1::CacheCopy& copy = *plan.add_copies();
      copy.set_from_id(unit);
      copy.set_to_id(state.back());
      copy.set_keep(true);
    }
  }
  return prefix;
}

void ExecutorHarness::AddWith(v1::StepPlan& plan, uint64_t id,
                              const Prefix& prefix, int32_t num_tokens) {
  Sequence& sequence = sequences_.at(id);
  v1::SequenceStart& start = *plan.mutable_started(plan.started_size() - 1);
  start.set_num_cached(prefix.num_tokens);
  for (int32_t layer = 0; layer < config_.num_layers(); ++layer) {
    for (const uint32_t unit : prefix.shared[layer]) {
      start.add_shared_layers(layer);
      start.add_shared_ids(unit);
      sequence.units[layer].push_back(unit);
    }
  }
  sequence.num_cached = prefix.num_tokens;
  Add(plan, id, num_tokens);
  for (int32_t layer = 0; layer < config_.num_layers(); ++layer) {
    for (size_t i = 0; i < prefix.state[layer].size(); ++i) {
      v1::CacheCopy& copy = *plan.add_copies();
      copy.set_from_id(prefix.state[layer][i]);
      copy.set_to_id(sequence.units[layer][prefix.shared[layer].size() + i]);
    }
  }
}

absl::Status ExecutorHarness::CopyCache(uint64_t from_id, uint64_t to_id) {
  for (const std::unique_ptr<Executor>& executor : executors_) {
    SY_RETURN_IF_ERROR(executor->CopyCache(from_id, to_id));
  }
  sequences_.at(to_id).num_cached = sequences_.at(from_id).num_cached;
  return absl::OkStatus();
}

void ExecutorHarness::Finish(v1::StepPlan& plan, uint64_t id) {
  plan.add_finished(id);
  const Sequence& sequence = sequences_.at(id);
  for (int32_t layer = 0; layer < config_.num_layers(); ++layer) {
    const int64_t bytes =
        cache_spec_->At(layer, sequence.placement[layer]).unit_bytes;
    for (uint32_t unit : sequence.units[layer]) {
      if (shared_units_.count(unit) > 0) continue;
      free_units_[bytes].push_back(unit);
    }
  }
  sequences_.erase(id);
}

absl::Status ExecutorHarness::OnEveryRank(
    const std::function<absl::Status(int32_t rank)>& action) {
  std::vector<absl::Status> statuses(executors_.size());
  std::vector<std::thread> threads;
  const auto run = [&](size_t rank) {
    statuses[rank] = action(rank);
    if (!statuses[rank].ok()) collectives_[rank]->Abort();
  };
  for (size_t rank = 1; rank < executors_.size(); ++rank) {
    threads.emplace_back(run, rank);
  }
  run(0);
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& status : statuses) SY_RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

absl::Status ExecutorHarness::Launch(const v1::StepPlan& plan) {
  SY_RETURN_IF_ERROR(OnEveryRank(
      [&](int32_t rank) { return executors_[rank]->Launch(plan); }));
  for (const v1::SequenceStep& step : plan.batch()) {
    if (step.sample()) ++sequences_.at(step.sequence_id()).num_pending;
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::StepResult> ExecutorHarness::Collect() {
  std::vector<v1::StepResult> results(executors_.size());
  SY_RETURN_IF_ERROR(OnEveryRank([&](int32_t rank) -> absl::Status {
    SY_ASSIGN_OR_RETURN(results[rank], executors_[rank]->Collect());
    return absl::OkStatus();
  }));
  for (const v1::SampledToken& token : results[0].tokens()) {
    const auto it = sequences_.find(token.sequence_id());
    if (it == sequences_.end()) continue;
    it->second.tokens.push_back(token.token_id());
    --it->second.num_pending;
  }
  return results[0];
}

absl::StatusOr<v1::StepResult> ExecutorHarness::Execute(
    const v1::StepPlan& plan) {
  SY_RETURN_IF_ERROR(Launch(plan));
  return Collect();
}

absl::StatusOr<std::vector<HarnessResult>> ExecutorHarness::Generate(
    const std::vector<HarnessRequest>& requests, int32_t token_budget) {
  if (token_budget == 0) token_budget = options_.max_num_batched_tokens;
  std::vector<HarnessResult> results(requests.size());
  std::map<uint64_t, size_t> running;  // id -> index
  v1::StepPlan plan;
  for (size_t i = 0; i < requests.size(); ++i) {
    running[Start(plan, requests[i])] = i;
    results[i].prompt_logprobs.resize(1);
  }
  const int max_in_flight = options_.overlapped ? StepExecutor::kMaxSteps : 1;
  int in_flight = 0;
  while (!running.empty() || in_flight > 0) {
    while (!running.empty() && in_flight < max_in_flight) {
      int32_t budget = token_budget;
      for (const bool decodes : {true, false}) {
        for (const auto& [id, index] : running) {
          const int32_t left = num_left(id);
          if (left == 0 || (left == 1) != decodes || budget == 0) continue;
          const int32_t num_tokens = std::min(left, budget);
          Add(plan, id, num_tokens);
          budget -= num_tokens;
        }
      }
      plan.set_step_id(next_step_++);
      SY_RETURN_IF_ERROR(Launch(plan));
      plan.Clear();
      ++in_flight;
    }
    SY_ASSIGN_OR_RETURN(const v1::StepResult step, Collect());
    --in_flight;
    for (const v1::PromptLogprobs& prompt : step.prompt_logprobs()) {
      HarnessResult& result = results[running.at(prompt.sequence_id())];
      SY_CHECK(prompt.start() == result.prompt_logprobs.size());
      result.prompt_logprobs.insert(result.prompt_logprobs.end(),
                                    prompt.positions().begin(),
                                    prompt.positions().end());
    }
    for (const v1::SampledToken& token : step.tokens()) {
      const uint64_t id = token.sequence_id();
      if (running.count(id) == 0) continue;  // one too many
      HarnessResult& result = results[running.at(id)];
      result.tokens.push_back(token.token_id());
      result.logprobs.push_back(token.logprobs());
      const HarnessRequest& request = requests[running.at(id)];
      if (static_cast<int32_t>(result.tokens.size()) == request.max_tokens) {
        Finish(plan, id);
        running.erase(id);
      }
    }
  }
  plan.set_step_id(next_step_++);
  SY_RETURN_IF_ERROR(Execute(plan).status());
  return results;
}

absl::StatusOr<HarnessResult> ExecutorHarness::GenerateOne(
    const HarnessRequest& request, int32_t token_budget) {
  SY_ASSIGN_OR_RETURN(std::vector<HarnessResult> results,
                      Generate({request}, token_budget));
  return std::move(results[0]);
}

std::unique_ptr<ExecutorHarness> Harness(const std::string& model_dir,
                                         int32_t world_size) {
  HarnessOptions options;
  options.model_dir = model_dir;
  options.world_size = world_size;
  return ExecutorHarness::Create(options).value();
}

void ExpectTwins(const absl::StatusOr<v1::StepResult>& result) {
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ(result->tokens_size(), 2);
  const v1::SampledToken& a = result->tokens(0);
  const v1::SampledToken& b = result->tokens(1);
  EXPECT_EQ(a.token_id(), b.token_id());
  EXPECT_EQ(a.logprobs().SerializeAsString(), b.logprobs().SerializeAsString());
}

std::vector<int32_t> Prompt(int32_t length, int32_t salt) {
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < length; ++i) {
    tokens.push_back((7 + salt * 31 + i * i * 13) % 300);
  }
  return tokens;
}

}  // namespace switchyard
