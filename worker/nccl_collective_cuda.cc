#include <cuda_runtime_api.h>
#include <nccl.h>

#include <cstring>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "kernels/cuda_status.h"
#include "kernels/status.h"
#include "rpc/steady_time.h"
#include "worker/nccl_collective.h"
#include "worker/rendezvous.h"

namespace switchyard {
namespace {

constexpr char kUniqueIdKey[] = "nccl/unique_id";
constexpr absl::Duration kWatchPeriod = absl::Milliseconds(20);
constexpr absl::Duration kAbortPatience = absl::Seconds(1);

ncclDataType_t NcclType(CollectiveType type) {
  return type == CollectiveType::kFloat32 ? ncclFloat32 : ncclBfloat16;
}

class NcclCollective final : public Collective {
 public:
  NcclCollective(const CollectiveOptions& options, ncclComm_t communicator,
                 float* barrier_word, cudaStream_t barrier_stream)
      : options_(options),
        communicator_(communicator),
        barrier_word_(barrier_word),
        barrier_stream_(barrier_stream),
        watcher_([this] { Watch(); }) {}

  ~NcclCollective() override {
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    watcher_.join();
    // The watcher aborted it if the group was lost; a healthy one ends with all
    // its ranks, which is not ours to wait for.
    if (!aborted_) ncclCommAbort(communicator_);
    cudaFree(barrier_word_);
    cudaStreamDestroy(barrier_stream_);
  }

  absl::Status AllReduceSum(void* buffer, int64_t num_elements,
                            CollectiveType type,
                            CollectiveStream stream) override {
    absl::MutexLock lock(&use_mutex_);
    SY_RETURN_IF_ERROR(Health());
    return Enqueued(ncclAllReduce(
        buffer, buffer, static_cast<size_t>(num_elements), NcclType(type),
        ncclSum, communicator_, static_cast<cudaStream_t>(stream)));
  }

  absl::Status AllGather(const void* input, void* output, int64_t num_elements,
                         CollectiveType type,
                         CollectiveStream stream) override {
    absl::MutexLock lock(&use_mutex_);
    SY_RETURN_IF_ERROR(Health());
    return Enqueued(ncclAllGather(
        input, output, static_cast<size_t>(num_elements), NcclType(type),
        communicator_, static_cast<cudaStream_t>(stream)));
  }

  absl::Status Barrier() override {
    SY_RETURN_IF_ERROR(AllReduceSum(barrier_word_, 1, CollectiveType::kFloat32,
                                    barrier_stream_));
    const SteadyTime start = SteadyNow();
    while (true) {
      const cudaError_t code = cudaStreamQuery(barrier_stream_);
      if (code == cudaSuccess) return Health();
      if (code != cudaErrorNotReady) return CudaStatus(code, "the barrier");
      SY_RETURN_IF_ERROR(Health());
      if (Since(start) > options_.operation_timeout) {
        return absl::DeadlineExceededError(absl::StrCat(
            "rank ", options_.rank, " waited ",
            absl::FormatDuration(options_.operation_timeout), " at a barrier"));
      }
      absl::SleepFor(absl::Microseconds(50));
    }
  }

  void Abort() override {
    absl::MutexLock lock(&mutex_);
    if (status_.ok())
      status_ = absl::AbortedError("the collective was aborted");
  }

  absl::Status health() override { return Health(); }

  int rank() const override { return options_.rank; }
  int world_size() const override { return options_.world_size; }
  // Operations are asynchronous: what they take is part of the step's time.
  absl::Duration time_spent() const override { return absl::ZeroDuration(); }

 private:
  absl::Status Health() {
    absl::MutexLock lock(&mutex_);
    return status_;
  }

  // A nonblocking communicator may still be at work on an operation's launch
  // (the first one connects the ranks); the next may only follow once it is
  // done.
  absl::Status Enqueued(ncclResult_t code) {
    while (code == ncclInProgress) {
      SY_RETURN_IF_ERROR(Health());
      SY_RETURN_IF_NCCL_ERROR(ncclCommGetAsyncError(communicator_, &code));
    }
    return NcclStatus(code, "launching a collective");
  }

  // Aborts the communicator once the group is lost. An operation that is under
  // way may finish first, unless it waits itself for what the abort will
  // release (a full launch queue); later ones find Health() spoilt.
  void Watch() {
    while (true) {
      {
        absl::MutexLock lock(&mutex_);
        const auto done = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
          return stopping_ || !status_.ok();
        };
        mutex_.AwaitWithTimeout(absl::Condition(&done), kWatchPeriod);
        if (stopping_) return;
        if (status_.ok()) {
          ncclResult_t code = ncclSuccess;
          const ncclResult_t asked =
              ncclCommGetAsyncError(communicator_, &code);
          if (asked != ncclSuccess) code = asked;
          status_ = NcclStatus(
              code, absl::StrCat("NCCL on rank ", options_.rank, ": ",
                                 ncclGetLastError(communicator_)));
        }
        if (status_.ok()) continue;
        aborted_ = true;
      }
      const SteadyTime start = SteadyNow();
      bool held = use_mutex_.TryLock();
      while (!held && Since(start) < kAbortPatience) {
        absl::SleepFor(absl::Milliseconds(1));
        held = use_mutex_.TryLock();
      }
      ncclCommAbort(communicator_);
      if (held) use_mutex_.Unlock();
      return;
    }
  }

  const CollectiveOptions options_;
  const ncclComm_t communicator_;
  float* const barrier_word_;
  const cudaStream_t barrier_stream_;

  absl::Mutex use_mutex_;  // held while the communicator is used or ended
  absl::Mutex mutex_;      // innermost
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool aborted_ = false;  // written by the watcher, read after its end

  std::thread watcher_;
};

// NCCL's id from rank 0 to all.
absl::StatusOr<ncclUniqueId> ShareUniqueId(const CollectiveOptions& options,
                                           Rendezvous& rendezvous) {
  ncclUniqueId id;
  if (options.rank == 0) {
    SY_RETURN_IF_NCCL_ERROR(ncclGetUniqueId(&id));
    SY_RETURN_IF_ERROR(
        rendezvous.Put(kUniqueIdKey, std::string(id.internal, sizeof(id))));
    return id;
  }
  SY_ASSIGN_OR_RETURN(const std::string value,
                      rendezvous.Get(kUniqueIdKey, options.connect_timeout));
  if (value.size() != sizeof(id)) {
    return absl::InternalError(absl::StrCat("rank 0's NCCL id has ",
                                            value.size(), " bytes instead of ",
                                            sizeof(id)));
  }
  std::memcpy(&id, value.data(), sizeof(id));
  return id;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Collective>> MakeNcclCollective(
    const CollectiveOptions& options, Rendezvous& rendezvous) {
  SY_ASSIGN_OR_RETURN(const ncclUniqueId id,
                      ShareUniqueId(options, rendezvous));
  // Nonblocking: connecting must end when a peer never comes.
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  ncclComm_t communicator = nullptr;
  SY_RETURN_IF_NCCL_ERROR(ncclCommInitRankConfig(
      &communicator, options.world_size, id, options.rank, &config));
  const SteadyTime start = SteadyNow();
  ncclResult_t code = ncclInProgress;
  while (code == ncclInProgress) {
    SY_RETURN_IF_NCCL_ERROR(ncclCommGetAsyncError(communicator, &code));
    if (code == ncclInProgress && Since(start) > options.connect_timeout) {
      ncclCommAbort(communicator);
      return absl::DeadlineExceededError(absl::StrCat(
          "rank ", options.rank, " did not meet its ", options.world_size - 1,
          " peers within ", absl::FormatDuration(options.connect_timeout)));
    }
    if (code == ncclInProgress) absl::SleepFor(absl::Milliseconds(2));
  }
  if (code != ncclSuccess) {
    const absl::Status status = NcclStatus(
        code, absl::StrCat("rank ", options.rank, " joining its group: ",
                           ncclGetLastError(communicator)));
    ncclCommAbort(communicator);
    return status;
  }
  float* barrier_word = nullptr;
  SY_RETURN_IF_CUDA_ERROR(cudaMalloc(&barrier_word, sizeof(float)));
  SY_RETURN_IF_CUDA_ERROR(cudaMemset(barrier_word, 0, sizeof(float)));
  cudaStream_t barrier_stream = nullptr;
  SY_RETURN_IF_CUDA_ERROR(
      cudaStreamCreateWithFlags(&barrier_stream, cudaStreamNonBlocking));
  return std::make_unique<NcclCollective>(options, communicator, barrier_word,
                                          barrier_stream);
}

}  // namespace switchyard
