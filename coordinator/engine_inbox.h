// The one way into the engine's thread: a queue of things for it to do.
#ifndef SWITCHYARD_COORDINATOR_ENGINE_INBOX_H_
#define SWITCHYARD_COORDINATOR_ENGINE_INBOX_H_

#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/functional/any_invocable.h"
#include "absl/synchronization/mutex.h"

namespace switchyard {

// Thread-safe: any thread posts, one thread takes. Tasks posted by one thread
// are taken in the order they were posted.
class EngineInbox {
 public:
  using Task = absl::AnyInvocable<void()>;

  // False, without taking the task, if the inbox is closed.
  bool Post(Task task) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    if (closed_) return false;
    tasks_.push_back(std::move(task));
    return true;
  }

  // Moves all tasks into `tasks`, which must be empty; whatever it has as
  // capacity is used for the next ones. Does not wait.
  void Take(std::vector<Task>* tasks) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    tasks_.swap(*tasks);
  }

  // Waits until there is a task.
  void Wait() ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    mutex_.Await(absl::Condition(
        +[](std::vector<Task>* tasks) { return !tasks->empty(); }, &tasks_));
  }

  // No task is accepted from here on. Those accepted before can still be taken.
  void Close() ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    closed_ = true;
  }

 private:
  absl::Mutex mutex_;
  std::vector<Task> tasks_ ABSL_GUARDED_BY(mutex_);
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_ENGINE_INBOX_H_
