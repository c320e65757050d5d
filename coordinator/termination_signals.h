// SIGTERM and SIGINT as events.
#ifndef SWITCHYARD_COORDINATOR_TERMINATION_SIGNALS_H_
#define SWITCHYARD_COORDINATOR_TERMINATION_SIGNALS_H_

#include <atomic>
#include <functional>
#include <thread>

namespace switchyard {

// While it lives, SIGTERM and SIGINT do nothing but call `on_signal`, on a
// thread of its own, with 1 for the first of them, 2 for the second, and so on.
// REQUIRES: constructed before any other thread starts, whose signal masks are
// inherited.
class TerminationSignals {
 public:
  explicit TerminationSignals(std::function<void(int)> on_signal);
  ~TerminationSignals();
  TerminationSignals(const TerminationSignals&) = delete;
  TerminationSignals& operator=(const TerminationSignals&) = delete;

 private:
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_TERMINATION_SIGNALS_H_
