// CHECK and friends: for our own invariants only. Input from a peer, a file or
// a user yields a Status instead.
#ifndef SWITCHYARD_KERNELS_CHECK_H_
#define SWITCHYARD_KERNELS_CHECK_H_

#include <cstdio>
#include <cstdlib>

namespace switchyard {

[[noreturn]] inline void CheckFailed(const char* file, int line,
                                     const char* condition) {
  std::fprintf(stderr, "%s:%d: invariant does not hold: %s\n", file, line,
               condition);
  std::abort();
}

}  // namespace switchyard

#define SY_CHECK(condition)                                      \
  do {                                                           \
    if (!(condition))                                            \
      ::switchyard::CheckFailed(__FILE__, __LINE__, #condition); \
  } while (false)

#endif  // SWITCHYARD_KERNELS_CHECK_H_
