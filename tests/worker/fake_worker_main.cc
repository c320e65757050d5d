// `switchyard worker` without a model, for tests that need a real process.
#include <optional>
#include <string>
#include <vector>

#include "cli/worker_flags.h"
#include "tests/worker/fake_step_executor.h"
#include "worker/worker_main.h"

int main(int argc, char** argv) {
  switchyard::FakeRank rank;
  const std::vector<std::string> args(argv + 1, argv + argc);
  switchyard::WorkerOptions options;
  if (std::optional<int> code = switchyard::ParseWorkerFlags(args, &options)) {
    return *code;
  }
  return switchyard::WorkerMain(options, [&](const switchyard::WorkerOptions&) {
    return switchyard::FakeBackend(rank);
  });
}
