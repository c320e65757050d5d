#include "coordinator/engine.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "coordinator/request.h"
#include "tests/coordinator/fake_group.h"
#include "tests/coordinator/strict_worker.h"
#include "tests/coordinator/supernet.h"
#include "tests/coordinator/tiny_tokenizer.h"

namespace switchyard {
namespace {

constexpr int kNumLayers = 3;
constexpr int64_t kLargeArena = int64_t{64} << 20;

// Remembers all that a stream says, and checks the order in which it says it.
class RecordingSink : public RequestSink {
 public:
  // Called with the number of tokens so far, on the engine's thread.
  std::function<void(size_t)> on_tokens;

  void OnAdmitted() override {
    absl::MutexLock lock(&mutex_);
    EXPECT_FALSE(admitted_ || over_);
    admitted_ = true;
  }
  void OnTokens(const TokenDelta& delta) override {
    size_t size = 0;
    {
      absl::MutexLock lock(&mutex_);
      EXPECT_TRUE(admitted_ && !over_);
      tokens_.insert(tokens_.end(), delta.token_ids.begin(),
                     delta.token_ids.end());
      text_.append(delta.text.data(), delta.text.size());
      if (delta.logprobs != nullptr) {
        for (size_t i = 0; i < delta.token_ids.size(); ++i) {
          logprobs_.push_back(delta.logprobs[i].logprob());
        }
      }
      size = tokens_.size();
    }
    if (on_tokens) on_tokens(size);
  }
  void OnComplete(v1::GenerateComplete complete) override {
    absl::MutexLock lock(&mutex_);
    EXPECT_TRUE(admitted_ && !over_);
    complete_ = std::move(complete);
    over_ = true;
  }
  void OnError(const absl::Status& status) override {
    absl::MutexLock lock(&mutex_);
    EXPECT_FALSE(over_);
    error_ = status;
    over_ = true;
  }

  void WaitUntilOver() {
    absl::MutexLock lock(&mutex_);
    ASSERT_TRUE(
        mutex_.AwaitWithTimeout(absl::Condition(&over_), absl::Minutes(1)));
  }
  void WaitForTokens(size_t count) {
    absl::MutexLock lock(&mutex_);
    const auto enough = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return tokens_.size() >= count || over_;
    };
    ASSERT_TRUE(
        mutex_.AwaitWithTimeout(absl::Condition(&enough), absl::Minutes(1)));
  }

  bool admitted() const { return Locked(admitted_); }
  bool over() const { return Locked(over_); }
  std::vector<uint32_t> tokens() const { return Locked(tokens_); }
  std::string text() const { return Locked(text_); }
  std::vector<float> logprobs() const { return Locked(logprobs_); }
  absl::Status error() const { return Locked(error_); }
  v1::GenerateComplete complete() const { return Locked(complete_); }

 private:
  template <typename T>
  T Locked(const T& member) const {
    absl::MutexLock lock(&mutex_);
    return member;
  }

  mutable absl::Mutex mutex_;
  bool admitted_ = false;
  bool over_ = false;
  std::vector<uint32_t> tokens_;
  std::string text_;
  std::vector<float> logprobs_;
  absl::Status error_;
  v1::GenerateComplete complete_;
};

// Both loops pass every test.
class EngineTest : public ::testing::TestWithParam<bool> {
 protected:
  EngineTest() {
    model_.name = "made-up";
    model_.config = MakeSupernet(kNumLayers);
    model_.config.vocab_size = kTinyVocabSize;
    model_.config.eos_token_ids = {kTinyEos};
    model_.tokenizer = Tokenizer::FromJson(TinyTokenizerJson().dump()).value();
    model_.max_context_tokens = 4096;
    options_.async_scheduling = GetParam();
    options_.scheduler.max_num_seqs = 16;
    options_.scheduler.max_num_batched_tokens = 24;
  }

  ~EngineTest() override {
    if (group_ == nullptr) return;
    group_->Release();
    engine_->Stop();
    EXPECT_EQ(group_->complaints(), std::vector<std::string>());
  }

  void Start(int64_t arena_bytes = kLargeArena) {
    const CacheSpec spec = MakeSpec(model_.config);
    group_ = std::make_unique<FakeGroup>(&model_.config, spec, arena_bytes);
    engine_ = std::make_unique<Engine>(
        options_, &model_,
        PlacementTable::Create(&model_.config, {}, "").value(), spec,
        group_.get(), [this](const absl::Status& why) {
          absl::MutexLock lock(&mutex_);
          lost_.push_back(why);
        });
  }

  v1::GenerateRequest Request(std::vector<uint32_t> prompt,
                              uint32_t max_tokens) {
    v1::GenerateRequest request;
    request.mutable_token_ids()->mutable_ids()->Add(prompt.begin(),
                                                    prompt.end());
    request.mutable_sampling()->set_max_tokens(max_tokens);
    request.mutable_sampling()->set_ignore_eos(true);
    return request;
  }

  uint64_t Submit(const v1::GenerateRequest& request, RequestSink* sink) {
    const std::string id = absl::StrCat("assigned-", ++num_requests_);
    return engine_->Submit(ParseGenerateRequest(request, model_, id, 7).value(),
                           sink);
  }

  v1::Placement Mixers(const std::vector<std::string>& names) {
    v1::Placement placement;
    *placement.mutable_mixers()->mutable_names() = {names.begin(), names.end()};
    return placement;
  }
  Placement Uniform(int32_t mixer) {
    return MakePlacement(model_.config,
                         std::vector<int32_t>(kNumLayers, mixer));
  }

  // What a request alone would get.
  std::vector<uint32_t> Continuation(std::vector<uint32_t> tokens,
                                     const Placement& placement, size_t count) {
    std::vector<uint32_t> continuation;
    while (continuation.size() < count) {
      tokens.push_back(
          StrictWorker::Next(tokens, placement, model_.config.vocab_size));
      continuation.push_back(tokens.back());
    }
    return continuation;
  }

  v1::Load IdleLoad() {
    v1::Load load;
    do {
      load = engine_->load().value();
    } while (load.running_sequences() + load.waiting_sequences() > 0);
    return load;
  }
  void ExpectNothingHeld() {
    const v1::Load load = IdleLoad();
    EXPECT_EQ(load.running_sequences(), 0);
    EXPECT_EQ(load.waiting_sequences(), 0);
    EXPECT_EQ(load.cache_used_bytes(), 0);
    EXPECT_EQ(load.num_blocks_held(), 0);
    EXPECT_EQ(load.num_slots_held(), 0);
  }
  std::vector<absl::Status> lost() {
    absl::MutexLock lock(&mutex_);
    return lost_;
  }

  ServedModel model_;
  EngineOptions options_;
  std::unique_ptr<FakeGroup> group_;
  std::unique_ptr<Engine> engine_;
  absl::Mutex mutex_;
  std::vector<absl::Status> lost_;
  int num_requests_ = 0;
};

INSTANTIATE_TEST_SUITE_P(Loops, EngineTest, ::testing::Values(false, true),
                         [](const auto& info) {
                           return info.param ? "Overlapped" : "Simple";
                         });

TEST_P(EngineTest, OneRequest) {
  Start();
  RecordingSink sink;
  Submit(Request({1, 2, 3}, 20), &sink);
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
    one->request = Request(prompt, max_tokens);
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
  const uint64_t handle = Submit(Request({1, 2, 3}, 100), &sink);
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
  Submit(Request({1}, 10), &running);
  Submit(Request({2}, 10), &waiting);
  Submit(Request({3}, 10), &refused);
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
  v1::GenerateRequest request = Request({1}, 5);
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
  Submit(Request({1}, 50), &fine);
  v1::GenerateRequest request = Request({1}, 5);
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
  v1::GenerateRequest request = Request({9, 9}, 60);
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
  v1::GenerateRequest request = Request({4}, 200);
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
  v1::GenerateRequest request = Request(prompt, 5);
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
  Submit(Request({1, 2, 3}, 4000), &endless);
  endless.WaitUntilOver();
  EXPECT_EQ(endless.complete().finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(endless.tokens().size(), 40 - 3 + 1);
  Submit(Request(std::vector<uint32_t>(50, 1), 4), &hopeless);
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

TEST_P(EngineTest, ALostGroupEndsEveryStreamAtOnce) {
  Start();
  group_->Hold();
  options_.scheduler.max_num_seqs = 2;
  std::vector<std::unique_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 5; ++i) {
    sinks.push_back(std::make_unique<RecordingSink>());
    Submit(Request({1}, 100), sinks.back().get());
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
  Submit(Request({1}, 10), &late);
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
  Submit(Request({1}, 10), &late);
  late.WaitUntilOver();
  EXPECT_EQ(late.error(), why);
  EXPECT_EQ(lost(), std::vector<absl::Status>{why});
}

TEST_P(EngineTest, AGroupThatWasToldToStopIsNotLost) {
  Start();
  group_->Hold();
  RecordingSink running, late;
  Submit(Request({1}, 1000), &running);
  ASSERT_TRUE(group_->Allow(2));
  absl::Status end = absl::UnavailableError("the server is shutting down");
  end.SetPayload(kShutDownPayload, absl::Cord());
  group_->Lose(end);
  running.WaitUntilOver();
  EXPECT_EQ(running.error(),
            absl::UnavailableError("the server is shutting down"));
  Submit(Request({3}, 10), &late);
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
  Submit(Request({1}, 10), &running);
  Submit(Request({2}, 10), &waiting);
  ASSERT_TRUE(group_->Allow(2));
  absl::Notification idle;
  engine_->Drain([&idle] { idle.Notify(); });
  Submit(Request({3}, 10), &late);
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
  Submit(Request({1}, 1000), &running);
  Submit(Request({2}, 10), &waiting);
  ASSERT_TRUE(group_->Allow(2));
  group_->Release();
  engine_->Stop();
  EXPECT_EQ(running.error().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(waiting.error().code(), absl::StatusCode::kUnavailable);
  Submit(Request({3}, 10), &late);
  EXPECT_EQ(late.error().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(engine_->load().status().code(), absl::StatusCode::kUnavailable);
}

// ---- Switches of the default placement.

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
  Submit(Request({1}, kLong), &before);
  ASSERT_TRUE(group_->Allow(3));
  const auto done = SwitchStepByStep("gdn", v1::IN_FLIGHT_FINISH);
  ASSERT_TRUE(done.ok()) << done.status();
  EXPECT_EQ(done->epoch, 2);
  EXPECT_EQ(done->num_recomputed, 0);
  EXPECT_FALSE(before.over());
  group_->Release();
  Submit(Request({1}, 20), &after);
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
  Submit(Request({1, 2}, kLong), &on_default);
  v1::GenerateRequest request = Request({3}, kLong);
  *request.mutable_placement() = Mixers({"kda", "kda", "kda"});
  Submit(request, &named);
  Submit(Request({4}, 20), &waiting);
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
  Submit(Request({1}, kLong), &sink);
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
  Submit(Request({1}, 40), &running);
  ASSERT_TRUE(group_->Allow(2));
  absl::Notification draining;
  absl::StatusOr<PlacementSwitch> result;
  std::thread switcher([&] {
    result = Switch("gdn", v1::IN_FLIGHT_DRAIN, [&] {
      if (!draining.HasBeenNotified()) draining.Notify();
      return false;
    });
  });
  while (!draining.HasBeenNotified() && engine_->placements()->epoch() == 1) {
    // The drain is announced between two steps.
    ASSERT_TRUE(group_->Allow(1));
    draining.WaitForNotificationWithTimeout(absl::Seconds(10));
  }
  Submit(Request({2}, 10), &held);
  v1::GenerateRequest request = Request({3}, 10);
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
  Submit(Request({1}, kLong), &running);
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
  Submit(Request({2}, 10), &held);
  held.WaitUntilOver();
  running.WaitUntilOver();
  EXPECT_EQ(running.tokens(), Continuation({1}, Uniform(kAttention), kLong));
  EXPECT_EQ(held.tokens().size(), 10);
}

TEST_P(SwitchTest, WhoeverLeavesWhileAnotherChangeIsUnderWayChangesNothing) {
  Start();
  group_->Hold();
  RecordingSink running;
  Submit(Request({1}, kLong), &running);
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
  Submit(Request({1}, kLong), &running);
  running.WaitForTokens(3);
  group_->RefusePrepare(absl::AbortedError("rank 1 (fake:2): no memory"));
  const auto done = Switch("gdn", v1::IN_FLIGHT_RECOMPUTE);
  EXPECT_EQ(done.status(), absl::AbortedError("rank 1 (fake:2): no memory"));
  EXPECT_EQ(engine_->placements()->epoch(), 1);
  Submit(Request({1}, 10), &after);
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
  v1::GenerateRequest request = Request({5}, 10);
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
