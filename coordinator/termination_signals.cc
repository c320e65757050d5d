#include "coordinator/termination_signals.h"

#include <pthread.h>
#include <signal.h>

#include <utility>

namespace switchyard {

TerminationSignals::TerminationSignals(std::function<void(int)> on_signal) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  thread_ = std::thread([this, signals, on_signal = std::move(on_signal)] {
    for (int count = 1;; ++count) {
      int signal_number = 0;
      sigwait(&signals, &signal_number);
      if (stopping_.load()) return;
      on_signal(count);
    }
  });
}

TerminationSignals::~TerminationSignals() {
  stopping_.store(true);
  pthread_kill(thread_.native_handle(), SIGTERM);
  thread_.join();
}

}  // namespace switchyard
