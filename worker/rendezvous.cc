#include "worker/rendezvous.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace switchyard {

absl::Status RendezvousTable::Put(const std::string& key,
                                  const std::string& value) {
  std::vector<Callback> ready;
  {
    absl::MutexLock lock(&mutex_);
    if (value.size() > kMaxValueBytes) {
      return absl::ResourceExhaustedError(
          absl::StrCat("rendezvous value of \"", key, "\" has ", value.size(),
                       " bytes; the limit is ", kMaxValueBytes));
    }
    if (values_.size() >= kMaxKeys && values_.count(key) == 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the rendezvous holds ", kMaxKeys, " keys already"));
    }
    const auto [it, inserted] = values_.emplace(key, value);
    if (!inserted) {
      if (it->second == value) return absl::OkStatus();
      return absl::AlreadyExistsError(
          absl::StrCat("rendezvous key \"", key,
                       "\" is set already: do two ranks share a number?"));
    }
    for (auto waiter = waiters_.begin(); waiter != waiters_.end();) {
      if (waiter->second.key == key) {
        ready.push_back(std::move(waiter->second.callback));
        waiter = waiters_.erase(waiter);
      } else {
        ++waiter;
      }
    }
  }
  for (Callback& callback : ready) callback(value);
  return absl::OkStatus();
}

absl::StatusOr<std::string> RendezvousTable::Get(const std::string& key,
                                                 absl::Duration timeout) {
  absl::MutexLock lock(&mutex_);
  const auto settled = [this, &key]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return cancelled_ || values_.count(key) > 0;
  };
  if (!mutex_.AwaitWithTimeout(absl::Condition(&settled), timeout)) {
    return absl::DeadlineExceededError(
        absl::StrCat("no rank has set rendezvous key \"", key, "\" within ",
                     absl::FormatDuration(timeout)));
  }
  if (cancelled_) return absl::CancelledError("the rendezvous was cancelled");
  return values_.at(key);
}

void RendezvousTable::Cancel() {
  std::map<uint64_t, Waiter> waiters;
  {
    absl::MutexLock lock(&mutex_);
    cancelled_ = true;
    waiters.swap(waiters_);
  }
  for (auto& [ticket, waiter] : waiters)
    waiter.callback(absl::CancelledError("the rendezvous was cancelled"));
}

uint64_t RendezvousTable::GetAsync(const std::string& key, Callback callback) {
  absl::StatusOr<std::string> now;
  uint64_t ticket;
  {
    absl::MutexLock lock(&mutex_);
    ticket = next_ticket_++;
    const auto it = values_.find(key);
    if (cancelled_) {
      now = absl::CancelledError("the rendezvous was cancelled");
    } else if (it != values_.end()) {
      now = it->second;
    } else {
      waiters_.emplace(ticket, Waiter{key, std::move(callback)});
      return ticket;
    }
  }
  callback(std::move(now));
  return ticket;
}

void RendezvousTable::Forget(uint64_t ticket) {
  Callback callback;
  {
    absl::MutexLock lock(&mutex_);
    const auto it = waiters_.find(ticket);
    if (it == waiters_.end()) return;
    callback = std::move(it->second.callback);
    waiters_.erase(it);
  }
  callback(absl::CancelledError("the caller of GetRendezvous went away"));
}

}  // namespace switchyard
