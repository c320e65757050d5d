#include "coordinator/rank_set.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"

namespace switchyard {
namespace {

constexpr absl::Duration kProgressInterval = absl::Milliseconds(200);
constexpr absl::Duration kProgressTimeout = absl::Seconds(2);

// Of a process that is busy or about to end: a gRPC server that shuts down
// cancels the calls that still reach it.
bool IsPassing(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ||
         absl::IsCancelled(status);
}

}  // namespace

RankSet::RankSet(const std::vector<std::string>& addresses,
                 const ClientCredentials& credentials)
    : addresses_(addresses), configured_(addresses.size()) {
  for (const std::string& address : addresses_)
    clients_.push_back(RankClient::Create(address, credentials));
}

std::string RankSet::Name(size_t rank) const {
  return absl::StrCat("rank ", rank, " at ", addresses_[rank]);
}

absl::Status RankSet::Annotate(size_t rank, const absl::Status& status) const {
  return absl::Status(status.code(),
                      absl::StrCat(Name(rank), ": ", status.message()));
}

absl::Status RankSet::Connect(absl::Duration timeout) {
  const absl::Time deadline = absl::Now() + timeout;
  std::vector<std::string> absent;
  std::vector<std::string> taken;
  for (size_t r = 0; r < size(); ++r) {
    for (;;) {
      if (!clients_[r]->WaitUntilConnected(deadline)) {
        absent.push_back(Name(r));
        break;
      }
      const absl::StatusOr<bool> free = IsFree(r);
      if (IsPassing(free.status()) && absl::Now() < deadline) {
        absl::SleepFor(kProgressInterval);
        continue;
      }
      if (absl::IsUnimplemented(free.status())) {
        return absl::FailedPreconditionError(
            absl::StrCat(Name(r),
                         " is no worker: another server listens there, or a "
                         "`switchyard worker` of another version"));
      }
      if (!free.ok()) return Annotate(r, free.status());
      if (*free) break;
      // Asking it again and again would tell it that its coordinator lives.
      if (!clients_[r]->WaitUntilDisconnected(deadline)) {
        taken.push_back(Name(r));
        break;
      }
    }
  }
  const std::string within = absl::FormatDuration(timeout);
  if (!absent.empty()) {
    return absl::UnavailableError(absl::StrCat("no worker answers within ",
                                               within, ": ",
                                               absl::StrJoin(absent, ", ")));
  }
  if (!taken.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "these workers belong to another group, and have not ended within ",
        within, ": ", absl::StrJoin(taken, ", ")));
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> RankSet::IsFree(size_t rank) {
  const absl::StatusOr<v1::GetStatusResponse> status =
      clients_[rank]->GetStatus(kProgressTimeout);
  if (!status.ok()) return status.status();
  return status->phase() == v1::GetStatusResponse::PHASE_IDLE;
}

absl::StatusOr<std::vector<v1::ConfigureResponse>> RankSet::Configure(
    const v1::ConfigureRequest& request, const Progress& progress) {
  absl::Mutex mutex;
  size_t num_waiting = size();
  absl::Status failure;  // the first one: it is the cause of the others
  std::vector<v1::ConfigureResponse> responses(size());
  for (size_t r = 0; r < size(); ++r) {
    v1::ConfigureRequest own = request;
    own.set_rank(static_cast<uint32_t>(r));
    own.set_world_size(static_cast<uint32_t>(size()));
    own.set_rendezvous_address(addresses_[0]);
    clients_[r]->Configure(
        own, [&, r](absl::StatusOr<v1::ConfigureResponse> response) {
          absl::MutexLock lock(&mutex);
          --num_waiting;
          configured_[r] = response.ok();
          if (response.ok())
            responses[r] = *std::move(response);
          else if (failure.ok())
            failure = Annotate(r, response.status());
        });
  }
  const auto settled = [&] { return num_waiting == 0 || !failure.ok(); };
  const auto all_answered = [&] { return num_waiting == 0; };
  const auto wait_a_while = [&] {
    absl::MutexLock lock(&mutex);
    return mutex.AwaitWithTimeout(absl::Condition(&settled), kProgressInterval);
  };
  while (!wait_a_while()) Report(progress);
  const bool failed = [&] {
    absl::MutexLock lock(&mutex);
    return !failure.ok();
  }();
  if (failed) Cancel();
  absl::MutexLock lock(&mutex);
  mutex.Await(absl::Condition(&all_answered));
  if (!failure.ok()) return failure;
  return responses;
}

// Polls every rank, ready or not: it is also how they know that we live.
void RankSet::Report(const Progress& progress) {
  uint64_t bytes_loaded = 0;
  uint64_t bytes_total = 0;
  for (const auto& client : clients_) {
    const absl::StatusOr<v1::GetStatusResponse> status =
        client->GetStatus(kProgressTimeout);
    if (!status.ok()) continue;  // its Configure will tell
    bytes_loaded += status->bytes_loaded();
    bytes_total += status->bytes_total();
  }
  if (progress != nullptr) progress(bytes_loaded, bytes_total);
}

absl::Status RankSet::OnEvery(
    const std::function<void(size_t rank, RankClient::Done)>& call) {
  absl::Mutex mutex;
  size_t num_waiting = size();
  std::vector<absl::Status> statuses(size());
  for (size_t r = 0; r < size(); ++r) {
    call(r, [&, r](absl::Status status) {
      absl::MutexLock lock(&mutex);
      statuses[r] = std::move(status);
      --num_waiting;
    });
  }
  absl::MutexLock lock(&mutex);
  const auto all_answered = [&] { return num_waiting == 0; };
  mutex.Await(absl::Condition(&all_answered));
  for (size_t r = 0; r < size(); ++r)
    if (!statuses[r].ok()) return Annotate(r, statuses[r]);
  return absl::OkStatus();
}

void RankSet::Shutdown(absl::Duration timeout) {
  // A worker that does not hear it sees its stream end.
  const absl::Status ignored = OnEvery([&](size_t rank, RankClient::Done done) {
    if (configured_[rank])
      clients_[rank]->Shutdown(timeout, std::move(done));
    else
      done(absl::OkStatus());
  });
}

void RankSet::Cancel() {
  for (const auto& client : clients_) client->Cancel();
}

}  // namespace switchyard
