// What a coordinator's main thread waits for: to be told to stop, or to lose
// its workers.
#ifndef SWITCHYARD_COORDINATOR_STOP_REQUESTS_H_
#define SWITCHYARD_COORDINATOR_STOP_REQUESTS_H_

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "coordinator/termination_signals.h"

namespace switchyard {

// Thread-safe.
class StopRequests {
 public:
  // From here on SIGTERM and SIGINT are ours. Until Serving() either ends the
  // process with exit code 0: nothing has to end in an orderly way, and workers
  // notice that their coordinator is gone. REQUIRES: no other thread has
  // started; the first thing that a process does, for as process 1 of a
  // container it would not even die of a signal that it does not handle.
  StopRequests();

  void Serving() ABSL_LOCKS_EXCLUDED(mutex_);
  void Lost() ABSL_LOCKS_EXCLUDED(mutex_);  // the workers
  void Idle() ABSL_LOCKS_EXCLUDED(mutex_);  // the last stream has ended

  bool is_lost() const ABSL_LOCKS_EXCLUDED(mutex_);
  void WaitForSignalOrLoss() ABSL_LOCKS_EXCLUDED(mutex_);
  // Until Idle(), a second signal, or the end of `patience`; true in the first
  // case.
  bool WaitUntilIdle(absl::Duration patience) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void Signal(int count) ABSL_LOCKS_EXCLUDED(mutex_);

  mutable absl::Mutex mutex_;
  int num_signals_ ABSL_GUARDED_BY(mutex_) = 0;
  bool serving_ ABSL_GUARDED_BY(mutex_) = false;
  bool lost_ ABSL_GUARDED_BY(mutex_) = false;
  bool idle_ ABSL_GUARDED_BY(mutex_) = false;
  TerminationSignals signals_;  // last: its thread uses the rest
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_STOP_REQUESTS_H_
