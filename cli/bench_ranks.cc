#include "cli/bench_ranks.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cli/file_rendezvous.h"
#include "kernels/status.h"
#include "worker/gloo_collective.h"
#include "worker/peer_collective.h"

namespace switchyard {
namespace {

// Ranks load at different speeds; a rank that died is noticed at once.
constexpr absl::Duration kConnect = absl::Minutes(5);

}  // namespace

void AddRankFlags(RankOptions* options, FlagSet* flags) {
  flags->Section("Where it runs");
  flags->Int("tensor-parallel-size", &options->world_size, 1, 1024,
             "ranks, a process each; on GPUs, rank R has the R-th");
  flags->Choice("device", &options->device, {"auto", "cpu", "cuda"},
                "what they run on; auto: CUDA if there is any");
  flags->Int("threads", &options->threads, 0, 1024,
             "of each rank on the CPU; 0: all cores, shared out");
  flags->Choice("all-reduce", &options->all_reduce,
                {"auto", "nccl", "one-shot", "two-shot"},
                "between GPUs; auto: a kernel of our own for short messages "
                "where they reach each other's memory; one-shot, two-shot: all "
                "of them in this form");
  flags->Int("rank", &options->rank, 0, 1023,
             "set for the processes that this one starts");
  flags->String("rendezvous", &options->rendezvous_dir, "DIR",
                "set for the processes that this one starts");
}

absl::StatusOr<std::unique_ptr<ScratchDirectory>> ScratchDirectory::Make() {
  std::error_code error;
  std::string name =
      (std::filesystem::temp_directory_path(error) / "switchyard-bench-XXXXXX")
          .string();
  if (error || mkdtemp(name.data()) == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("cannot make a directory ", name));
  }
  return std::unique_ptr<ScratchDirectory>(
      new ScratchDirectory(std::move(name)));
}

ScratchDirectory::~ScratchDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

absl::StatusOr<std::unique_ptr<BenchRanks>> BenchRanks::Start(
    const std::vector<std::string>& command, RankOptions* options) {
  std::unique_ptr<BenchRanks> ranks(new BenchRanks);
  if (options->world_size == 1 || !options->rendezvous_dir.empty()) {
    return ranks;
  }
  SY_ASSIGN_OR_RETURN(ranks->directory_, ScratchDirectory::Make());
  options->rendezvous_dir = ranks->directory_->path();
  for (int rank = 1; rank < options->world_size; ++rank) {
    std::vector<std::string> arguments = command;
    arguments.push_back(absl::StrCat("--rank=", rank));
    arguments.push_back(absl::StrCat("--rendezvous=", options->rendezvous_dir));
    SY_ASSIGN_OR_RETURN(std::unique_ptr<Subprocess> process,
                        Subprocess::Start(arguments));
    ranks->watchers_.emplace_back(Watch, rank, std::move(process));
  }
  return ranks;
}

void BenchRanks::Watch(int rank, std::unique_ptr<Subprocess> process) {
  while (process->ReadLine(absl::InfiniteFuture()).ok()) {
  }
  const absl::StatusOr<int> code =
      process->Wait(absl::Now() + absl::Seconds(30));
  if (code.ok() && *code == 0) return;
  std::fprintf(stderr, "switchyard bench: rank %d ended with %s\n", rank,
               code.ok() ? absl::StrCat("exit code ", *code).c_str()
                         : std::string(code.status().message()).c_str());
  std::fflush(stdout);
  std::_Exit(kExitFailure);
}

BenchRanks::~BenchRanks() {
  for (std::thread& watcher : watchers_) watcher.join();
}

absl::StatusOr<RankDevice> JoinRanks(const RankOptions& options) {
  const int cores =
      std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  const int threads = options.threads > 0
                          ? options.threads
                          : std::max(1, cores / options.world_size);
  RankDevice joined;
  std::string why_cpu;
  SY_ASSIGN_OR_RETURN(joined.device,
                      MakeDevice(DeviceOfRank(options.device, options.rank,
                                              options.world_size, &why_cpu),
                                 threads));
  if (options.world_size == 1) {
    joined.collective = MakeLocalCollective();
    return joined;
  }
  CollectiveOptions collective;
  collective.rank = options.rank;
  collective.world_size = options.world_size;
  collective.connect_timeout = kConnect;
  FileRendezvous rendezvous(options.rendezvous_dir);
  if (joined.device->type() == DeviceType::kCuda) {
    PeerCollectiveOptions peer;
    peer.group = collective;
    peer.own_all_reduce = options.all_reduce != "nccl";
    peer.form = options.all_reduce == "one-shot"   ? PeerForm::kOneShot
                : options.all_reduce == "two-shot" ? PeerForm::kTwoShot
                                                   : PeerForm::kBySize;
    SY_ASSIGN_OR_RETURN(joined.collective,
                        MakePeerCollective(peer, rendezvous));
  } else {
    SY_ASSIGN_OR_RETURN(joined.collective,
                        MakeGlooCollective(collective, rendezvous));
  }
  return joined;
}

}  // namespace switchyard
