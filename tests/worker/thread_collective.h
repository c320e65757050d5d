// Collectives between threads of one process, for tests.
#ifndef SWITCHYARD_TESTS_WORKER_THREAD_COLLECTIVE_H_
#define SWITCHYARD_TESTS_WORKER_THREAD_COLLECTIVE_H_

#include <memory>
#include <vector>

#include "worker/collective.h"

namespace switchyard {

// One collective per rank, fp32 only. Sums are formed in rank order.
std::vector<std::unique_ptr<Collective>> MakeThreadCollectives(int world_size);

}  // namespace switchyard

#endif  // SWITCHYARD_TESTS_WORKER_THREAD_COLLECTIVE_H_
