#include "coordinator/worker_group.h"

#include <algorithm>
#include <deque>
#include <limits>
#include <optional>
#include <set>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "coordinator/rank_set.h"
#include "kernels/check.h"
#include "kernels/status.h"
#include "model/cache_spec.h"
#include "rpc/steady_time.h"

namespace switchyard {
namespace {

constexpr absl::Duration kShutdownTimeout = absl::Seconds(5);

// When a rank dies, its peers' collectives fail too, and their results may
// arrive before its stream is seen to break. For this long, such a result waits
// for the news that explains it.
constexpr absl::Duration kRootCauseGrace = absl::Milliseconds(250);

// The error of a rank whose peer may be the cause.
bool MayBeAnEcho(uint32_t code) {
  switch (static_cast<absl::StatusCode>(code)) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kDeadlineExceeded:
      return true;
    default:
      return false;
  }
}

absl::Status OfRank(size_t rank, absl::Status status) {
  status.SetPayload(kLostRankPayload, absl::Cord(absl::StrCat(rank)));
  return status;
}

class WorkerGroupImpl final : public WorkerGroup {
 public:
  explicit WorkerGroupImpl(const WorkerGroupOptions& options)
      : options_(options),
        reported_error_(options.addresses.size()),
        ranks_(options.addresses, options.credentials) {}

  ~WorkerGroupImpl() override { Shutdown(); }

  absl::Status Start() {
    SY_RETURN_IF_ERROR(Connect());
    SY_RETURN_IF_ERROR(Configure());
    SY_RETURN_IF_ERROR(AllocateCache());
    return OpenStreams();
  }

  const GroupFacts& facts() const override { return facts_; }

  absl::Status Submit(const v1::StepPlan& plan) override {
    auto shared = std::make_shared<const v1::StepPlan>(plan);
    {
      absl::MutexLock lock(&mutex_);
      if (!lost_.ok()) return lost_;
      SY_CHECK(plan.step_id() == last_submitted_ + 1);
      SY_CHECK(in_flight_.size() < kMaxStepsInFlight);
      last_submitted_ = plan.step_id();
      Step& step = in_flight_.emplace_back();
      step.step_id = plan.step_id();
      step.submitted = SteadyNow();
      step.results.resize(ranks_.size());
      step.num_missing = static_cast<int>(ranks_.size());
    }
    for (size_t r = 0; r < ranks_.size(); ++r) ranks_[r].Write(shared);
    return absl::OkStatus();
  }

  absl::StatusOr<StepOutcome> NextResult() override {
    absl::ReleasableMutexLock lock(&mutex_);
    SY_CHECK(!in_flight_.empty() || !lost_.ok());
    while (lost_.ok() && in_flight_.front().num_missing > 0) {
      absl::Duration left =
          options_.step_timeout -
          Since(std::max(in_flight_.front().submitted, last_completed_));
      const bool has_echo = !echo_.ok();
      if (has_echo) left = std::min(left, kRootCauseGrace - Since(echo_time_));
      const auto changed = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
        return !lost_.ok() || in_flight_.front().num_missing == 0 ||
               echo_.ok() == has_echo;
      };
      if (left > absl::ZeroDuration()) {
        mutex_.AwaitWithTimeout(absl::Condition(&changed), left);
        continue;
      }
      const absl::Status why = has_echo ? Explained(echo_) : Overdue();
      lock.Release();
      return Lose(why);
    }
    if (!lost_.ok()) return lost_;
    StepOutcome outcome = Agree(in_flight_.front());
    last_completed_ = SteadyNow();
    in_flight_.pop_front();
    return outcome;
  }

  absl::Status PreparePlacement(
      uint64_t epoch, const std::vector<std::string>& mixer_names) override {
    absl::MutexLock control(&control_mutex_);
    SY_RETURN_IF_ERROR(health());
    const absl::Status refusal =
        ranks_.OnEvery([&](size_t rank, RankClient::Done done) {
          ranks_[rank].PreparePlacement(
              epoch, mixer_names, options_.control_timeout, std::move(done));
        });
    if (refusal.ok()) return refusal;
    const absl::Status forgotten = Forget(epoch);
    SY_RETURN_IF_ERROR(health());
    if (!forgotten.ok()) return Lose(forgotten);
    return absl::AbortedError(
        absl::StrCat("the placement was refused by ", refusal.message()));
  }

  absl::Status CommitPlacement(uint64_t epoch) override {
    absl::MutexLock control(&control_mutex_);
    SY_RETURN_IF_ERROR(health());
    const absl::Status status =
        ranks_.OnEvery([&](size_t rank, RankClient::Done done) {
          ranks_[rank].CommitPlacement(epoch, options_.control_timeout,
                                       std::move(done));
        });
    return status.ok() ? status : Lose(status);
  }

  absl::Status AbortPlacement(uint64_t epoch) override {
    absl::MutexLock control(&control_mutex_);
    SY_RETURN_IF_ERROR(health());
    const absl::Status status = Forget(epoch);
    return status.ok() ? status : Lose(status);
  }

  absl::Status health() const override {
    absl::MutexLock lock(&mutex_);
    return lost_;
  }

  void SetFailureCallback(
      std::function<void(const absl::Status&)> on_failure) override {
    absl::Status lost;
    {
      absl::MutexLock lock(&mutex_);
      lost = lost_;
      if (lost.ok()) {
        on_failure_ = std::move(on_failure);
        return;
      }
    }
    on_failure(lost);
  }

  void Shutdown() override {
    absl::MutexLock control(&control_mutex_);
    bool was_lost;
    {
      absl::MutexLock lock(&mutex_);
      if (shut_down_) return;
      shut_down_ = true;
      on_failure_ = nullptr;
      was_lost = !lost_.ok();
      if (!was_lost) {
        lost_ = absl::UnavailableError("the server is shutting down");
        lost_.SetPayload(kShutDownPayload, absl::Cord());
      }
    }
    // Of a lost group the workers exit by themselves: their streams ended.
    if (!was_lost) ranks_.Shutdown(kShutdownTimeout);
    ranks_.Cancel();
  }

 private:
  struct Step {
    uint64_t step_id = 0;
    SteadyTime submitted;
    std::vector<std::optional<v1::StepResult>> results;  // by rank
    int num_missing = 0;
    SteadyTime completed;
  };

  absl::Status Connect() {
    if (ranks_.size() == 0)
      return absl::InvalidArgumentError("a worker group needs an address");
    std::set<std::string> seen;
    for (const std::string& address : options_.addresses) {
      if (!seen.insert(address).second) {
        return absl::InvalidArgumentError(absl::StrCat(
            "two ranks at ", address, "; every rank needs its own worker"));
      }
    }
    return ranks_.Connect(options_.connect_timeout);
  }

  absl::Status Configure() {
    SY_ASSIGN_OR_RETURN(
        const std::vector<v1::ConfigureResponse> responses,
        ranks_.Configure(options_.configure, options_.on_progress));
    return LearnFacts(responses);
  }

  absl::Status LearnFacts(const std::vector<v1::ConfigureResponse>& responses) {
    uint64_t available = std::numeric_limits<uint64_t>::max();
    uint64_t usual = available;
    size_t poorest = 0;
    for (size_t r = 0; r < responses.size(); ++r) {
      const v1::ConfigureResponse& response = responses[r];
      if (response.kv_element_bytes() != responses[0].kv_element_bytes()) {
        return absl::FailedPreconditionError(absl::StrCat(
            ranks_.Name(r), " keeps KV elements of ",
            response.kv_element_bytes(), " bytes, ", ranks_.Name(0), " of ",
            responses[0].kv_element_bytes(),
            "; all ranks need the same kind of device"));
      }
      if (response.available_cache_bytes() < available) {
        available = response.available_cache_bytes();
        poorest = r;
      }
      usual = std::min(usual, response.default_cache_bytes());
      facts_.ranks.push_back({options_.addresses[r], response.device(),
                              response.weights_bytes(),
                              response.workspace_bytes()});
    }
    if (options_.cache_bytes > available) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "a cache of ", options_.cache_bytes, " bytes was asked for; ",
          ranks_.Name(poorest), " has ", available, " bytes left for it"));
    }
    const uint64_t wanted =
        options_.cache_bytes > 0 ? options_.cache_bytes : usual;
    facts_.cache_bytes = wanted / kCacheUnitBytes * kCacheUnitBytes;
    if (facts_.cache_bytes == 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "a cache of ", wanted, " bytes was asked for; it must have at least ",
          kCacheUnitBytes));
    }
    facts_.kv_element_bytes = responses[0].kv_element_bytes();
    return absl::OkStatus();
  }

  absl::Status AllocateCache() {
    return ranks_.OnEvery([this](size_t rank, RankClient::Done done) {
      ranks_[rank].AllocateCache(facts_.cache_bytes, options_.control_timeout,
                                 std::move(done));
    });
  }

  absl::Status OpenStreams() {
    for (size_t r = 0; r < ranks_.size(); ++r) {
      RankClient::StreamCallbacks callbacks;
      callbacks.on_open = [this] {
        absl::MutexLock lock(&mutex_);
        ++num_open_;
      };
      callbacks.on_result = [this, r](v1::StepResult result) {
        HandleResult(r, std::move(result));
      };
      callbacks.on_end = [this, r](const absl::Status& status) {
        HandleEnd(r, status);
      };
      ranks_[r].OpenStream(std::move(callbacks));
    }
    absl::MutexLock lock(&mutex_);
    const auto settled = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return num_open_ == ranks_.size() || !lost_.ok();
    };
    if (!mutex_.AwaitWithTimeout(absl::Condition(&settled),
                                 options_.control_timeout)) {
      return absl::DeadlineExceededError(
          "not every rank has accepted its stream of steps");
    }
    return lost_;
  }

  void HandleResult(size_t rank, v1::StepResult result) {
    absl::Status failure;
    {
      absl::MutexLock lock(&mutex_);
      if (!lost_.ok() || reported_error_[rank]) return;
      const auto step = std::find_if(
          in_flight_.begin(), in_flight_.end(),
          [rank](const Step& step) { return !step.results[rank].has_value(); });
      if (step == in_flight_.end() || result.step_id() != step->step_id ||
          result.rank() != rank) {
        failure = OfRank(
            rank, absl::UnavailableError(absl::StrCat(
                      ranks_.Name(rank), " answered as rank ", result.rank(),
                      " for step ", result.step_id(), " when ",
                      step == in_flight_.end()
                          ? "no step was due"
                          : absl::StrCat("step ", step->step_id, " was due"))));
      } else if (result.code() != 0) {
        reported_error_[rank] = true;
        failure = OfRank(rank, absl::UnavailableError(absl::StrCat(
                                   ranks_.Name(rank), " failed step ",
                                   result.step_id(), ": ", result.message())));
        if (MayBeAnEcho(result.code())) {
          if (echo_.ok()) {
            echo_ = failure;
            echo_is_wait_ = static_cast<absl::StatusCode>(result.code()) ==
                            absl::StatusCode::kDeadlineExceeded;
            echo_time_ = SteadyNow();
          }
          return;
        }
      } else {
        step->results[rank] = std::move(result);
        if (--step->num_missing == 0) step->completed = SteadyNow();
        return;
      }
    }
    (void)Lose(failure);
  }

  void HandleEnd(size_t rank, const absl::Status& status) {
    std::string during;
    {
      absl::MutexLock lock(&mutex_);
      if (!lost_.ok() || reported_error_[rank]) return;
      during = in_flight_.empty()
                   ? absl::StrCat("after step ", last_submitted_)
                   : absl::StrCat("during step ", in_flight_.front().step_id);
    }
    (void)Lose(OfRank(rank, absl::UnavailableError(absl::StrCat(
                                ranks_.Name(rank), " is gone ", during, ": ",
                                status.ok() ? "it ended its stream"
                                            : std::string(status.message())))));
  }

  // `status`, blaming the ranks that have said nothing of the oldest step,
  // good or bad; as it is when there are none.
  absl::Status BlameSilent(const absl::Status& status) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const Step& step = in_flight_.front();
    std::vector<std::string> silent;
    size_t last_silent = 0;
    for (size_t r = 0; r < ranks_.size(); ++r) {
      if (step.results[r].has_value() || reported_error_[r]) continue;
      silent.push_back(ranks_.Name(r));
      last_silent = r;
    }
    if (silent.empty()) return status;
    const absl::Status blaming = absl::UnavailableError(absl::StrCat(
        status.message(), "; no answer from ", absl::StrJoin(silent, ", ")));
    return silent.size() == 1 ? OfRank(last_silent, blaming) : blaming;
  }

  // The missed deadline of the oldest step.
  absl::Status Overdue() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return BlameSilent(absl::UnavailableError(absl::StrCat(
        "step ", in_flight_.front().step_id, " missed its deadline of ",
        absl::FormatDuration(options_.step_timeout))));
  }

  // An echo whose cause has sent no news. Ranks that waited in vain for a peer
  // give up together: who has not, is the one they waited for.
  absl::Status Explained(const absl::Status& echo) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return echo_is_wait_ ? BlameSilent(echo) : echo;
  }

  // The end of the group; the first cause stands, and is returned.
  absl::Status Lose(const absl::Status& why) {
    absl::Status lost = absl::UnavailableError(why.message());
    if (const auto rank = why.GetPayload(kLostRankPayload)) {
      lost.SetPayload(kLostRankPayload, *rank);
    }
    std::function<void(const absl::Status&)> on_failure;
    {
      absl::MutexLock lock(&mutex_);
      if (!lost_.ok()) return lost_;
      lost_ = lost;
      on_failure = std::move(on_failure_);
      on_failure_ = nullptr;
    }
    ranks_.Cancel();
    if (on_failure != nullptr) on_failure(lost);
    return lost;
  }

  absl::Status Forget(uint64_t epoch) {
    return ranks_.OnEvery([&](size_t rank, RankClient::Done done) {
      ranks_[rank].AbortPlacement(epoch, options_.control_timeout,
                                  std::move(done));
    });
  }

  static StepOutcome Agree(Step& step) {
    StepOutcome outcome;
    double slowest_ms = -1;
    outcome.ranks.reserve(step.results.size());
    for (const std::optional<v1::StepResult>& result : step.results) {
      outcome.ranks.push_back({absl::Milliseconds(result->execute_ms()),
                               absl::Milliseconds(result->collective_ms()),
                               absl::Milliseconds(result->device_ms()),
                               absl::Milliseconds(result->device_idle_ms()),
                               result->graph(),
                               absl::Milliseconds(result->record_ms())});
      if (result->execute_ms() <= slowest_ms) continue;
      slowest_ms = result->execute_ms();
      outcome.execute_time = absl::Milliseconds(result->execute_ms());
      outcome.collective_time = absl::Milliseconds(result->collective_ms());
    }
    outcome.round_trip = Between(step.submitted, step.completed);
    outcome.result = *std::move(step.results[0]);
    return outcome;
  }

  const WorkerGroupOptions options_;
  GroupFacts facts_;

  absl::Mutex control_mutex_;  // one placement change or shutdown at a time
  mutable absl::Mutex mutex_;
  absl::Status lost_ ABSL_GUARDED_BY(mutex_);
  bool shut_down_ ABSL_GUARDED_BY(mutex_) = false;
  std::function<void(const absl::Status&)> on_failure_ ABSL_GUARDED_BY(mutex_);
  size_t num_open_ ABSL_GUARDED_BY(mutex_) = 0;
  std::deque<Step> in_flight_ ABSL_GUARDED_BY(mutex_);  // oldest first
  uint64_t last_submitted_ ABSL_GUARDED_BY(mutex_) = 0;
  SteadyTime last_completed_ ABSL_GUARDED_BY(mutex_);         // 0: never
  std::vector<bool> reported_error_ ABSL_GUARDED_BY(mutex_);  // by rank
  // A failure that waits for its cause.
  absl::Status echo_ ABSL_GUARDED_BY(mutex_);
  SteadyTime echo_time_ ABSL_GUARDED_BY(mutex_);
  bool echo_is_wait_ ABSL_GUARDED_BY(mutex_) = false;  // for a silent peer

  RankSet ranks_;  // last: its callbacks touch the rest until it is gone
};

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerGroup>> WorkerGroup::Start(
    const WorkerGroupOptions& options) {
  auto group = std::make_unique<WorkerGroupImpl>(options);
  absl::Status started = group->Start();
  if (!started.ok()) return started;
  return group;
}

}  // namespace switchyard
