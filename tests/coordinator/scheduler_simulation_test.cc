// The scheduler under random load, against a worker that checks every plan.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/scheduler.h"
#include "tests/coordinator/strict_worker.h"
#include "tests/coordinator/supernet.h"

namespace switchyard {
namespace {

constexpr uint32_t kVocabSize = 40;
constexpr int kNumLayers = 3;

struct Load {
  uint64_t seed = 0;
  int max_in_flight = 1;  // 1: the synchronous loop
  int num_sequences = 40;
  int max_num_seqs = 8;
  int max_num_batched_tokens = 32;
  // Of the largest sequence's cache; 1: nothing else fits beside it.
  double arena_factor = 2;
  double cancel_rate = 0;     // per step
  double recompute_rate = 0;  // per step
  double spoil_rate = 0;      // of the sequences, from some position on
  bool prefix_caching = true;
  // Prompts that begin like another, or with another's prompt and answer; few
  // placements then.
  double shared_rate = 0;
};

// Drives scheduler and worker like the engine does, and knows by itself what
// every sequence must generate.
class Simulation {
 public:
  explicit Simulation(const Load& load)
      : load_(load), random_(load.seed), config_(MakeSupernet(kNumLayers)) {
    for (int i = 0; i < load_.num_sequences; ++i) {
      requests_.push_back(MakeRequest());
    }
    const CacheSpec spec = MakeSpec(config_);
    // Recomputing may pair any of the lengths with any of the placements.
    int64_t largest = 0;
    for (const SequenceRequest& request : requests_) {
      const auto length =
          static_cast<int64_t>(request.prompt_token_ids.size()) +
          request.sampling.max_tokens() - 1;
      for (int32_t mixer = 0; mixer < kNumSupernetMixers; ++mixer) {
        const Placement placement =
            MakePlacement(config_, std::vector<int32_t>(kNumLayers, mixer));
        largest = std::max(largest, spec.SequenceBytes(placement, length));
      }
    }
    const auto arena_bytes =
        static_cast<int64_t>(static_cast<double>(largest) * load.arena_factor);
    SchedulerOptions options;
    options.max_num_seqs = load.max_num_seqs;
    options.max_num_batched_tokens = load.max_num_batched_tokens;
    options.prefix_caching = load.prefix_caching;
    scheduler_ = std::make_unique<Scheduler>(options, spec, arena_bytes);
    worker_ =
        std::make_unique<StrictWorker>(&config_, spec, arena_bytes, kVocabSize);
  }

  // Until everything has ended. Records failures in gtest.
  void Run() {
    size_t next_request = 0;
    int num_steps = 0;
    while (true) {
      ASSERT_LT(++num_steps, 200000) << "no end in sight";
      while (next_request < requests_.size() && Chance(0.3)) {
        Add(requests_[next_request++]);
      }
      if (Chance(load_.cancel_rate)) Cancel();
      if (Chance(load_.recompute_rate)) Recompute();

      std::optional<v1::StepPlan> plan = scheduler_->Schedule(1);
      ASSERT_TRUE(scheduler_->CheckIntegrity().ok())
          << scheduler_->CheckIntegrity();
      if (plan.has_value()) {
        CheckPlan(*plan);
        plans_ += plan->SerializeAsString();
        results_.push_back(worker_->Execute(*plan));
        CheckWorker();
      }
      if (!plan.has_value() && results_.empty() &&
          next_request == requests_.size()) {
        ASSERT_TRUE(live_.empty()) << "stuck with " << live_.size();
        break;
      }
      const auto num_in_flight = static_cast<int>(results_.size());
      if (num_in_flight > 0 &&
          (!plan.has_value() || num_in_flight >= load_.max_in_flight ||
           Chance(0.1))) {
        Commit(results_.front());
        results_.pop_front();
      }
      if (testing::Test::HasFatalFailure()) return;
    }
    EXPECT_EQ(scheduler_->num_running(), 0);
    EXPECT_EQ(scheduler_->num_waiting(), 0);
    EXPECT_EQ(scheduler_->ledger().held_bytes(), 0);
    EXPECT_EQ(scheduler_->ledger().num_blocks_held(), 0);
    EXPECT_EQ(scheduler_->ledger().num_slots_held(), 0);
    EXPECT_TRUE(worker_->sequence_ids().empty());
    EXPECT_EQ(scheduler_->ledger().reusable_bytes() +
                  scheduler_->ledger().free_bytes(),
              scheduler_->ledger().capacity_bytes());
    EXPECT_TRUE(load_.prefix_caching || worker_->num_units() == 0);
  }
  int64_t num_hit_tokens() const {
    return scheduler_->prefixes().num_hit_tokens();
  }

  const std::string& plans() const { return plans_; }
  int64_t num_preemptions() const { return scheduler_->num_preemptions(); }
  int64_t num_rejected() const { return num_rejected_; }
  size_t num_spoilt_kept() const { return worker_->num_spoilt_kept(); }

 private:
  struct Expected {
    std::vector<uint32_t> tokens;
    Placement placement;
    size_t num_prompt_tokens = 0;
    v1::SamplingParams sampling;
  };

  bool Chance(double probability) {
    return static_cast<double>(random_() % 1'000'000) < probability * 1e6;
  }

  Placement RandomPlacement() {
    std::vector<int32_t> mixers(kNumLayers);
    if (load_.shared_rate > 0 && Chance(0.9)) {  // one of four
      const auto first = static_cast<int32_t>(random_() % 4);
      mixers = {first == 3 ? kWindow : first, first == 1 ? kGdn : first,
                first == 2 ? kKda : 0};
      return MakePlacement(config_, mixers);
    }
    const bool uniform = Chance(0.3);
    const auto mixer = static_cast<int32_t>(random_() % kNumSupernetMixers);
    for (int32_t& choice : mixers) {
      choice = uniform ? mixer
                       : static_cast<int32_t>(random_() % kNumSupernetMixers);
    }
    return MakePlacement(config_, mixers);
  }

  SequenceRequest MakeRequest() {
    SequenceRequest request;
    request.placement = RandomPlacement();
    request.prompt_token_ids.resize(1 + random_() % (Chance(0.2) ? 90 : 20));
    for (uint32_t& token : request.prompt_token_ids) {
      token = random_() % kVocabSize;
    }
    if (!requests_.empty() && Chance(load_.shared_rate)) {
      const SequenceRequest& other = requests_[random_() % requests_.size()];
      std::vector<uint32_t> prompt = other.prompt_token_ids;
      if (Chance(0.3)) request.placement = other.placement;
      if (Chance(0.5)) {
        prompt.resize(1 + random_() % prompt.size());
      } else {  // a further turn
        for (int i = random_() % 30; i > 0; --i) {
          prompt.push_back(
              StrictWorker::Next(prompt, other.placement, kVocabSize));
        }
      }
      prompt.insert(prompt.end(), request.prompt_token_ids.begin(),
                    request.prompt_token_ids.end());
      if (prompt.size() > 150) prompt.resize(150);
      request.prompt_token_ids = std::move(prompt);
    }
    request.sampling.set_max_tokens(1 + random_() % 40);
    request.sampling.set_min_tokens(random_() %
                                    (request.sampling.max_tokens() + 1));
    if (Chance(0.6)) {
      request.sampling.add_stop_token_ids(random_() % kVocabSize);
    }
    return request;
  }

  void Add(const SequenceRequest& request) {
    const auto id = scheduler_->Add(request);
    ASSERT_TRUE(id.ok()) << id.status();
    live_[*id] = {request.prompt_token_ids, request.placement,
                  request.prompt_token_ids.size(), request.sampling};
    if (load_.spoil_rate > 0 && Chance(load_.spoil_rate)) {
      worker_->Spoil(*id, random_() % (request.prompt_token_ids.size() +
                                       request.sampling.max_tokens()));
    }
  }

  uint64_t RandomLive() {
    return std::next(live_.begin(), random_() % live_.size())->first;
  }

  void Cancel() {
    if (live_.empty()) return;
    const uint64_t id = RandomLive();
    const auto sequence = scheduler_->Finish(id, v1::FINISH_REASON_CANCELLED);
    ASSERT_TRUE(sequence.ok()) << sequence.status();
    EXPECT_EQ((*sequence)->token_ids(), live_.at(id).tokens);
    EXPECT_EQ(scheduler_->ledger().NumTokensOf(id), 0);
    live_.erase(id);
  }

  void Recompute() {
    if (live_.empty()) return;
    const uint64_t id = RandomLive();
    const Placement placement = RandomPlacement();
    const absl::Status status = scheduler_->Recompute(id, placement, 2);
    // A mixed placement may be larger than any uniform one.
    if (absl::IsResourceExhausted(status)) return;
    ASSERT_TRUE(status.ok()) << status;
    live_.at(id).placement = placement;
  }

  void CheckPlan(const v1::StepPlan& plan) {
    int64_t num_positions = 0;
    uint64_t first_id = 0;
    for (const v1::SequenceStep& step : plan.batch()) {
      num_positions += step.num_tokens();
      if (first_id == 0 || step.sequence_id() < first_id) {
        first_id = step.sequence_id();
      }
    }
    ASSERT_LE(num_positions, load_.max_num_batched_tokens);
    ASSERT_LE(scheduler_->num_running(), load_.max_num_seqs);
    if (load_.max_in_flight > 1) return;
    for (const auto& [id, expected] : live_) {
      if (scheduler_->Find(id)->state() != Sequence::State::kRunning) continue;
      ASSERT_EQ(first_id, id) << "the oldest does not advance";
      break;
    }
  }

  // The worker remembers precisely the running sequences.
  void CheckWorker() {
    for (const std::string& complaint : worker_->complaints()) {
      FAIL() << complaint;
    }
    std::vector<uint64_t> running;
    for (const auto& [id, expected] : live_) {
      if (scheduler_->Find(id)->state() == Sequence::State::kRunning) {
        running.push_back(id);
      }
    }
    ASSERT_EQ(worker_->sequence_ids(), running);
  }

  void Commit(const v1::StepResult& result) {
    auto sampled = scheduler_->Commit(result);
    ASSERT_TRUE(sampled.ok()) << sampled.status();
    for (const Scheduler::Sampled& token : *sampled) {
      ASSERT_EQ(live_.count(token.sequence_id), 1u);
      Expected& expected = live_.at(token.sequence_id);
      if (result.tokens(token.result_index).token_id() == kNoTokenId) {
        ASSERT_EQ(token.token_id, kNoTokenId);
        ASSERT_NE(token.finished, nullptr);
        EXPECT_EQ(token.finished->token_ids(), expected.tokens);
        live_.erase(token.sequence_id);
        ++num_rejected_;
        continue;
      }
      ASSERT_EQ(
          token.token_id,
          StrictWorker::Next(expected.tokens, expected.placement, kVocabSize));
      ASSERT_EQ(result.tokens(token.result_index).sequence_id(),
                token.sequence_id);
      const v1::FinishReason reason = Append(token.token_id, &expected);
      if (reason == v1::FINISH_REASON_UNSPECIFIED) {
        ASSERT_EQ(token.finished, nullptr);
        continue;
      }
      ASSERT_NE(token.finished, nullptr);
      EXPECT_EQ(token.finished->finish_reason(), reason);
      EXPECT_EQ(token.finished->token_ids(), expected.tokens);
      EXPECT_EQ(token.finished->placement(), expected.placement);
      live_.erase(token.sequence_id);
    }
  }

  static v1::FinishReason Append(uint32_t token, Expected* expected) {
    const size_t num_before =
        expected->tokens.size() - expected->num_prompt_tokens;
    expected->tokens.push_back(token);
    const auto& stops = expected->sampling.stop_token_ids();
    if (num_before >= expected->sampling.min_tokens() &&
        std::find(stops.begin(), stops.end(), token) != stops.end()) {
      return v1::FINISH_REASON_STOP;
    }
    return num_before + 1 == expected->sampling.max_tokens()
               ? v1::FINISH_REASON_LENGTH
               : v1::FINISH_REASON_UNSPECIFIED;
  }

  const Load load_;
  std::mt19937_64 random_;
  ModelConfig config_;
  std::vector<SequenceRequest> requests_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<StrictWorker> worker_;
  std::deque<v1::StepResult> results_;
  std::map<uint64_t, Expected> live_;
  std::string plans_;
  int64_t num_rejected_ = 0;
};

Load SharedPrefixesInATightCache() {
  Load load;
  load.num_sequences = 80;
  load.arena_factor = 1.3;
  load.shared_rate = 0.7;
  load.max_num_seqs = 16;
  load.max_num_batched_tokens = 80;
  load.cancel_rate = 0.05;
  load.recompute_rate = 0.05;
  return load;
}

class SchedulerSimulationTest : public testing::TestWithParam<int> {
 protected:
  // Runs `load` under many seeds; the preemptions of all.
  int64_t RunSeeds(Load load, int num_seeds) {
    load.max_in_flight = GetParam();
    int64_t num_preemptions = 0;
    for (int seed = 0; seed < num_seeds; ++seed) {
      load.seed = 1000 * GetParam() + seed;
      SCOPED_TRACE(testing::Message() << "seed " << load.seed);
      Simulation simulation(load);
      simulation.Run();
      num_preemptions += simulation.num_preemptions();
      num_hit_tokens_ += simulation.num_hit_tokens();
      num_rejected_ += simulation.num_rejected();
      num_spoilt_kept_ += simulation.num_spoilt_kept();
      if (HasFailure()) break;
    }
    return num_preemptions;
  }
  int64_t num_hit_tokens_ = 0;
  int64_t num_rejected_ = 0;
  size_t num_spoilt_kept_ = 0;
};

TEST_P(SchedulerSimulationTest, AmpleCache) {
  Load load;
  load.arena_factor = 50;
  EXPECT_EQ(RunSeeds(load, 15), 0);
}

TEST_P(SchedulerSimulationTest, TightCache) {
  Load load;
  load.arena_factor = 1.3;
  load.max_num_seqs = 16;
  EXPECT_GT(RunSeeds(load, 25), 0);
}

TEST_P(SchedulerSimulationTest, ACacheOfOneSequence) {
  Load load;
  load.arena_factor = 1;
  load.max_num_seqs = 16;
  EXPECT_GT(RunSeeds(load, 25), 0);
}

TEST_P(SchedulerSimulationTest, TinyBudget) {
  Load load;
  load.max_num_batched_tokens = 3;
  RunSeeds(load, 15);
}

TEST_P(SchedulerSimulationTest, Cancellations) {
  Load load;
  load.max_num_seqs = 16;
  load.cancel_rate = 0.2;
  RunSeeds(load, 25);
}

TEST_P(SchedulerSimulationTest, PlacementSwitches) {
  Load load;
  load.max_num_seqs = 16;
  load.recompute_rate = 0.1;
  RunSeeds(load, 25);
}

TEST_P(SchedulerSimulationTest, EverythingAtOnce) {
  Load load;
  load.num_sequences = 80;
  load.arena_factor = 1.2;
  load.max_num_seqs = 64;
  load.max_num_batched_tokens = 80;
  load.cancel_rate = 0.05;
  load.recompute_rate = 0.05;
  EXPECT_GT(RunSeeds(load, 25), 0);
}

TEST_P(SchedulerSimulationTest, SharedPrefixes) {
  Load load;
  load.arena_factor = 50;
  load.shared_rate = 0.7;
  EXPECT_EQ(RunSeeds(load, 25), 0);
  EXPECT_GT(num_hit_tokens_, 1000);
}

TEST_P(SchedulerSimulationTest, SharedPrefixesInATightCache) {
  EXPECT_GT(RunSeeds(SharedPrefixesInATightCache(), 40), 0);
  EXPECT_GT(num_hit_tokens_, 1000);
}

TEST_P(SchedulerSimulationTest, SharedPrefixesInACacheOfOneSequence) {
  Load load;
  load.arena_factor = 1;
  load.shared_rate = 0.7;
  load.max_num_seqs = 16;
  EXPECT_GT(RunSeeds(load, 25), 0);
}

// Whoever was cut off before its logits told what it is may leave anything;
// here nobody is.
TEST_P(SchedulerSimulationTest, NothingSpoiltIsKept) {
  Load load;
  load.arena_factor = 50;
  load.shared_rate = 0.7;
  load.spoil_rate = 0.3;
  EXPECT_EQ(RunSeeds(load, 40), 0);
  EXPECT_GT(num_hit_tokens_, 1000);
  EXPECT_GT(num_rejected_, 100);
  EXPECT_EQ(num_spoilt_kept_, 0u);
}

TEST_P(SchedulerSimulationTest, SpoiltSequencesInATightCache) {
  Load load = SharedPrefixesInATightCache();
  load.spoil_rate = 0.2;
  EXPECT_GT(RunSeeds(load, 40), 0);
  EXPECT_GT(num_rejected_, 100);
}

TEST_P(SchedulerSimulationTest, NothingIsKeptWithoutReuse) {
  Load load;
  load.arena_factor = 1.3;
  load.shared_rate = 0.7;
  load.prefix_caching = false;
  RunSeeds(load, 15);
  EXPECT_EQ(num_hit_tokens_, 0);
}

TEST_P(SchedulerSimulationTest, TheSameCallsGiveTheSamePlans) {
  Load load;
  load.seed = 5;
  load.max_in_flight = GetParam();
  load.cancel_rate = 0.05;
  load.recompute_rate = 0.05;
  Simulation first(load);
  first.Run();
  Simulation second(load);
  second.Run();
  EXPECT_TRUE(first.plans() == second.plans());
}

INSTANTIATE_TEST_SUITE_P(StepsInFlight, SchedulerSimulationTest,
                         testing::Values(1, 2, 3));

}  // namespace
}  // namespace switchyard
