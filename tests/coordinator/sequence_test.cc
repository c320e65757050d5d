#include "coordinator/sequence.h"

#include <gtest/gtest.h>

#include <utility>
#include <vector>

namespace switchyard {
namespace {

Sequence MakeSequence(std::vector<uint32_t> prompt, uint32_t max_tokens,
                      std::vector<uint32_t> stops = {},
                      uint32_t min_tokens = 0) {
  SequenceRequest request;
  request.prompt_token_ids = std::move(prompt);
  request.sampling.set_max_tokens(max_tokens);
  request.sampling.set_min_tokens(min_tokens);
  for (const uint32_t stop : stops) {
    request.sampling.add_stop_token_ids(stop);
  }
  request.epoch = 3;
  return Sequence(9, std::move(request));
}

TEST(SequenceTest, PromptInChunksThenTokens) {
  Sequence sequence = MakeSequence({1, 2, 3, 4, 5}, 2);
  EXPECT_EQ(sequence.num_schedulable(), 5);
  EXPECT_EQ(sequence.max_cached_tokens(), 6);
  sequence.Start();
  EXPECT_FALSE(sequence.Schedule(3));
  EXPECT_EQ(sequence.num_schedulable(), 2);
  sequence.CommitPositions(3);
  EXPECT_TRUE(sequence.Schedule(2));
  sequence.CommitSample(2, 7);
  EXPECT_EQ(sequence.num_computed(), 5);
  EXPECT_EQ(sequence.num_generated(), 1);
  EXPECT_EQ(sequence.state(), Sequence::State::kRunning);
  EXPECT_TRUE(sequence.Schedule(1));
  sequence.CommitSample(1, 8);
  EXPECT_EQ(sequence.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(sequence.token_ids(),
            absl::MakeConstSpan(std::vector<uint32_t>{1, 2, 3, 4, 5, 7, 8}));
}

TEST(SequenceTest, ATokenInFlightHasAPositionAlready) {
  Sequence sequence = MakeSequence({1, 2}, 3);
  sequence.Start();
  EXPECT_TRUE(sequence.Schedule(2));
  EXPECT_EQ(sequence.num_schedulable(), 1);  // the one in flight
  EXPECT_TRUE(sequence.Schedule(1));
  EXPECT_EQ(sequence.num_samples_in_flight(), 2);
  EXPECT_TRUE(sequence.Schedule(1));
  // Three samples will be all it may have.
  EXPECT_EQ(sequence.num_schedulable(), 0);
  EXPECT_EQ(sequence.num_scheduled(), 4);
  EXPECT_EQ(sequence.num_computed(), 0);
  sequence.CommitSample(2, 5);
  sequence.CommitSample(1, 6);
  EXPECT_EQ(sequence.num_schedulable(), 0);
  EXPECT_EQ(sequence.state(), Sequence::State::kRunning);
  sequence.CommitSample(1, 7);
  EXPECT_EQ(sequence.finish_reason(), v1::FINISH_REASON_LENGTH);
}

TEST(SequenceTest, StopTokensEndItAfterMinTokens) {
  Sequence sequence = MakeSequence({1}, 10, {40, 41}, 2);
  sequence.Start();
  for (const uint32_t token : {40u, 41u}) {
    sequence.Schedule(1);
    sequence.CommitSample(1, token);
    EXPECT_EQ(sequence.state(), Sequence::State::kRunning);
  }
  sequence.Schedule(1);
  sequence.CommitSample(1, 41);
  EXPECT_EQ(sequence.state(), Sequence::State::kFinished);
  EXPECT_EQ(sequence.finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(sequence.num_generated(), 3);
}

TEST(SequenceTest, AStopTokenInTheLastPlaceIsAStop) {
  Sequence sequence = MakeSequence({1}, 1, {40});
  sequence.Start();
  sequence.Schedule(1);
  sequence.CommitSample(1, 40);
  EXPECT_EQ(sequence.finish_reason(), v1::FINISH_REASON_STOP);
}

TEST(SequenceTest, RestartKeepsTheTokensAndNothingElse) {
  Sequence sequence = MakeSequence({1, 2, 3}, 5);
  sequence.Start();
  sequence.Schedule(3);
  sequence.CommitSample(3, 4);
  sequence.Schedule(1);
  sequence.Restart();
  EXPECT_EQ(sequence.state(), Sequence::State::kWaiting);
  EXPECT_EQ(sequence.num_tokens(), 4);
  EXPECT_EQ(sequence.num_prompt_tokens(), 3);
  EXPECT_EQ(sequence.num_scheduled(), 0);
  EXPECT_EQ(sequence.num_samples_in_flight(), 0);
  EXPECT_EQ(sequence.num_restarts(), 1);
  EXPECT_EQ(sequence.num_schedulable(), 4);
  EXPECT_EQ(sequence.epoch(), 3u);

  sequence.Restart(Placement(), 4);
  EXPECT_EQ(sequence.epoch(), 4u);
  sequence.Start();
  EXPECT_TRUE(sequence.Schedule(4));
  sequence.CommitSample(4, 5);
  EXPECT_EQ(sequence.num_generated(), 2);
}

TEST(SequenceDeathTest, MisuseIsFatal) {
  EXPECT_DEATH(MakeSequence({}, 1), "invariant");
  EXPECT_DEATH(MakeSequence({1}, 0), "invariant");
  Sequence sequence = MakeSequence({1}, 1);
  EXPECT_DEATH(sequence.Schedule(1), "invariant");  // not started
  sequence.Start();
  EXPECT_DEATH(sequence.Schedule(2), "invariant");
  sequence.Finish(v1::FINISH_REASON_CANCELLED);
  EXPECT_DEATH(sequence.Finish(v1::FINISH_REASON_STOP), "invariant");
}

}  // namespace
}  // namespace switchyard
