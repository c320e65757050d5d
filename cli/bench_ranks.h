// The ranks of a tensor-parallel benchmark: processes of this binary that run
// the same command. Every rank makes the same plans, so nothing but the
// collective connects them; rank 0 is the process that was started.
#ifndef SWITCHYARD_CLI_BENCH_RANKS_H_
#define SWITCHYARD_CLI_BENCH_RANKS_H_

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cli/flags.h"
#include "cli/subprocess.h"
#include "kernels/device.h"
#include "worker/collective.h"

namespace switchyard {

struct RankOptions {
  int world_size = 1;
  std::string device = "auto";
  int threads = 0;  // of a rank on the CPU; 0: all cores, shared out
  // Or nccl: without our own kernels; or one-shot, two-shot: a PeerForm.
  std::string all_reduce = "auto";
  // Set by BenchRanks in the processes that it starts.
  int rank = 0;
  std::string rendezvous_dir;
};

// --tensor-parallel-size, --device, --threads, --all-reduce and what BenchRanks
// passes on.
void AddRankFlags(RankOptions* options, FlagSet* flags);

// A directory of its own that goes, with the files in it, when this does.
class ScratchDirectory {
 public:
  static absl::StatusOr<std::unique_ptr<ScratchDirectory>> Make();
  ~ScratchDirectory();
  const std::string& path() const { return path_; }

 private:
  explicit ScratchDirectory(std::string path) : path_(std::move(path)) {}
  const std::string path_;
};

// The processes of ranks 1 and up.
class BenchRanks {
 public:
  // Starts them with `command` (["bench", "decode", flags...]) and the flags of
  // a rank. Without peers, or in a process that is such a rank itself, starts
  // nothing. Sets options->rendezvous_dir. If one of them fails, this process
  // ends too: the others would wait for it in a collective.
  static absl::StatusOr<std::unique_ptr<BenchRanks>> Start(
      const std::vector<std::string>& command, RankOptions* options);
  // Waits for them to end.
  ~BenchRanks();

 private:
  BenchRanks() = default;
  static void Watch(int rank, std::unique_ptr<Subprocess> process);

  std::unique_ptr<ScratchDirectory> directory_;
  std::vector<std::thread> watchers_;
};

// This rank's device, and its collective with the others.
struct RankDevice {
  std::unique_ptr<Device> device;
  std::unique_ptr<Collective> collective;
};
absl::StatusOr<RankDevice> JoinRanks(const RankOptions& options);

}  // namespace switchyard

#endif  // SWITCHYARD_CLI_BENCH_RANKS_H_
