// Prefix reuse through the scheduler: what is found, where snapshots are taken,
// and who gives way. The simulation has everything else.
#include "coordinator/prefix_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "coordinator/scheduler.h"
#include "tests/coordinator/strict_worker.h"
#include "tests/coordinator/supernet.h"

namespace switchyard {
namespace {

using testing::IsEmpty;

// Two layers, blocks of 4 positions.
class PrefixCacheTest : public testing::Test {
 protected:
  PrefixCacheTest() : config_(MakeSupernet(2)), spec_(MakeSpec(config_)) {}

  void Make(int64_t arena_bytes = 1 << 20, int32_t max_num_batched_tokens = 64,
            bool prefix_caching = true) {
    SchedulerOptions options;
    options.max_num_seqs = 4;
    options.max_num_batched_tokens = max_num_batched_tokens;
    options.prefix_caching = prefix_caching;
    scheduler_ = std::make_unique<Scheduler>(options, spec_, arena_bytes);
    worker_ = std::make_unique<StrictWorker>(&config_, spec_, arena_bytes,
                                             config_.vocab_size);
  }
  Placement All(int32_t mixer) const {
    return MakePlacement(config_, {mixer, mixer});
  }
  static std::vector<uint32_t> Tokens(int n, uint32_t salt = 0) {
    std::vector<uint32_t> tokens;
    for (int i = 0; i < n; ++i) tokens.push_back((i * 7 + salt) % 60);
    return tokens;
  }
  uint64_t Add(std::vector<uint32_t> prompt, const Placement& placement,
               uint32_t max_tokens = 3,
               std::optional<uint32_t> stop = std::nullopt) {
    SequenceRequest request;
    request.prompt_token_ids = std::move(prompt);
    request.placement = placement;
    request.sampling.set_max_tokens(max_tokens);
    if (stop.has_value()) request.sampling.add_stop_token_ids(*stop);
    return scheduler_->Add(std::move(request)).value();
  }
  // A step is planned and executed; its result waits in results_.
  bool Step() {
    const std::optional<v1::StepPlan> plan = scheduler_->Schedule(1);
    if (!plan.has_value()) return false;
    for (const v1::SequenceStart& start : plan->started()) {
      num_cached_[start.sequence_id()] = start.num_cached();
    }
    num_copies_ += plan->copies_size();
    results_.push_back(worker_->Execute(*plan));
    return true;
  }
  std::vector<Scheduler::Sampled> Commit() {
    auto sampled = scheduler_->Commit(results_.front());
    results_.pop_front();
    EXPECT_TRUE(sampled.ok()) << sampled.status();
    return *std::move(sampled);
  }
  // To the end of everything, with `num_in_flight` steps in flight. The tokens
  // of the sequence that ended last.
  std::vector<uint32_t> Run(size_t num_in_flight = 1) {
    std::vector<uint32_t> tokens;
    for (;;) {
      while (results_.size() < num_in_flight && Step()) {
      }
      if (results_.empty()) break;
      for (const Scheduler::Sampled& sampled : Commit()) {
        if (sampled.finished == nullptr) continue;
        const auto ids = sampled.finished->token_ids();
        tokens.assign(ids.begin(), ids.end());
      }
    }
    EXPECT_TRUE(scheduler_->CheckIntegrity().ok())
        << scheduler_->CheckIntegrity();
    EXPECT_THAT(worker_->complaints(), IsEmpty());
    EXPECT_EQ(scheduler_->ledger().held_bytes(), 0);
    return tokens;
  }
  int64_t CachedOf(std::vector<uint32_t> prompt, const Placement& placement,
                   uint32_t max_tokens = 3, size_t num_in_flight = 1) {
    const uint64_t id = Add(std::move(prompt), placement, max_tokens);
    Run(num_in_flight);
    return num_cached_.at(id);
  }

  ModelConfig config_;
  CacheSpec spec_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<StrictWorker> worker_;
  std::deque<v1::StepResult> results_;
  std::map<uint64_t, int64_t> num_cached_;
  int num_copies_ = 0;
};

TEST_F(PrefixCacheTest, FullBlocksAreSharedWithoutACopy) {
  Make();
  EXPECT_EQ(CachedOf(Tokens(11), All(kAttention)), 0);
  EXPECT_EQ(CachedOf(Tokens(30), All(kAttention)), 8);
  EXPECT_EQ(CachedOf(Tokens(12), All(kAttention)), 8);  // one is computed
  EXPECT_EQ(CachedOf(Tokens(12), All(kKda)), 0);
  EXPECT_EQ(num_copies_, 0);
  EXPECT_EQ(scheduler_->prefixes().num_hit_tokens(), 16);
}

TEST_F(PrefixCacheTest, AFurtherTurnBeginsWhereTheLastEnded) {
  for (int32_t mixer = 1; mixer < kNumSupernetMixers; ++mixer) {
    for (const size_t num_in_flight : {1, 2}) {
      Make();
      const Placement placement = MakePlacement(config_, {kAttention, mixer});
      Add(Tokens(11), placement, 6);
      std::vector<uint32_t> turn = Run(num_in_flight);
      ASSERT_EQ(turn.size(), 17u);
      turn.push_back(1);
      // The last token was never computed.
      EXPECT_EQ(CachedOf(turn, placement, 2, num_in_flight), 16) << mixer;
    }
  }
}

// With two steps in flight the state has consumed the stop token when it ends.
TEST_F(PrefixCacheTest, AStopTokenIsPartOfTheStateIfAStepHasConsumedIt) {
  for (const size_t num_in_flight : {1, 2, 3}) {
    Make();
    const std::vector<uint32_t> prompt = Tokens(9);
    std::vector<uint32_t> turn = prompt;
    for (int i = 0; i < 2; ++i) {
      turn.push_back(StrictWorker::Next(turn, All(kGdn), config_.vocab_size));
    }
    Add(prompt, All(kGdn), 30, turn.back());
    Run(num_in_flight);
    ASSERT_EQ(scheduler_->num_running(), 0);
    turn.push_back(1);
    turn.push_back(2);
    // Three in flight have gone one token further, which does not come again.
    const std::vector<int64_t> expected = {10, 11, 0};
    EXPECT_EQ(CachedOf(turn, All(kGdn)), expected[num_in_flight - 1]);
  }
}

TEST_F(PrefixCacheTest, TheSecondLeavesASnapshotForTheThird) {
  Make();
  std::vector<int64_t> cached;
  for (uint32_t user = 0; user < 3; ++user) {
    std::vector<uint32_t> prompt = Tokens(22);
    prompt.insert(prompt.end(), 9, 50 + user);
    cached.push_back(CachedOf(prompt, All(kMamba)));
  }
  EXPECT_THAT(cached, testing::ElementsAre(0, 0, 20));
}

TEST_F(PrefixCacheTest, NothingIsPublishedBeforeItsStepHasCommitted) {
  Make();
  Add(Tokens(20), All(kAttention), 30);
  ASSERT_TRUE(Step());  // in flight
  const uint64_t second = Add(Tokens(21), All(kAttention), 30);
  ASSERT_TRUE(Step());
  EXPECT_EQ(num_cached_.at(second), 0);
  Commit();
  const uint64_t third = Add(Tokens(21), All(kAttention), 30);
  ASSERT_TRUE(Step());
  EXPECT_EQ(num_cached_.at(third), 20);
  Run();
}

TEST_F(PrefixCacheTest, WhatIsKeptGivesWayToTheLiving) {
  const int64_t block_bytes = 2 * spec_.At(0, kAttention).unit_bytes;
  Make(6 * block_bytes);
  EXPECT_EQ(CachedOf(Tokens(16), All(kAttention), 2), 0);
  EXPECT_EQ(scheduler_->ledger().reusable_bytes(), 4 * block_bytes);
  EXPECT_EQ(CachedOf(Tokens(20, 5), All(kAttention), 5), 0);  // wants all six
  EXPECT_EQ(scheduler_->num_preemptions(), 0);
  EXPECT_EQ(CachedOf(Tokens(16), All(kAttention), 2), 0);
}

// A copy that a branch leaves takes only what the whole step leaves over.
TEST_F(PrefixCacheTest, ACopyTakesNoRoomFromTheLiving) {
  const int64_t block_bytes = spec_.At(0, kAttention).unit_bytes;
  const int64_t slot_bytes = spec_.At(1, kGdn).unit_bytes;
  const Placement mixed = MakePlacement(config_, {kAttention, kGdn});
  for (const bool room : {false, true}) {
    // The second needs a slot and three blocks, the other one six blocks; the
    // last two of these at the moment at which the second would leave a copy.
    Make(9 * block_bytes + 2 * slot_bytes - (room ? 0 : kCacheUnitBytes));
    EXPECT_EQ(CachedOf(Tokens(11), mixed, 1), 0);
    std::vector<uint32_t> prompt = Tokens(10);
    prompt.back() = 61;
    Add(prompt, mixed, 2);
    Add(Tokens(8, 9), All(kAttention), 2);
    ASSERT_TRUE(Step());
    Commit();
    ASSERT_TRUE(Step());
    EXPECT_EQ(results_.back().tokens_size(), 2) << "one had to wait";
    Run();
    EXPECT_EQ(scheduler_->num_preemptions(), 0);
    prompt.back() = 62;
    EXPECT_EQ(CachedOf(prompt, mixed, 1), room ? 8 : 0);
  }
}

// A copy that could not be made is left to the next that comes by.
TEST_F(PrefixCacheTest, ABranchWithoutACopyIsOpenToOthers) {
  const int64_t block_bytes = spec_.At(0, kAttention).unit_bytes;
  const int64_t slot_bytes = spec_.At(1, kGdn).unit_bytes;
  const Placement mixed = MakePlacement(config_, {kAttention, kGdn});
  Make(5 * block_bytes + 5 * slot_bytes);
  CachedOf(Tokens(11), mixed, 1);
  const auto prompt = [](uint32_t user) {
    std::vector<uint32_t> tokens = Tokens(9);
    tokens.push_back(60 + user);
    return tokens;
  };
  const auto step = [this] {
    ASSERT_TRUE(Step());
    Commit();
  };
  const uint64_t first = Add(prompt(0), mixed, 7);
  step();
  // They take all the room at the moment at which it would leave a copy.
  Add(Tokens(4, 9), All(kGdn), 2);
  Add(Tokens(4, 19), All(kGdn), 2);
  step();
  ASSERT_EQ(scheduler_->num_running(), 3);
  step();
  ASSERT_EQ(scheduler_->num_running(), 1);
  const uint64_t second = Add(prompt(1), mixed, 1);
  step();
  step();
  const uint64_t third = Add(prompt(2), mixed, 1);
  step();
  ASSERT_NE(scheduler_->Find(first), nullptr);
  Run();
  EXPECT_EQ(num_cached_.at(second), 0);
  EXPECT_EQ(num_cached_.at(third), 8);
  EXPECT_EQ(scheduler_->num_preemptions(), 0);
}

TEST_F(PrefixCacheTest, PromptLogprobsComputeThePrompt) {
  Make();
  CachedOf(Tokens(20), All(kAttention));
  SequenceRequest request;
  request.prompt_token_ids = Tokens(20);
  request.placement = All(kAttention);
  request.sampling.set_max_tokens(2);
  request.sampling.set_prompt_logprobs(0);
  const uint64_t id = scheduler_->Add(std::move(request)).value();
  Run();
  EXPECT_EQ(num_cached_.at(id), 0);
}

// Whatever it had published of its prompt, chunk by chunk, before its first
// logits.
TEST_F(PrefixCacheTest, NothingStaysOfAPromptWhoseLogitsAreNotFinite) {
  for (int32_t mixer = 0; mixer < kNumSupernetMixers; ++mixer) {
    for (const size_t num_in_flight : {1, 2}) {
      for (const int64_t position : {0, 13, 21}) {
        Make(1 << 20, /*max_num_batched_tokens=*/8);
        const Placement placement = MakePlacement(config_, {kAttention, mixer});
        const uint64_t id = Add(Tokens(22), placement);
        worker_->Spoil(id, position);
        const uint64_t neighbour = Add(Tokens(9, 5), placement, 30);
        for (int step = 0; step < 3; ++step) {
          ASSERT_TRUE(Step());
          while (results_.size() >= num_in_flight && step < 2) Commit();
        }
        std::vector<Scheduler::Sampled> sampled;
        while (!results_.empty()) {
          for (Scheduler::Sampled& token : Commit()) {
            if (token.sequence_id == id) sampled.push_back(std::move(token));
          }
        }
        ASSERT_EQ(sampled.size(), 1u);
        EXPECT_EQ(sampled[0].token_id, kNoTokenId);
        ASSERT_NE(sampled[0].finished, nullptr);
        EXPECT_EQ(sampled[0].finished->num_generated(), 0);
        EXPECT_EQ(scheduler_->Find(id), nullptr);
        EXPECT_NE(scheduler_->Find(neighbour), nullptr);
        Run(num_in_flight);
        EXPECT_EQ(worker_->num_spoilt_kept(), 0u);
        EXPECT_EQ(CachedOf(Tokens(22), placement), 0);
      }
    }
  }
}

// What good tokens have followed is as good as it was; the block that the last
// step filled is not, nor the state that it left.
TEST_F(PrefixCacheTest, OfAnAnswerThatTurnsBadTheGoodBlocksStay) {
  for (const size_t num_in_flight : {1, 2}) {
    for (const bool recurrent : {false, true}) {
      Make();
      const Placement placement =
          MakePlacement(config_, {kAttention, recurrent ? kGdn : kAttention});
      const uint64_t id = Add(Tokens(11), placement, 30);
      worker_->Spoil(id, 15);
      std::vector<uint32_t> turn = Run(num_in_flight);
      ASSERT_EQ(turn.size(), 16u);
      EXPECT_EQ(worker_->num_spoilt_kept(), 0u);
      turn.push_back(1);
      EXPECT_EQ(CachedOf(turn, placement), recurrent ? 0 : 12);
    }
  }
}

// A prompt that was given up before it had logits leaves its blocks unproven:
// they go with the first that fails on them. Those of a prompt that had an
// answer stay.
TEST_F(PrefixCacheTest, WhatAFailureBeganWithStaysIfItWasProven) {
  for (const bool proven : {false, true}) {
    Make(1 << 20, /*max_num_batched_tokens=*/8);
    const uint64_t first = Add(Tokens(22), All(kAttention));
    ASSERT_TRUE(Step());
    Commit();
    if (!proven) {
      ASSERT_TRUE(scheduler_->Finish(first, v1::FINISH_REASON_CANCELLED).ok());
    }
    Run();
    std::vector<uint32_t> prompt = Tokens(8);
    prompt.insert(prompt.end(), 5, 61);
    const uint64_t second = Add(prompt, All(kAttention));
    worker_->Spoil(second, 8);
    Run();
    EXPECT_EQ(num_cached_.at(second), 8);
    EXPECT_EQ(worker_->num_spoilt_kept(), 0u);
    prompt.back() = 62;
    EXPECT_EQ(CachedOf(prompt, All(kAttention)), proven ? 8 : 0);
  }
}

TEST_F(PrefixCacheTest, ASequenceThatEndedIsRejectedByItsLateResult) {
  for (int32_t mixer = 0; mixer < kNumSupernetMixers; ++mixer) {
    Make(1 << 20, /*max_num_batched_tokens=*/16);
    const Placement placement = MakePlacement(config_, {kAttention, mixer});
    const uint64_t id = Add(Tokens(22), placement);
    worker_->Spoil(id, 3);
    ASSERT_TRUE(Step());
    Commit();
    ASSERT_TRUE(Step());  // samples
    ASSERT_TRUE(scheduler_->Finish(id, v1::FINISH_REASON_CANCELLED).ok());
    EXPECT_GT(scheduler_->ledger().reusable_bytes(), 0);
    EXPECT_TRUE(Commit().empty());
    Run();
    EXPECT_EQ(worker_->num_spoilt_kept(), 0u);
    EXPECT_EQ(scheduler_->ledger().reusable_bytes(), 0);
    EXPECT_EQ(CachedOf(Tokens(22), placement), 0);
  }
}

// Who began with what was bad before anybody knew fails too, and leaves as
// little.
TEST_F(PrefixCacheTest, BadBlocksSpoilTheirReadersAndGoWithThem) {
  Make(1 << 20, /*max_num_batched_tokens=*/16);
  const uint64_t first = Add(Tokens(28), All(kAttention), 9);
  worker_->Spoil(first, 5);
  ASSERT_TRUE(Step());
  Commit();
  std::vector<uint32_t> prompt = Tokens(16);
  prompt.insert(prompt.end(), 8, 61);
  const uint64_t second = Add(prompt, All(kAttention), 9);
  ASSERT_TRUE(Step());  // the end of the first's prompt
  Commit();
  EXPECT_EQ(num_cached_.at(second), 16);
  EXPECT_EQ(scheduler_->Find(first), nullptr);
  EXPECT_NE(scheduler_->Find(second), nullptr);
  Run();
  EXPECT_EQ(worker_->num_spoilt_kept(), 0u);
  EXPECT_EQ(CachedOf(prompt, All(kAttention)), 0);
}

// A copy at a branch is no better than the logits of its step.
TEST_F(PrefixCacheTest, ARejectedSequenceLeavesNoCopy) {
  Make();
  std::vector<int64_t> cached;
  for (uint32_t user = 0; user < 4; ++user) {
    std::vector<uint32_t> prompt = Tokens(22);
    prompt.insert(prompt.end(), 9, 50 + user);
    const uint64_t id = Add(prompt, All(kMamba));
    if (user == 1) worker_->Spoil(id, 10);
    Run();
    EXPECT_EQ(worker_->num_spoilt_kept(), 0u);
    cached.push_back(num_cached_.at(id));
  }
  EXPECT_THAT(cached, testing::ElementsAre(0, 0, 0, 20));
}

TEST_F(PrefixCacheTest, TurnedOffItKeepsNothing) {
  Make(1 << 20, 64, /*prefix_caching=*/false);
  EXPECT_EQ(CachedOf(Tokens(20), All(kAttention)), 0);
  EXPECT_EQ(CachedOf(Tokens(20), All(kAttention)), 0);
  worker_->Spoil(Add(Tokens(20), All(kAttention)), 7);
  Run();
  EXPECT_EQ(scheduler_->ledger().reusable_bytes(), 0);
  EXPECT_EQ(worker_->num_units(), 0u);
}

}  // namespace
}  // namespace switchyard
