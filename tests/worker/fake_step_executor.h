// A rank without a model: it answers every step with the sum over ranks of
// (rank + 1), so a result shows that the collective ran.
#ifndef SWITCHYARD_TESTS_WORKER_FAKE_STEP_EXECUTOR_H_
#define SWITCHYARD_TESTS_WORKER_FAKE_STEP_EXECUTOR_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "worker/gloo_collective.h"
#include "worker/step_executor.h"

namespace switchyard {

// What a test decides and sees. Outlives the executor.
struct FakeRank {
  uint64_t fingerprint = 42;
  uint64_t available_cache_bytes = 1 << 20;
  uint32_t kv_element_bytes = 4;
  std::string refused_mixer;  // no placement may name it

  // Called on the executor's thread before the work; may block or fail.
  std::function<absl::Status(LoadProgress&)> on_load;
  std::function<absl::Status(const v1::StepPlan&)> on_step;
  // Whether the oldest of so many launched steps is done; null: at once.
  std::function<bool(int num_steps)> is_ready;

  absl::Mutex mutex;
  std::vector<uint64_t> steps ABSL_GUARDED_BY(mutex);
  uint64_t arena_bytes ABSL_GUARDED_BY(mutex) = 0;
  uint64_t prepared_epoch ABSL_GUARDED_BY(mutex) = 0;  // 0: none
  uint64_t committed_epoch ABSL_GUARDED_BY(mutex) = 0;
  int num_warmed ABSL_GUARDED_BY(mutex) = 0;  // pieces
};

class FakeStepExecutor final : public StepExecutor {
 public:
  explicit FakeStepExecutor(FakeRank& rank) : rank_(rank) {}

  absl::StatusOr<v1::ConfigureResponse> Load(
      const v1::ConfigureRequest& request, Collective& collective,
      LoadProgress& progress) override {
    collective_ = &collective;
    if (rank_.on_load != nullptr) {
      absl::Status status = rank_.on_load(progress);
      if (!status.ok()) return status;
    }
    if (request.config_fingerprint() != rank_.fingerprint) {
      return absl::FailedPreconditionError(
          absl::StrCat("config_fingerprint is ", request.config_fingerprint(),
                       "; this rank reads ", rank_.fingerprint));
    }
    v1::ConfigureResponse response;
    response.set_device("fake");
    response.set_weights_bytes(1000);
    response.set_available_cache_bytes(rank_.available_cache_bytes);
    response.set_default_cache_bytes(rank_.available_cache_bytes);
    response.set_kv_element_bytes(rank_.kv_element_bytes);
    return response;
  }

  absl::Status AllocateCache(uint64_t arena_bytes) override {
    absl::MutexLock lock(&rank_.mutex);
    rank_.arena_bytes = arena_bytes;
    return absl::OkStatus();
  }

  absl::Status Launch(const v1::StepPlan& plan) override {
    absl::StatusOr<v1::StepResult> result = Run(plan);
    if (result.ok()) results_.push_back(*std::move(result));
    return result.status();
  }
  int num_steps() const override { return static_cast<int>(results_.size()); }
  absl::StatusOr<bool> Ready() override {
    return rank_.is_ready == nullptr || rank_.is_ready(num_steps());
  }
  absl::StatusOr<v1::StepResult> Collect() override {
    v1::StepResult result = std::move(results_.front());
    results_.pop_front();
    return result;
  }

  absl::StatusOr<v1::StepResult> Run(const v1::StepPlan& plan) {
    if (rank_.on_step != nullptr) {
      absl::Status status = rank_.on_step(plan);
      if (!status.ok()) return status;
    }
    {
      absl::MutexLock lock(&rank_.mutex);
      rank_.steps.push_back(plan.step_id());
    }
    float sum = static_cast<float>(collective_->rank() + 1);
    absl::Status summed =
        collective_->AllReduceSum(&sum, 1, CollectiveType::kFloat32, nullptr);
    if (!summed.ok()) return summed;
    v1::StepResult result;
    if (collective_->rank() > 0) return result;
    for (const v1::SequenceStep& sequence : plan.batch()) {
      v1::SampledToken* token = result.add_tokens();
      token->set_sequence_id(sequence.sequence_id());
      token->set_token_id(static_cast<uint32_t>(sum));
    }
    return result;
  }

  absl::Status PreparePlacement(
      uint64_t epoch, const std::vector<std::string>& mixer_names) override {
    for (const std::string& name : mixer_names) {
      if (name == rank_.refused_mixer) {
        return absl::FailedPreconditionError(
            absl::StrCat("there is no mixer \"", name, "\""));
      }
    }
    absl::MutexLock lock(&rank_.mutex);
    rank_.prepared_epoch = epoch;
    return absl::OkStatus();
  }

  // In three pieces.
  absl::StatusOr<bool> Warm() override {
    absl::MutexLock lock(&rank_.mutex);
    return ++rank_.num_warmed % 3 != 0;
  }

  absl::Status CommitPlacement(uint64_t epoch) override {
    absl::MutexLock lock(&rank_.mutex);
    if (epoch != rank_.prepared_epoch) {
      return absl::FailedPreconditionError(
          absl::StrCat("epoch ", epoch, " was not prepared"));
    }
    rank_.prepared_epoch = 0;
    rank_.committed_epoch = epoch;
    return absl::OkStatus();
  }

  absl::Status AbortPlacement(uint64_t) override {
    absl::MutexLock lock(&rank_.mutex);
    rank_.prepared_epoch = 0;
    return absl::OkStatus();
  }

 private:
  FakeRank& rank_;
  Collective* collective_ = nullptr;
  std::deque<v1::StepResult> results_;  // launched
};

inline WorkerBackend FakeBackend(FakeRank& rank) {
  return {std::make_unique<FakeStepExecutor>(rank), MakeGlooCollective};
}

}  // namespace switchyard

#endif  // SWITCHYARD_TESTS_WORKER_FAKE_STEP_EXECUTOR_H_
