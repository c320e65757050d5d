// What the tests of the engine share: an engine over workers that check every
// plan, and a stream that remembers what it was told.
#ifndef SWITCHYARD_TESTS_COORDINATOR_ENGINE_FIXTURE_H_
#define SWITCHYARD_TESTS_COORDINATOR_ENGINE_FIXTURE_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "coordinator/engine.h"
#include "coordinator/request.h"
#include "tests/coordinator/fake_group.h"
#include "tests/coordinator/made_up_model.h"
#include "tests/coordinator/strict_worker.h"
#include "tests/coordinator/supernet.h"
#include "tests/coordinator/tiny_tokenizer.h"

namespace switchyard {

inline constexpr int kNumLayers = 3;
inline constexpr int64_t kLargeArena = int64_t{64} << 20;

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
    model_ = MakeMadeUpModel(kNumLayers, 4096);
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

}  // namespace switchyard

#endif  // SWITCHYARD_TESTS_COORDINATOR_ENGINE_FIXTURE_H_
