// Time for deadlines and durations: nobody sets this clock, so a step of the
// wall clock (NTP, a machine that was suspended) neither ends a group nor
// keeps a silent one alive.
#ifndef SWITCHYARD_RPC_STEADY_TIME_H_
#define SWITCHYARD_RPC_STEADY_TIME_H_

#include <chrono>

#include "absl/time/time.h"

namespace switchyard {

using SteadyTime = std::chrono::steady_clock::time_point;

inline SteadyTime SteadyNow() { return std::chrono::steady_clock::now(); }

inline absl::Duration Between(SteadyTime from, SteadyTime to) {
  return absl::FromChrono(to - from);
}
inline absl::Duration Since(SteadyTime from) {
  return Between(from, SteadyNow());
}

}  // namespace switchyard

#endif  // SWITCHYARD_RPC_STEADY_TIME_H_
