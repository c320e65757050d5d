// Switches of the default placement, while requests run and wait.
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "coordinator/engine.h"
#include "tests/coordinator/engine_fixture.h"

namespace switchyard {
namespace {

class SwitchTest : public EngineTest {
 protected:
  static constexpr uint32_t kLong = 3000;

  absl::StatusOr<PlacementSwitch> Switch(
      const std::string& mixer, v1::InFlight in_flight,
      const std::function<bool()>& cancelled = [] { return false; }) {
    return engine_->SetDefaultPlacement(
        Mixers(std::vector<std::string>(kNumLayers, mixer)), in_flight,
        cancelled);
  }

  // Switches while `group_` is held, letting single steps go until it is done.
  absl::StatusOr<PlacementSwitch> SwitchStepByStep(const std::string& mixer,
                                                   v1::InFlight in_flight) {
    absl::StatusOr<PlacementSwitch> result;
    absl::Notification done;
    std::thread switcher([&] {
      result = Switch(mixer, in_flight);
      done.Notify();
    });
    while (!done.HasBeenNotified() && group_->Allow(1)) {
      std::this_thread::yield();
    }
    switcher.join();
    return result;
  }

  // The number of `tokens` that follow `before`'s rule; the rest follow
  // `after`'s.
  size_t SwitchedAt(std::vector<uint32_t> prompt,
                    const std::vector<uint32_t>& tokens,
                    const Placement& before, const Placement& after) {
    size_t at = tokens.size();
    for (size_t i = 0; i < tokens.size(); ++i) {
      const uint32_t old_token =
          StrictWorker::Next(prompt, before, model_.config.vocab_size);
      const uint32_t new_token =
          StrictWorker::Next(prompt, after, model_.config.vocab_size);
      if (tokens[i] != old_token) at = std::min(at, i);
      if (i >= at) {
        EXPECT_EQ(tokens[i], new_token) << "token " << i;
      }
      prompt.push_back(tokens[i]);
    }
    return at;
  }
};

INSTANTIATE_TEST_SUITE_P(Loops, SwitchTest, ::testing::Values(false, true),
                         [](const auto& info) {
                           return info.param ? "Overlapped" : "Simple";
                         });

TEST_P(SwitchTest, FinishLeavesRunningSequencesAlone) {
  Start();
  group_->Hold();
  RecordingSink before, after;
  Submit(MakeRequest({1}, kLong), &before);
  ASSERT_TRUE(group_->Allow(3));
  const auto done = SwitchStepByStep("gdn", v1::IN_FLIGHT_FINISH);
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_EQ(done->epoch, 2);
  EXPECT_EQ(done->num_recomputed, 0);
  EXPECT_FALSE(before.over());
  group_->Release();
  Submit(MakeRequest({1}, 20), &after);
  before.WaitUntilOver();
  after.WaitUntilOver();
  EXPECT_EQ(before.tokens(), Continuation({1}, Uniform(kAttention), kLong));
  EXPECT_EQ(before.complete().epoch(), 1);
  EXPECT_EQ(after.tokens(), Continuation({1}, Uniform(kGdn), 20));
  EXPECT_EQ(after.complete().epoch(), 2);
  EXPECT_EQ(group_->committed_epochs(), std::vector<uint64_t>{2});
  ExpectNothingHeld();
}

TEST_P(SwitchTest, RecomputeContinuesUnderTheNewPlacement) {
  options_.scheduler.max_num_seqs = 2;
  Start();
  group_->Hold();
  RecordingSink on_default, named, waiting;
  Submit(MakeRequest({1, 2}, kLong), &on_default);
  v1::GenerateRequest request = MakeRequest({3}, kLong);
  *request.mutable_placement() = Mixers({"kda", "kda", "kda"});
  Submit(request, &named);
  Submit(MakeRequest({4}, 20), &waiting);
  ASSERT_TRUE(group_->Allow(5));
  const auto done = SwitchStepByStep("gdn", v1::IN_FLIGHT_RECOMPUTE);
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_EQ(done->num_recomputed, 1);
  EXPECT_GE(done->pause, absl::ZeroDuration());
  group_->Release();
  on_default.WaitUntilOver();
  named.WaitUntilOver();
  waiting.WaitUntilOver();
  ASSERT_EQ(on_default.tokens().size(), kLong);
  const size_t at = SwitchedAt({1, 2}, on_default.tokens(), Uniform(kAttention),
                               Uniform(kGdn));
  EXPECT_GE(at, 3);
  EXPECT_LT(at, kLong);
  EXPECT_EQ(on_default.complete().epoch(), 2);
  EXPECT_EQ(on_default.complete().placement().names(0), "gdn");
  EXPECT_EQ(named.tokens(), Continuation({3}, Uniform(kKda), kLong));
  EXPECT_EQ(waiting.tokens(), Continuation({4}, Uniform(kGdn), 20));
  ExpectNothingHeld();
}

TEST_P(SwitchTest, RecomputeIsRefusedWhenASequenceWouldNotFit) {
  const CacheSpec spec = MakeSpec(model_.config);
  Start(spec.SequenceBytes(Uniform(kAttention), 100));
  ASSERT_TRUE(Switch("gdn", v1::IN_FLIGHT_FINISH).ok());
  group_->Hold();
  RecordingSink sink;
  Submit(MakeRequest({1}, kLong), &sink);
  ASSERT_TRUE(group_->Allow(2));
  const auto done = SwitchStepByStep("attention", v1::IN_FLIGHT_RECOMPUTE);
  EXPECT_EQ(done.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(group_->num_aborted(), 1);
  EXPECT_EQ(engine_->placements()->epoch(), 2);
  group_->Release();
  sink.WaitUntilOver();
  EXPECT_EQ(sink.tokens(), Continuation({1}, Uniform(kGdn), kLong));
}

TEST_P(SwitchTest, DrainWaitsForTheDefaultsSequencesAndHoldsItsNewOnes) {
  Start();
  group_->Hold();
  RecordingSink running, held, named;
  Submit(MakeRequest({1}, 40), &running);
  ASSERT_TRUE(group_->Allow(2));
  absl::Notification draining;
  absl::StatusOr<PlacementSwitch> result;
  std::thread switcher([&] {
    int num_asked = 0;  // first whether it takes its turn at all
    result = Switch("gdn", v1::IN_FLIGHT_DRAIN, [&] {
      if (++num_asked == 2) draining.Notify();
      return false;
    });
  });
  while (!draining.HasBeenNotified() && engine_->placements()->epoch() == 1) {
    // The drain is announced between two steps.
    ASSERT_TRUE(group_->Allow(1));
    draining.WaitForNotificationWithTimeout(absl::Seconds(10));
  }
  Submit(MakeRequest({2}, 10), &held);
  v1::GenerateRequest request = MakeRequest({3}, 10);
  request.mutable_placement()->set_preset("all-kda");
  Submit(request, &named);
  ASSERT_TRUE(group_->Allow(16));
  named.WaitUntilOver();  // admitted during the drain
  EXPECT_FALSE(held.admitted());
  EXPECT_FALSE(running.over());
  EXPECT_EQ(engine_->placements()->epoch(), 1);
  group_->Release();
  switcher.join();
  ASSERT_TRUE(result.ok()) << result.status();
  running.WaitUntilOver();
  held.WaitUntilOver();
  EXPECT_EQ(running.tokens(), Continuation({1}, Uniform(kAttention), 40));
  EXPECT_EQ(held.tokens(), Continuation({2}, Uniform(kGdn), 10));
  EXPECT_EQ(held.complete().epoch(), 2);
  EXPECT_EQ(named.tokens(), Continuation({3}, Uniform(kKda), 10));
}

TEST_P(SwitchTest, ADrainWhoseCallerLeavesChangesNothing) {
  Start();
  RecordingSink running, held;
  Submit(MakeRequest({1}, kLong), &running);
  running.WaitForTokens(2);
  group_->Hold();
  std::thread switcher([&] {
    const auto result = Switch("gdn", v1::IN_FLIGHT_DRAIN, [] { return true; });
    if (!result.ok()) {
      EXPECT_EQ(result.status().code(), absl::StatusCode::kCancelled);
    }
  });
  group_->Release();
  switcher.join();
  Submit(MakeRequest({2}, 10), &held);
  held.WaitUntilOver();
  running.WaitUntilOver();
  EXPECT_EQ(running.tokens(), Continuation({1}, Uniform(kAttention), kLong));
  EXPECT_EQ(held.tokens().size(), 10);
}

TEST_P(SwitchTest, WhoeverLeavesWhileAnotherChangeIsUnderWayChangesNothing) {
  Start();
  group_->Hold();
  RecordingSink running;
  Submit(MakeRequest({1}, kLong), &running);
  ASSERT_TRUE(group_->Allow(3));
  std::atomic<bool> leave{false};
  absl::Notification drains, knows;
  std::thread switcher([&] {
    int num_asked = 0;  // first whether it takes its turn at all
    const auto called_off = Switch("gdn", v1::IN_FLIGHT_DRAIN, [&] {
      if (++num_asked == 2) drains.Notify();
      if (!leave.load()) return false;
      knows.Notify();
      return true;
    });
    EXPECT_EQ(called_off.status().code(), absl::StatusCode::kCancelled);
  });
  while (!drains.HasBeenNotified() && group_->Allow(1)) {
    std::this_thread::yield();
  }
  const auto gone = [] { return true; };
  v1::Preset preset;
  preset.set_name("mixed");
  for (const char* name : {"gdn", "attention", "gdn"}) {
    preset.mutable_placement()->add_names(name);
  }
  EXPECT_EQ(engine_->DefinePreset(preset, gone).status().code(),
            absl::StatusCode::kCancelled);
  EXPECT_EQ(engine_->DeletePreset("all-gdn", gone).status().code(),
            absl::StatusCode::kCancelled);
  EXPECT_EQ(Switch("kda", v1::IN_FLIGHT_FINISH, gone).status().code(),
            absl::StatusCode::kCancelled);
  leave.store(true);
  knows.WaitForNotification();
  group_->Release();
  switcher.join();
  EXPECT_EQ(engine_->placements()->epoch(), 1);
  EXPECT_EQ(engine_->placements()->presets().count("mixed"), 0);
  EXPECT_EQ(engine_->placements()->presets().count("all-gdn"), 1);
  // The next one gets its turn.
  EXPECT_EQ(engine_->DefinePreset(preset).value(), 2);
  running.WaitUntilOver();
}

TEST_P(SwitchTest, WhoeverLeavesWhileTheRanksPrepareChangesNothing) {
  Start();
  int num_asked = 0;  // there when it is its turn, gone when they are ready
  const auto done = Switch("gdn", v1::IN_FLIGHT_FINISH,
                           [&num_asked] { return ++num_asked > 1; });
  EXPECT_EQ(done.status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(engine_->placements()->epoch(), 1);
  const auto next = Switch("gdn", v1::IN_FLIGHT_FINISH);
  ASSERT_TRUE(next.ok()) << next.status();
  EXPECT_EQ(next->epoch, 2);
}

TEST_P(SwitchTest, ARefusedPrepareChangesNothing) {
  Start();
  RecordingSink running, after;
  Submit(MakeRequest({1}, kLong), &running);
  running.WaitForTokens(3);
  group_->RefusePrepare(absl::AbortedError("rank 1 (fake:2): no memory"));
  const auto done = Switch("gdn", v1::IN_FLIGHT_RECOMPUTE);
  EXPECT_EQ(done.status(), absl::AbortedError("rank 1 (fake:2): no memory"));
  EXPECT_EQ(engine_->placements()->epoch(), 1);
  Submit(MakeRequest({1}, 10), &after);
  running.WaitUntilOver();
  after.WaitUntilOver();
  EXPECT_EQ(running.tokens(), Continuation({1}, Uniform(kAttention), kLong));
  EXPECT_EQ(after.tokens(), Continuation({1}, Uniform(kAttention), 10));
  EXPECT_TRUE(group_->committed_epochs().empty());
}

TEST_P(SwitchTest, BadTargetsAreRefusedBeforeAnyRankHears) {
  Start();
  v1::Placement unknown;
  unknown.set_preset("unknown");
  const auto never = [] { return false; };
  EXPECT_EQ(engine_->SetDefaultPlacement(unknown, v1::IN_FLIGHT_FINISH, never)
                .status()
                .code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(engine_->SetDefaultPlacement({}, v1::IN_FLIGHT_FINISH, never)
                .status()
                .code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Switch("mambo", v1::IN_FLIGHT_FINISH).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(group_->num_aborted(), 0);
}

TEST_P(SwitchTest, PresetsComeAndGoUnderNewEpochs) {
  Start();
  v1::Preset preset;
  preset.set_name("mixed");
  for (const char* name : {"gdn", "attention", "kda"}) {
    preset.mutable_placement()->add_names(name);
  }
  EXPECT_EQ(engine_->DefinePreset(preset).value(), 2);
  v1::GenerateRequest request = MakeRequest({5}, 10);
  request.mutable_placement()->set_preset("mixed");
  RecordingSink sink, gone;
  Submit(request, &sink);
  sink.WaitUntilOver();
  EXPECT_EQ(
      sink.tokens(),
      Continuation({5}, MakePlacement(model_.config, {kGdn, kAttention, kKda}),
                   10));
  EXPECT_EQ(engine_->DeletePreset("mixed").value(), 3);
  EXPECT_EQ(engine_->placements()->epoch(), 3);
  EXPECT_EQ(engine_->DeletePreset("mixed").status().code(),
            absl::StatusCode::kNotFound);
  Submit(request, &gone);
  gone.WaitUntilOver();
  EXPECT_EQ(gone.error().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace switchyard
