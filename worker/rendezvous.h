// Where the ranks of a group learn each other's collective addresses before
// they can talk to each other: a small table of keys, kept by rank 0.
#ifndef SWITCHYARD_WORKER_RENDEZVOUS_H_
#define SWITCHYARD_WORKER_RENDEZVOUS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "rpc/credentials.h"

namespace switchyard {

// A rank's view of the table. Thread-safe.
class Rendezvous {
 public:
  virtual ~Rendezvous() = default;

  // Sets a key, once. kAlreadyExists if it is set to something else.
  virtual absl::Status Put(const std::string& key,
                           const std::string& value) = 0;

  // Waits until the key is set. kDeadlineExceeded names the key; kUnavailable
  // if the table is not there; kCancelled after Cancel.
  virtual absl::StatusOr<std::string> Get(const std::string& key,
                                          absl::Duration timeout) = 0;

  // Ends pending and later Gets with kCancelled. Any thread.
  virtual void Cancel() = 0;
};

// The table itself, in rank 0's process.
class RendezvousTable final : public Rendezvous {
 public:
  using Callback = std::function<void(absl::StatusOr<std::string>)>;

  // Peers fill the table: what they may store is bounded.
  static constexpr size_t kMaxKeys = 4096;
  static constexpr size_t kMaxValueBytes = 64 * 1024;

  // kResourceExhausted beyond the bounds.
  absl::Status Put(const std::string& key, const std::string& value) override;
  absl::StatusOr<std::string> Get(const std::string& key,
                                  absl::Duration timeout) override;
  void Cancel() override;

  // Calls `callback` once: with the value when the key is set (perhaps before
  // GetAsync returns, else from the thread that sets it), or with kCancelled.
  // Returns a ticket for Forget.
  uint64_t GetAsync(const std::string& key, Callback callback);

  // Calls a waiting callback with kCancelled now; nothing if it was called.
  void Forget(uint64_t ticket);

 private:
  struct Waiter {
    std::string key;
    Callback callback;
  };

  absl::Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t next_ticket_ ABSL_GUARDED_BY(mutex_) = 1;
  std::map<std::string, std::string> values_ ABSL_GUARDED_BY(mutex_);
  std::map<uint64_t, Waiter> waiters_ ABSL_GUARDED_BY(mutex_);
};

// The table of the worker service at `address` (host:port).
std::unique_ptr<Rendezvous> MakeRemoteRendezvous(
    const std::string& address, const ClientCredentials& credentials = {});

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_RENDEZVOUS_H_
