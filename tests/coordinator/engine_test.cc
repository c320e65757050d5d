// Requests through the engine, and its end; switches of the default placement
// are in engine_switch_test.cc.
#include "coordinator/engine.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "coordinator/request.h"
#include "tests/coordinator/engine_fixture.h"

namespace switchyard {
namespace {

INSTANTIATE_TEST_SUITE_P(Loops, EngineTest, ::testing::Values(false, true),
                         [](const auto& info) {
                           return info.param ? "Overlapped" : "Simple";
                         });

TEST_P(EngineTest, OneRequest) {
  Start();
  RecordingSink sink;
  Submit(MakeRequest({1, 2, 3}, 20), &sink);
  sink.WaitUntilOver();
  const std::vector<uint32_t> expected =
      Continuation({1, 2, 3}, Placement::Main(model_.config), 20);
  EXPECT_EQ(sink.tokens(), expected);
  EXPECT_EQ(sink.text(), model_.tokenizer->Decode(expected, true));
  const v1::GenerateComplete complete = sink.complete();
  EXPECT_EQ(complete.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(complete.prompt_tokens(), 3);
  EXPECT_EQ(complete.completion_tokens(), 20);
  EXPECT_EQ(complete.epoch(), 1);
  EXPECT_EQ(complete.placement().names_size(), kNumLayers);
  ExpectNothingHeld();
}

TEST_P(EngineTest, ACrowdGetsWhatEachWouldGetAlone) {
  constexpr int kNumRequests = 64;
  const CacheSpec spec = MakeSpec(model_.config);
  // Room for the longest, and little more.
  Start(spec.SequenceBytes(Uniform(kAttention), 250));
  std::mt19937 random(20);
  struct Case {
    v1::GenerateRequest request;
    std::vector<uint32_t> expected;
    size_t cancel_at = 0;  // 0: not
    uint64_t handle = 0;
    absl::Notification submitted;
    RecordingSink sink;
  };
  std::vector<std::unique_ptr<Case>> cases;
  for (int i = 0; i < kNumRequests; ++i) {
    auto one = std::make_unique<Case>();
    std::vector<uint32_t> prompt(1 + random() % 40);
    for (uint32_t& token : prompt) token = random() % kTinyVocabSize;
    const uint32_t max_tokens = 1 + random() % 200;
    std::vector<int32_t> mixers;
    std::vector<std::string> names;
    for (int layer = 0; layer < kNumLayers; ++layer) {
      mixers.push_back(random() % kNumSupernetMixers);
      names.push_back(model_.config.layers[layer].mixers[mixers.back()].name);
    }
    one->request = MakeRequest(prompt, max_tokens);
    *one->request.mutable_placement() = Mixers(names);
    one->expected =
        Continuation(prompt, MakePlacement(model_.config, mixers), max_tokens);
    if (random() % 3 == 0) one->cancel_at = 1 + random() % max_tokens;
    cases.push_back(std::move(one));
  }
  group_->Hold();
  for (auto& one : cases) {
    Case* c = one.get();
    if (c->cancel_at > 0) {
      c->sink.on_tokens = [this, c](size_t count) {
        if (count != c->cancel_at) return;
        c->submitted.WaitForNotification();
        engine_->Cancel(c->handle);
      };
    }
    c->handle = Submit(c->request, &c->sink);
    c->submitted.Notify();
  }
  group_->Release();
  for (auto& one : cases) {
    one->sink.WaitUntilOver();
    EXPECT_TRUE(one->sink.error().ok()) << one->sink.error();
    std::vector<uint32_t> tokens = one->sink.tokens();
    if (one->cancel_at == 0) {
      EXPECT_EQ(tokens, one->expected);
    } else {
      ASSERT_GE(tokens.size(), one->cancel_at);
      one->expected.resize(tokens.size());
      EXPECT_EQ(tokens, one->expected);
    }
    EXPECT_EQ(one->sink.complete().completion_tokens(), tokens.size());
  }
  EXPECT_GT(engine_->load()->num_preemptions(), 0);
  ExpectNothingHeld();
  EXPECT_TRUE(lost().empty());
}

TEST_P(EngineTest, CancellingFreesTheCacheWithinAStep) {
  Start();
  group_->Hold();
  RecordingSink sink;
  const uint64_t handle = Submit(MakeRequest({1, 2, 3}, 100), &sink);
  ASSERT_TRUE(group_->Allow(2));
  engine_->Cancel(handle);
  ASSERT_TRUE(group_->Allow(1));
  sink.WaitUntilOver();
  EXPECT_EQ(sink.complete().finish_reason(), v1::FINISH_REASON_CANCELLED);
  EXPECT_EQ(sink.complete().completion_tokens(), sink.tokens().size());
  EXPECT_LE(sink.tokens().size(), 3);
  group_->Release();
  ExpectNothingHeld();
  while (group_->num_sequences() > 0) ASSERT_TRUE(engine_->load().ok());
}

TEST_P(EngineTest, AFullQueueRefusesWithARetryDelay) {
  options_.scheduler.max_num_seqs = 1;
  options_.max_waiting_seqs = 1;
  Start();
  group_->Hold();
  RecordingSink running, waiting, refused;
  Submit(MakeRequest({1}, 10), &running);
  Submit(MakeRequest({2}, 10), &waiting);
  Submit(MakeRequest({3}, 10), &refused);
  ASSERT_TRUE(group_->Allow(1));
  refused.WaitUntilOver();
  EXPECT_EQ(refused.error().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(refused.error()
                  .GetPayload("type.googleapis.com/google.rpc.RetryInfo")
                  .has_value());
  EXPECT_TRUE(running.admitted());
  EXPECT_FALSE(waiting.admitted());
  group_->Release();
  running.WaitUntilOver();
  waiting.WaitUntilOver();
  EXPECT_EQ(waiting.tokens().size(), 10);
}

TEST_P(EngineTest, ALiveRequestIdIsRefusedAndALapsedOneIsNot) {
  Start();
  group_->Hold();
  v1::GenerateRequest request = MakeRequest({1}, 5);
  request.set_request_id("mine");
  RecordingSink first, second, third;
  Submit(request, &first);
  Submit(request, &second);
  group_->Release();
  second.WaitUntilOver();
  first.WaitUntilOver();
  EXPECT_EQ(second.error().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_NE(second.error().message().find("mine"), std::string::npos);
  Submit(request, &third);
  third.WaitUntilOver();
  EXPECT_EQ(third.tokens(), first.tokens());
}

TEST_P(EngineTest, BadPlacementsAreRefusedWhileOthersGoOn) {
  Start();
  RecordingSink fine, unknown_preset, unknown_mixer, short_list;
  Submit(MakeRequest({1}, 50), &fine);
  v1::GenerateRequest request = MakeRequest({1}, 5);
  request.mutable_placement()->set_preset("nonsense");
  Submit(request, &unknown_preset);
  *request.mutable_placement() = Mixers({"gdn", "gdn", "mambo"});
  Submit(request, &unknown_mixer);
  *request.mutable_placement() = Mixers({"gdn"});
  Submit(request, &short_list);
  for (RecordingSink* sink :
       {&fine, &unknown_preset, &unknown_mixer, &short_list}) {
    sink->WaitUntilOver();
  }
  EXPECT_EQ(unknown_preset.error().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(unknown_mixer.error().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(short_list.error().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(fine.tokens(),
            Continuation({1}, Placement::Main(model_.config), 50));
}

TEST_P(EngineTest, StopTokensEndTheStreamAndLeaveNoText) {
  Start();
  const std::vector<uint32_t> all =
      Continuation({9, 9}, Placement::Main(model_.config), 60);
  const uint32_t stop = all[30];
  const size_t first = std::find(all.begin(), all.end(), stop) - all.begin();
  v1::GenerateRequest request = MakeRequest({9, 9}, 60);
  request.mutable_sampling()->add_stop_token_ids(stop);
  RecordingSink sink;
  Submit(request, &sink);
  sink.WaitUntilOver();
  EXPECT_EQ(sink.tokens(),
            std::vector<uint32_t>(all.begin(), all.begin() + first + 1));
  EXPECT_EQ(sink.text(), model_.tokenizer->Decode({all.data(), first}, true));
  EXPECT_EQ(sink.complete().finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(sink.complete().completion_tokens(), first + 1);
  ExpectNothingHeld();
}

TEST_P(EngineTest, StopStringsCutTheTextAndCountWhatWasGenerated) {
  Start();
  const std::vector<uint32_t> all =
      Continuation({4}, Placement::Main(model_.config), 200);
  const std::string text = model_.tokenizer->Decode(all, true);
  // A stretch of plain characters somewhere in the noise.
  const size_t at = text.find_first_of("abcdefghijklmnopqrstuvwxyz", 40);
  ASSERT_NE(at, std::string::npos);
  const std::string stop = text.substr(at, 1);
  v1::GenerateRequest request = MakeRequest({4}, 200);
  request.mutable_sampling()->add_stop(stop);
  RecordingSink sink;
  Submit(request, &sink);
  sink.WaitUntilOver();
  EXPECT_EQ(sink.text(), text.substr(0, text.find(stop)));
  EXPECT_EQ(sink.complete().finish_reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(sink.complete().completion_tokens(), sink.tokens().size());
  EXPECT_EQ(model_.tokenizer->Decode(sink.tokens(), true)
                .find(stop, sink.text().size()),
            sink.text().size());
  ExpectNothingHeld();
}

TEST_P(EngineTest, LogprobsOfTokensAndOfAChunkedPrompt) {
  Start();
  std::vector<uint32_t> prompt;
  for (uint32_t i = 0; i < 70; ++i) prompt.push_back(i);  // three chunks
  v1::GenerateRequest request = MakeRequest(prompt, 5);
  request.mutable_sampling()->set_logprobs(1);
  request.mutable_sampling()->set_prompt_logprobs(0);
  RecordingSink sink;
  Submit(request, &sink);
  sink.WaitUntilOver();
  std::vector<float> expected;
  for (const uint32_t token : sink.tokens()) {
    expected.push_back(FakeGroup::LogprobOf(token));
  }
  EXPECT_EQ(sink.logprobs(), expected);
  const v1::GenerateComplete complete = sink.complete();
  ASSERT_EQ(complete.prompt_logprobs_size(), 70);
  EXPECT_EQ(complete.prompt_logprobs(0).ByteSizeLong(), 0);
  for (int i = 1; i < 70; ++i) {
    EXPECT_EQ(complete.prompt_logprobs(i).logprob(), FakeGroup::LogprobOf(i));
  }
}

TEST_P(EngineTest, TheWholeCacheBoundsACompletion) {
  const CacheSpec spec = MakeSpec(model_.config);
  Start(spec.SequenceBytes(Uniform(kAttention), 40));
  RecordingSink endless, hopeless;
  Submit(MakeRequest({1, 2, 3}, 4000), &endless);
  endless.WaitUntilOver();
  EXPECT_EQ(endless.complete().finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(endless.tokens().size(), 40 - 3 + 1);
  Submit(MakeRequest(std::vector<uint32_t>(50, 1), 4), &hopeless);
  hopeless.WaitUntilOver();
  // Nothing to retry, as it would be with a full queue.
  EXPECT_EQ(hopeless.error().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(hopeless.error(),
            absl::InvalidArgumentError(absl::StrCat(
                "prompt: its 50 tokens take ",
                spec.SequenceBytes(Uniform(kAttention), 50),
                " bytes of cache under its placement; the whole cache has ",
                spec.SequenceBytes(Uniform(kAttention), 40),
                ", enough for 40 tokens: shorten it, or name a placement that "
                "keeps less")));
}

TEST_P(EngineTest, LogitsThatAreNotFiniteEndTheirStreamAlone) {
  Start();
  const std::vector<uint32_t> prompt = {1, 2, 3};
  const std::vector<uint32_t> whole =
      Continuation(prompt, Placement::Main(model_.config), 40);
  group_->Spoil(1, 10);  // the eighth token's
  group_->Hold();
  RecordingSink failed, neighbour;
  Submit(MakeRequest(prompt, 40), &failed);
  Submit(MakeRequest({7, 8}, 40), &neighbour);
  group_->Release();
  failed.WaitUntilOver();
  neighbour.WaitUntilOver();
  EXPECT_EQ(failed.error(),
            absl::InternalError(
                "the model's logits for token 9 of this request are not finite "
                "numbers (placement attention,attention,attention): the "
                "checkpoint's weights, or its dtype, are likely at fault"));
  EXPECT_EQ(failed.tokens(),
            std::vector<uint32_t>(whole.begin(), whole.begin() + 8));
  EXPECT_TRUE(neighbour.error().ok()) << neighbour.error();
  EXPECT_EQ(neighbour.tokens(),
            Continuation({7, 8}, Placement::Main(model_.config), 40));
  EXPECT_EQ(IdleLoad().num_generated_tokens(), 48u);
  ExpectNothingHeld();

  // At once, and by means of the request perhaps.
  group_->Spoil(3, 0);
  RecordingSink suspect, again;
  v1::GenerateRequest request = MakeRequest(prompt, 40);
  request.mutable_sampling()->set_min_tokens(2);
  Submit(request, &suspect);
  suspect.WaitUntilOver();
  EXPECT_TRUE(suspect.tokens().empty());
  EXPECT_NE(suspect.error().message().find(
                "for token 1 of this request are not finite numbers"),
            absl::string_view::npos);
  EXPECT_NE(suspect.error().message().find("min_tokens"),
            absl::string_view::npos);

  Submit(MakeRequest(prompt, 40), &again);
  again.WaitUntilOver();
  EXPECT_EQ(again.tokens(), whole);
  ExpectNothingHeld();
  EXPECT_TRUE(lost().empty());
}

TEST_P(EngineTest, ALostGroupEndsEveryStreamAtOnce) {
  Start();
  group_->Hold();
  options_.scheduler.max_num_seqs = 2;
  std::vector<std::unique_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 5; ++i) {
    sinks.push_back(std::make_unique<RecordingSink>());
    Submit(MakeRequest({1}, 100), sinks.back().get());
  }
  ASSERT_TRUE(group_->Allow(3));
  const absl::Status why =
      absl::UnavailableError("rank 1 (fake:2) left in step 4");
  group_->Lose(why);
  for (const auto& sink : sinks) {
    sink->WaitUntilOver();
    EXPECT_EQ(sink->error(), why);
  }
  RecordingSink late;
  Submit(MakeRequest({1}, 10), &late);
  late.WaitUntilOver();
  EXPECT_EQ(late.error(), why);
  EXPECT_EQ(
      engine_
          ->SetDefaultPlacement(Mixers({"gdn", "gdn", "gdn"}),
                                v1::IN_FLIGHT_FINISH, [] { return false; })
          .status(),
      why);
  EXPECT_EQ(lost(), std::vector<absl::Status>{why});
}

TEST_P(EngineTest, AGroupLostWhileIdleIsNoticed) {
  Start();
  const absl::Status why = absl::UnavailableError("rank 0 (fake:1) left");
  group_->Lose(why);
  RecordingSink late;
  Submit(MakeRequest({1}, 10), &late);
  late.WaitUntilOver();
  EXPECT_EQ(late.error(), why);
  EXPECT_EQ(lost(), std::vector<absl::Status>{why});
}

TEST_P(EngineTest, AGroupThatWasToldToStopIsNotLost) {
  Start();
  group_->Hold();
  RecordingSink running, late;
  Submit(MakeRequest({1}, 1000), &running);
  ASSERT_TRUE(group_->Allow(2));
  absl::Status end = absl::UnavailableError("the server is shutting down");
  end.SetPayload(kShutDownPayload, absl::Cord());
  group_->Lose(end);
  running.WaitUntilOver();
  EXPECT_EQ(running.error(),
            absl::UnavailableError("the server is shutting down"));
  Submit(MakeRequest({3}, 10), &late);
  late.WaitUntilOver();
  EXPECT_EQ(late.error().code(), absl::StatusCode::kUnavailable);
  engine_->Stop();
  EXPECT_EQ(lost(), std::vector<absl::Status>());
}

TEST_P(EngineTest, DrainingLetsRunningStreamsEndAndRefusesTheRest) {
  options_.scheduler.max_num_seqs = 1;
  Start();
  group_->Hold();
  RecordingSink running, waiting, late;
  Submit(MakeRequest({1}, 10), &running);
  Submit(MakeRequest({2}, 10), &waiting);
  ASSERT_TRUE(group_->Allow(2));
  absl::Notification idle;
  engine_->Drain([&idle] { idle.Notify(); });
  Submit(MakeRequest({3}, 10), &late);
  group_->Release();
  idle.WaitForNotification();
  EXPECT_EQ(running.tokens().size(), 10);
  EXPECT_EQ(waiting.error().code(), absl::StatusCode::kUnavailable);
  late.WaitUntilOver();
  EXPECT_EQ(late.error().code(), absl::StatusCode::kUnavailable);
}

TEST_P(EngineTest, StoppingEndsEveryStreamAsUnavailable) {
  options_.scheduler.max_num_seqs = 1;
  Start();
  group_->Hold();
  RecordingSink running, waiting, late;
  Submit(MakeRequest({1}, 1000), &running);
  Submit(MakeRequest({2}, 10), &waiting);
  ASSERT_TRUE(group_->Allow(2));
  group_->Release();
  engine_->Stop();
  EXPECT_EQ(running.error().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(waiting.error().code(), absl::StatusCode::kUnavailable);
  Submit(MakeRequest({3}, 10), &late);
  EXPECT_EQ(late.error().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(engine_->load().status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace switchyard
