#include "coordinator/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/coordinator/supernet.h"

namespace switchyard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr uint32_t kStopToken = 63;

// Two layers, blocks of 4 positions.
class SchedulerTest : public testing::Test {
 protected:
  SchedulerTest() : config_(MakeSupernet(2)), spec_(MakeSpec(config_)) {}

  Placement All(int32_t mixer) const {
    return MakePlacement(config_, {mixer, mixer});
  }
  // The arena of `num_blocks` attention blocks in each layer.
  int64_t Blocks(int64_t num_blocks) const {
    return 2 * num_blocks * spec_.At(0, kAttention).unit_bytes;
  }
  Scheduler MakeScheduler(int max_num_seqs, int max_num_batched_tokens,
                          int64_t arena_bytes = 1 << 20) {
    SchedulerOptions options;
    options.max_num_seqs = max_num_seqs;
    options.max_num_batched_tokens = max_num_batched_tokens;
    options.prefix_caching = false;  // most prompts here are alike
    return Scheduler(options, spec_, arena_bytes);
  }
  SequenceRequest Request(int num_prompt_tokens, uint32_t max_tokens,
                          int32_t mixer = kAttention) {
    SequenceRequest request;
    request.prompt_token_ids.assign(num_prompt_tokens, 1);
    request.sampling.set_max_tokens(max_tokens);
    request.sampling.set_seed(11);
    request.sampling.add_stop_token_ids(kStopToken);
    request.placement = All(mixer);
    request.epoch = 1;
    return request;
  }
  // A result that samples `token` wherever the plan asks.
  static v1::StepResult ResultOf(const v1::StepPlan& plan, uint32_t token = 5) {
    v1::StepResult result;
    result.set_step_id(plan.step_id());
    for (const v1::SequenceStep& step : plan.batch()) {
      if (!step.sample()) continue;
      v1::SampledToken* sampled = result.add_tokens();
      sampled->set_sequence_id(step.sequence_id());
      sampled->set_token_id(token);
    }
    return result;
  }
  // "id:start+num_tokens" per entry, with a ! where it samples.
  static std::vector<std::string> Batch(const v1::StepPlan& plan) {
    std::vector<std::string> batch;
    for (const v1::SequenceStep& step : plan.batch()) {
      batch.push_back(std::to_string(step.sequence_id()) + ":" +
                      std::to_string(step.start()) + "+" +
                      std::to_string(step.num_tokens()) +
                      (step.sample() ? "!" : ""));
    }
    return batch;
  }
  static std::vector<uint64_t> StartedIds(const v1::StepPlan& plan) {
    std::vector<uint64_t> ids;
    for (const auto& start : plan.started()) ids.push_back(start.sequence_id());
    return ids;
  }

  ModelConfig config_;
  CacheSpec spec_;
};

TEST_F(SchedulerTest, NothingToDoIsNoPlan) {
  Scheduler scheduler = MakeScheduler(4, 16);
  EXPECT_FALSE(scheduler.Schedule(1).has_value());
  EXPECT_TRUE(scheduler.CheckIntegrity().ok());
}

TEST_F(SchedulerTest, AFirstPlanSaysEverything) {
  Scheduler scheduler = MakeScheduler(4, 16);
  ASSERT_EQ(*scheduler.Add(Request(6, 3)), 1u);
  const auto plan = scheduler.Schedule(7);
  EXPECT_EQ(plan->step_id(), 1u);
  EXPECT_EQ(plan->epoch(), 7u);
  ASSERT_EQ(plan->placements_size(), 1);
  EXPECT_THAT(plan->placements(0).mixer_ids(), ElementsAre(0, 0));
  ASSERT_EQ(plan->started_size(), 1);
  EXPECT_EQ(plan->started(0).placement_id(),
            plan->placements(0).placement_id());
  EXPECT_EQ(plan->started(0).token_ids_size(), 6);
  EXPECT_EQ(plan->started(0).num_prompt_tokens(), 6u);
  EXPECT_EQ(plan->started(0).seed(), 11u);
  EXPECT_EQ(plan->started(0).sampling().max_tokens(), 3u);
  EXPECT_THAT(Batch(*plan), ElementsAre("1:0+6!"));
  EXPECT_THAT(plan->batch(0).cache_layers(), ElementsAre(0, 0, 1, 1));
  EXPECT_EQ(plan->batch(0).cache_ids_size(), 4);
}

TEST_F(SchedulerTest, RunsToItsEndAndIsForgottenByTheNextPlan) {
  Scheduler scheduler = MakeScheduler(4, 16);
  scheduler.Add(Request(6, 2)).value();
  auto plan = scheduler.Schedule(1);
  auto sampled = scheduler.Commit(ResultOf(*plan, 8)).value();
  ASSERT_EQ(sampled.size(), 1u);
  EXPECT_EQ(sampled[0].token_id, 8u);
  EXPECT_EQ(sampled[0].finished, nullptr);
  plan = scheduler.Schedule(1);
  EXPECT_THAT(Batch(*plan), ElementsAre("1:6+1!"));
  EXPECT_EQ(plan->started_size(), 0);
  sampled = scheduler.Commit(ResultOf(*plan, 9)).value();
  ASSERT_NE(sampled[0].finished, nullptr);
  EXPECT_EQ(sampled[0].finished->finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(sampled[0].finished->num_generated(), 2);
  EXPECT_EQ(scheduler.Find(1), nullptr);
  EXPECT_EQ(scheduler.ledger().held_bytes(), 0);

  plan = scheduler.Schedule(1);
  EXPECT_THAT(plan->finished(), ElementsAre(1));
  EXPECT_THAT(Batch(*plan), IsEmpty());
  EXPECT_TRUE(scheduler.Commit(ResultOf(*plan))->empty());
  EXPECT_FALSE(scheduler.Schedule(1).has_value());
}

TEST_F(SchedulerTest, DecodesComeFirstThenPromptsInOrder) {
  Scheduler scheduler = MakeScheduler(8, 10);
  scheduler.Add(Request(3, 9)).value();
  scheduler.Add(Request(4, 9)).value();
  auto plan = scheduler.Schedule(1);
  EXPECT_THAT(Batch(*plan), ElementsAre("1:0+3!", "2:0+4!"));
  scheduler.Commit(ResultOf(*plan)).value();
  scheduler.Add(Request(13, 9)).value();
  scheduler.Add(Request(5, 9)).value();
  plan = scheduler.Schedule(1);
  EXPECT_THAT(Batch(*plan), ElementsAre("1:3+1!", "2:4+1!", "3:0+8"));
  scheduler.Commit(ResultOf(*plan)).value();
  plan = scheduler.Schedule(1);
  EXPECT_THAT(Batch(*plan), ElementsAre("1:4+1!", "2:5+1!", "3:8+5!", "4:0+3"));
}

TEST_F(SchedulerTest, RunsAtMostMaxNumSeqsAndNoMoreThanTheBudgetHasTokens) {
  Scheduler scheduler = MakeScheduler(2, 100);
  for (int i = 0; i < 3; ++i) scheduler.Add(Request(2, 9)).value();
  EXPECT_EQ(scheduler.Schedule(1)->batch_size(), 2);
  EXPECT_EQ(scheduler.num_waiting(), 1);

  Scheduler narrow = MakeScheduler(50, 3);
  for (int i = 0; i < 9; ++i) narrow.Add(Request(1, 9)).value();
  for (int i = 0; i < 4; ++i) {
    const auto plan = narrow.Schedule(1);
    EXPECT_EQ(plan->batch_size(), 3);
    narrow.Commit(ResultOf(*plan)).value();
  }
}

TEST_F(SchedulerTest, RefusesWhatCanNeverFit) {
  Scheduler scheduler = MakeScheduler(4, 16, Blocks(3));
  // 12 positions fit; the last of max_tokens needs none.
  EXPECT_TRUE(scheduler.Add(Request(8, 5)).ok());
  const auto refused = scheduler.Add(Request(8, 6));
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr(std::to_string(Blocks(3))));
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr(std::to_string(Blocks(4))));
  EXPECT_TRUE(scheduler.Add(Request(8, 6, kWindow)).ok());
  EXPECT_EQ(scheduler.MaxTokens(All(kAttention), 1000), 12);

  EXPECT_EQ(scheduler.Add(Request(0, 1)).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(scheduler.Add(Request(1, 0)).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(SchedulerTest, TheHeadOfTheQueueIsNotOvertaken) {
  Scheduler scheduler = MakeScheduler(4, 64, Blocks(6));
  scheduler.Add(Request(12, 9)).value();
  scheduler.Add(Request(16, 5)).value();  // no room beside the first
  scheduler.Add(Request(1, 2)).value();   // would fit
  const auto plan = scheduler.Schedule(1);
  EXPECT_THAT(StartedIds(*plan), ElementsAre(1));
  EXPECT_EQ(scheduler.num_waiting(), 2);
}

TEST_F(SchedulerTest, TheLatestGivesWayAndComesBackWithItsTokens) {
  Scheduler scheduler = MakeScheduler(4, 64, Blocks(4));
  scheduler.Add(Request(4, 9)).value();
  auto plan = scheduler.Schedule(1);
  scheduler.Commit(ResultOf(*plan)).value();
  scheduler.Add(Request(4, 9)).value();
  plan = scheduler.Schedule(1);  // 1 takes its second block, 2 its first
  EXPECT_THAT(Batch(*plan), ElementsAre("1:4+1!", "2:0+4!"));
  scheduler.Commit(ResultOf(*plan, 6)).value();
  for (int position = 5; position < 8; ++position) {
    plan = scheduler.Schedule(1);
    EXPECT_EQ(plan->batch_size(), 2);
    scheduler.Commit(ResultOf(*plan, 6)).value();
  }
  plan = scheduler.Schedule(1);  // 1 needs its third block; 2 has two
  EXPECT_THAT(Batch(*plan), ElementsAre("1:8+1!"));
  EXPECT_THAT(plan->finished(), ElementsAre(2));
  EXPECT_EQ(scheduler.num_preemptions(), 1);
  EXPECT_EQ(scheduler.num_waiting(), 1);
  EXPECT_TRUE(scheduler.CheckIntegrity().ok()) << scheduler.CheckIntegrity();
  scheduler.Commit(ResultOf(*plan)).value();

  ASSERT_TRUE(scheduler.Finish(1, v1::FINISH_REASON_CANCELLED).ok());
  plan = scheduler.Schedule(1);
  EXPECT_THAT(plan->finished(), ElementsAre(1));
  EXPECT_THAT(StartedIds(*plan), ElementsAre(2));
  EXPECT_THAT(plan->started(0).token_ids(),
              ElementsAre(1, 1, 1, 1, 6, 6, 6, 6));
  EXPECT_EQ(plan->started(0).num_prompt_tokens(), 4u);
  EXPECT_THAT(Batch(*plan), ElementsAre("2:0+8!"));
}

TEST_F(SchedulerTest, HolesThatNothingFitsRestartTheOldestAlone) {
  const int64_t arena_bytes = Blocks(4);
  ASSERT_EQ(arena_bytes, 8192);
  Scheduler scheduler = MakeScheduler(4, 64, arena_bytes);
  // Sequence 1 grows to fill the arena. Sequence 2 puts half a block between
  // the first blocks of 1 and those that follow, and then gives way.
  scheduler.Add(Request(4, 13)).value();
  SequenceRequest second = Request(4, 9);
  second.placement = MakePlacement(config_, {kWindow, kGdn});
  scheduler.Add(second).value();
  std::vector<std::vector<uint64_t>> finished;
  std::optional<v1::StepPlan> plan;
  while (scheduler.Find(1)->num_tokens() < 13) {
    plan = scheduler.Schedule(1);
    if (plan->finished_size() > 0) {
      finished.emplace_back(plan->finished().begin(), plan->finished().end());
    }
    scheduler.Commit(ResultOf(*plan)).value();
  }
  EXPECT_THAT(finished, ElementsAre(ElementsAre(2)));
  EXPECT_EQ(scheduler.ledger().free_bytes(), 2048);  // enough, were it one

  plan = scheduler.Schedule(1);
  EXPECT_THAT(plan->finished(), ElementsAre(1));
  EXPECT_THAT(Batch(*plan), IsEmpty());
  EXPECT_EQ(scheduler.num_preemptions(), 2);
  scheduler.Commit(ResultOf(*plan)).value();
  scheduler.Add(Request(1, 2, kWindow)).value();
  EXPECT_TRUE(scheduler.CheckIntegrity().ok()) << scheduler.CheckIntegrity();

  plan = scheduler.Schedule(1);
  EXPECT_THAT(Batch(*plan), ElementsAre("1:0+13!"));
  scheduler.Commit(ResultOf(*plan)).value();
  while (scheduler.Find(1) != nullptr) {
    plan = scheduler.Schedule(1);
    EXPECT_EQ(plan->batch_size(), 1);
    scheduler.Commit(ResultOf(*plan)).value();
  }
  EXPECT_THAT(StartedIds(*scheduler.Schedule(1)), ElementsAre(2, 3));
}

TEST_F(SchedulerTest, FinishFreesAtOnceAndDropsWhatIsInFlight) {
  Scheduler scheduler = MakeScheduler(4, 64);
  scheduler.Add(Request(4, 9)).value();
  scheduler.Add(Request(4, 9)).value();
  auto plan = scheduler.Schedule(1);
  const auto finished = scheduler.Finish(1, v1::FINISH_REASON_STOP);
  EXPECT_EQ((*finished)->finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(scheduler.ledger().num_holders(), 1);
  EXPECT_EQ(scheduler.Finish(1, v1::FINISH_REASON_STOP).status().code(),
            absl::StatusCode::kNotFound);
  const auto sampled = scheduler.Commit(ResultOf(*plan)).value();
  ASSERT_EQ(sampled.size(), 1u);
  EXPECT_EQ(sampled[0].sequence_id, 2u);
  EXPECT_EQ(sampled[0].result_index, 1);
  EXPECT_THAT(scheduler.Schedule(1)->finished(), ElementsAre(1));

  // One that never started leaves nothing to forget.
  scheduler.Add(Request(4, 9)).value();
  ASSERT_TRUE(scheduler.Finish(3, v1::FINISH_REASON_CANCELLED).ok());
  EXPECT_EQ(scheduler.num_waiting(), 0);
}

TEST_F(SchedulerTest, PlansAheadOfWhatIsCommitted) {
  Scheduler scheduler = MakeScheduler(4, 64);
  scheduler.Add(Request(4, 3)).value();
  const auto first = scheduler.Schedule(1);
  const auto second = scheduler.Schedule(1);
  EXPECT_THAT(Batch(*second), ElementsAre("1:4+1!"));
  const auto third = scheduler.Schedule(1);
  EXPECT_THAT(Batch(*third), ElementsAre("1:5+1!"));
  // Three samples are on their way: all it may have.
  EXPECT_FALSE(scheduler.Schedule(1).has_value());
  EXPECT_EQ(scheduler.num_in_flight(), 3);
  EXPECT_EQ(scheduler.Commit(ResultOf(*first))->size(), 1u);
  EXPECT_EQ(scheduler.Commit(ResultOf(*second))->size(), 1u);
  const auto last = scheduler.Commit(ResultOf(*third)).value();
  EXPECT_NE(last[0].finished, nullptr);
}

TEST_F(SchedulerTest, AStopTokenVoidsTheStepsPlannedBehindIt) {
  Scheduler scheduler = MakeScheduler(4, 64);
  scheduler.Add(Request(4, 9)).value();
  const auto first = scheduler.Schedule(1);
  const auto second = scheduler.Schedule(1);
  const auto stopped = scheduler.Commit(ResultOf(*first, kStopToken)).value();
  ASSERT_NE(stopped[0].finished, nullptr);
  EXPECT_EQ(stopped[0].finished->finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(stopped[0].finished->num_generated(), 1);
  EXPECT_EQ(scheduler.ledger().held_bytes(), 0);
  const auto third = scheduler.Schedule(1);
  EXPECT_THAT(third->finished(), ElementsAre(1));
  EXPECT_TRUE(scheduler.Commit(ResultOf(*second))->empty());
  EXPECT_TRUE(scheduler.Commit(ResultOf(*third))->empty());
  EXPECT_FALSE(scheduler.Schedule(1).has_value());
}

TEST_F(SchedulerTest, RecomputeContinuesUnderTheNewPlacement) {
  Scheduler scheduler = MakeScheduler(4, 64);
  scheduler.Add(Request(4, 9)).value();
  auto plan = scheduler.Schedule(1);
  scheduler.Commit(ResultOf(*plan, 7)).value();
  const auto ahead = scheduler.Schedule(1);

  ASSERT_TRUE(scheduler.Recompute(1, All(kGdn), 2).ok());
  EXPECT_EQ(scheduler.Find(1)->placement(), All(kGdn));
  EXPECT_EQ(scheduler.Find(1)->epoch(), 2u);
  plan = scheduler.Schedule(2);
  EXPECT_THAT(plan->finished(), ElementsAre(1));
  EXPECT_THAT(StartedIds(*plan), ElementsAre(1));
  EXPECT_THAT(plan->placements(0).mixer_ids(), ElementsAre(kGdn, kGdn));
  EXPECT_THAT(plan->started(0).token_ids(), ElementsAre(1, 1, 1, 1, 7));
  EXPECT_THAT(Batch(*plan), ElementsAre("1:0+5!"));
  // The token that the old placement sampled meanwhile does not count.
  EXPECT_TRUE(scheduler.Commit(ResultOf(*ahead, 8))->empty());
  scheduler.Commit(ResultOf(*plan, 9)).value();
  EXPECT_EQ(scheduler.Find(1)->token_ids().back(), 9u);
  EXPECT_EQ(scheduler.Find(1)->num_generated(), 2);
  EXPECT_EQ(scheduler.num_preemptions(), 0);
}

TEST_F(SchedulerTest, RecomputeUnderTheSamePlacementKeepsTheCache) {
  Scheduler scheduler = MakeScheduler(4, 64);
  scheduler.Add(Request(4, 9)).value();
  auto plan = scheduler.Schedule(1);
  ASSERT_TRUE(scheduler.Recompute(1, All(kAttention), 2).ok());
  EXPECT_EQ(scheduler.Find(1)->epoch(), 2u);
  EXPECT_EQ(scheduler.Commit(ResultOf(*plan))->size(), 1u);
  EXPECT_EQ(scheduler.Schedule(2)->finished_size(), 0);
}

TEST_F(SchedulerTest, RecomputeRefusesWhatCouldNotGrowToItsEnd) {
  Scheduler scheduler = MakeScheduler(4, 64, Blocks(3));
  scheduler.Add(Request(4, 50, kWindow)).value();
  scheduler.Schedule(1);
  EXPECT_EQ(scheduler.Recompute(1, All(kAttention), 2).code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(scheduler.CheckRecompute(1, All(kAttention)).code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(scheduler.Find(1)->placement(), All(kWindow));
  EXPECT_EQ(scheduler.num_running(), 1);
  EXPECT_EQ(scheduler.Recompute(5, All(kWindow), 2).code(),
            absl::StatusCode::kNotFound);
}

TEST_F(SchedulerTest, AResultThatDoesNotMatchChangesNothing) {
  Scheduler scheduler = MakeScheduler(4, 64);
  EXPECT_EQ(scheduler.Commit(v1::StepResult()).status().code(),
            absl::StatusCode::kInternal);
  scheduler.Add(Request(4, 9)).value();
  scheduler.Add(Request(4, 9)).value();
  const auto plan = scheduler.Schedule(1);
  const v1::StepResult good = ResultOf(*plan);

  v1::StepResult bad = good;
  bad.set_step_id(2);
  EXPECT_THAT(std::string(scheduler.Commit(bad).status().message()),
              HasSubstr("step 1 is next"));
  bad = good;
  bad.mutable_tokens()->RemoveLast();
  EXPECT_THAT(std::string(scheduler.Commit(bad).status().message()),
              HasSubstr("got 1 tokens, asked for 2"));
  bad = good;
  *bad.add_tokens() = good.tokens(0);
  EXPECT_FALSE(scheduler.Commit(bad).ok());
  bad = good;
  bad.mutable_tokens()->SwapElements(0, 1);
  EXPECT_THAT(std::string(scheduler.Commit(bad).status().message()),
              HasSubstr("token 0 is of sequence 2, should be of 1"));
  EXPECT_EQ(scheduler.Commit(good)->size(), 2u);
}

}  // namespace
}  // namespace switchyard
