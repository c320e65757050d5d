// A group of ranks for engine tests: a strict worker behind a gate.
#ifndef SWITCHYARD_TESTS_COORDINATOR_FAKE_GROUP_H_
#define SWITCHYARD_TESTS_COORDINATOR_FAKE_GROUP_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "coordinator/step_runner.h"
#include "tests/coordinator/strict_worker.h"

namespace switchyard {

// Tokens are StrictWorker::Next's. The log-probability of token t is
// LogprobOf(t), with t alone as the best when any are wanted.
//
// Thread-safe: tests turn the knobs while the engine runs.
class FakeGroup : public StepRunner {
 public:
  FakeGroup(const ModelConfig* config, CacheSpec spec, uint64_t cache_bytes);

  static float LogprobOf(uint32_t token_id) { return -0.5f * (token_id % 100); }

  // ---- Knobs.
  // Steps wait until they are allowed.
  void Hold();
  // Lets `num_steps` more steps end, and waits until the engine has taken them.
  // False if that does not happen within a minute.
  bool Allow(int num_steps);
  // Nothing waits any more.
  void Release();
  void Lose(const absl::Status& why);
  void RefusePrepare(const absl::Status& why);
  // See StrictWorker; sequences are numbered from 1 as they are submitted.
  void Spoil(uint64_t sequence_id, int64_t position);

  // ---- What happened.
  std::vector<std::string> complaints() const;
  std::vector<uint64_t> committed_epochs() const;
  int num_aborted() const;
  // Sequences the workers remember.
  size_t num_sequences() const;

  // ---- StepRunner
  const GroupFacts& facts() const override { return facts_; }
  absl::Status Submit(const v1::StepPlan& plan) override;
  absl::StatusOr<StepOutcome> NextResult() override;
  absl::Status PreparePlacement(
      uint64_t epoch, const std::vector<std::string>& mixer_names) override;
  absl::Status CommitPlacement(uint64_t epoch) override;
  absl::Status AbortPlacement(uint64_t epoch) override;
  absl::Status health() const override;
  void SetFailureCallback(
      std::function<void(const absl::Status&)> on_failure) override;

 private:
  struct Wanted {
    bool logprobs = false;
    bool prompt_logprobs = false;
    std::vector<uint32_t> prompt;
  };

  v1::StepResult Execute(const v1::StepPlan& plan)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  GroupFacts facts_;
  mutable absl::Mutex mutex_;
  StrictWorker worker_ ABSL_GUARDED_BY(mutex_);
  std::map<uint64_t, Wanted> wanted_ ABSL_GUARDED_BY(mutex_);
  std::deque<v1::StepPlan> in_flight_ ABSL_GUARDED_BY(mutex_);
  bool held_ ABSL_GUARDED_BY(mutex_) = false;
  int num_allowed_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status lost_ ABSL_GUARDED_BY(mutex_);
  absl::Status refusal_ ABSL_GUARDED_BY(mutex_);
  uint64_t prepared_epoch_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<uint64_t> committed_ ABSL_GUARDED_BY(mutex_);
  int num_aborted_ ABSL_GUARDED_BY(mutex_) = 0;
  std::function<void(const absl::Status&)> on_failure_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace switchyard

#endif  // SWITCHYARD_TESTS_COORDINATOR_FAKE_GROUP_H_
