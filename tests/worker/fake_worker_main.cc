// `switchyard worker` without a model, for tests that need a real process.
#include <string>
#include <vector>

#include "tests/worker/fake_step_executor.h"
#include "worker/worker_main.h"

int main(int argc, char** argv) {
  switchyard::FakeRank rank;
  const std::vector<std::string> args(argv + 1, argv + argc);
  return switchyard::WorkerMain(args, [&](const switchyard::WorkerOptions&) {
    return switchyard::FakeBackend(rank);
  });
}
