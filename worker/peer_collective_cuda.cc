#include <cuda_runtime.h>

#include <atomic>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "kernels/cuda_status.h"
#include "kernels/status.h"
#include "log/log.h"
#include "worker/nccl_collective.h"
#include "worker/peer_agreement.h"
#include "worker/peer_collective.h"
#include "worker/peer_reduce.h"
#include "worker/peer_reduce_norm.h"

namespace switchyard {
namespace {

constexpr absl::Duration kWatchPeriod = absl::Milliseconds(20);
// Memory of another allocation must not travel along with a handle, and
// allocations share pages of this size.
constexpr int64_t kShareBytes = int64_t{2} << 20;

// What a rank tells the others; they run the same binary.
struct SharedMemory {
  char boot_id[40];  // of the host, since its start
  char bus_id[24];   // of the GPU
  int64_t slot_bytes;
  cudaIpcMemHandle_t handle;
};

// Which running kernel of which host this is, whatever container it is in.
absl::StatusOr<std::string> BootId() {
  constexpr char kPath[] = "/proc/sys/kernel/random/boot_id";
  std::string id;
  if (!std::getline(std::ifstream(kPath) >> std::ws, id) || id.empty()) {
    return absl::UnavailableError(
        absl::StrCat("cannot read ", kPath, ", which names the host"));
  }
  return id;
}

// The memory of one rank that its peers write to, and its ways into theirs.
class PeerGpuMemory final : public PeerMemory {
 public:
  // `device`: the ordinal of the rank's GPU, which is current.
  PeerGpuMemory(const PeerCollectiveOptions& options, int device)
      : options_(options), device_(device) {
    buffers_.rank = options.group.rank;
    buffers_.world_size = options.group.world_size;
  }

  // REQUIRES: no kernel works on the memory any more.
  ~PeerGpuMemory() override {
    cudaSetDevice(device_);
    CloseMappings();
    cudaFree(buffers_.state);
    cudaFreeHost(const_cast<uint32_t*>(buffers_.stop));
    if (slots_unmapped_) cudaFree(slots_);
  }

  absl::StatusOr<std::string> Share() override {
    if (!options_.own_all_reduce) {
      return absl::FailedPreconditionError("--all-reduce=nccl");
    }
    const int world_size = buffers_.world_size;
    if (world_size != 2 && world_size != 4 && world_size != 8) {
      return absl::UnimplementedError(absl::StrCat(
          "a group of ", world_size, " ranks; it would take 2, 4 or 8"));
    }
    SY_RETURN_IF_ERROR(Allocate());
    SharedMemory shared = {};
    SY_ASSIGN_OR_RETURN(const std::string boot_id, BootId());
    if (boot_id.size() >= sizeof(shared.boot_id)) {
      return absl::InternalError(
          absl::StrCat("the host's boot id is '", boot_id, "'; too long"));
    }
    std::memcpy(shared.boot_id, boot_id.data(), boot_id.size());
    SY_RETURN_IF_CUDA_ERROR(cudaDeviceGetPCIBusId(
        shared.bus_id, sizeof(shared.bus_id) - 1, device_));
    shared.slot_bytes = buffers_.slot_bytes;
    SY_RETURN_IF_CUDA_ERROR(cudaIpcGetMemHandle(&shared.handle, slots_));
    own_ = shared;
    // From here on a peer may map it.
    slots_unmapped_ = false;
    return std::string(reinterpret_cast<const char*>(&shared), sizeof(shared));
  }

  absl::Status Open(int rank, const std::string& value) override {
    SharedMemory shared;
    if (value.size() != sizeof(shared)) {
      return absl::InternalError(
          absl::StrCat("rank ", rank, " shared ", value.size(),
                       " bytes instead of ", sizeof(shared)));
    }
    std::memcpy(&shared, value.data(), sizeof(shared));
    if (shared.slot_bytes != buffers_.slot_bytes) {
      return absl::InternalError(
          absl::StrCat("rank ", rank, " takes messages of ", shared.slot_bytes,
                       " bytes, not of ", buffers_.slot_bytes));
    }
    if (std::strncmp(shared.boot_id, own_.boot_id, sizeof(own_.boot_id)) != 0) {
      return absl::UnavailableError(
          absl::StrCat("rank ", rank, " is on another host"));
    }
    const std::string gpu =
        absl::StrCat("the GPU of rank ", rank, " (", shared.bus_id, ")");
    int peer = 0;
    if (cudaDeviceGetByPCIBusId(&peer, shared.bus_id) != cudaSuccess) {
      cudaGetLastError();
      return absl::UnavailableError(
          absl::StrCat(gpu, " is not visible to this process"));
    }
    if (peer == device_) {
      return absl::UnavailableError(absl::StrCat(gpu, " is ours as well"));
    }
    int reaches = 0;
    SY_RETURN_IF_CUDA_ERROR(cudaDeviceCanAccessPeer(&reaches, device_, peer));
    if (reaches == 0) {
      return absl::UnavailableError(absl::StrCat(
          gpu, " has memory that ours (", own_.bus_id, ") does not reach"));
    }
    void* mapped = nullptr;
    const cudaError_t code = cudaIpcOpenMemHandle(
        &mapped, shared.handle, cudaIpcMemLazyEnablePeerAccess);
    if (code != cudaSuccess) {
      cudaGetLastError();
      return CudaStatus(code, absl::StrCat("mapping memory of ", gpu));
    }
    buffers_.slots[rank] = static_cast<std::byte*>(mapped);
    return absl::OkStatus();
  }

  void CloseMappings() {
    for (int rank = 0; rank < kMaxPeerRanks; ++rank) {
      if (rank == buffers_.rank || buffers_.slots[rank] == nullptr) continue;
      cudaIpcCloseMemHandle(buffers_.slots[rank]);
      buffers_.slots[rank] = nullptr;
    }
  }

  // All peers have closed their mappings. Until then the memory may not be
  // freed; of a group that ends otherwise it goes with the process.
  void SetUnmapped() { slots_unmapped_ = true; }

  void Stop() { __atomic_store_n(stop_, 1u, __ATOMIC_RELEASE); }

  int device() const { return device_; }
  const PeerBuffers& buffers() const { return buffers_; }

 private:
  absl::Status Allocate() {
    buffers_.slot_bytes = kPeerMessageLimit;
    const int64_t bytes = (PeerSlotsBytes(buffers_) + kShareBytes - 1) /
                          kShareBytes * kShareBytes;
    SY_RETURN_IF_CUDA_ERROR(cudaMalloc(&slots_, bytes));
    slots_unmapped_ = true;
    static_assert(kEmptyWord == 0xffffffffu, "memset fills bytes");
    SY_RETURN_IF_CUDA_ERROR(cudaMemset(slots_, 0xff, bytes));
    SY_RETURN_IF_CUDA_ERROR(cudaMalloc(&buffers_.state, sizeof(PeerState)));
    SY_RETURN_IF_CUDA_ERROR(cudaMemset(buffers_.state, 0, sizeof(PeerState)));
    SY_RETURN_IF_CUDA_ERROR(
        cudaHostAlloc(&stop_, sizeof(*stop_), cudaHostAllocMapped));
    *stop_ = 0;
    buffers_.stop = stop_;
    buffers_.slots[buffers_.rank] = slots_;
    // Empty before any peer hears of it.
    SY_RETURN_IF_CUDA_ERROR(cudaDeviceSynchronize());
    return absl::OkStatus();
  }

  const PeerCollectiveOptions options_;
  const int device_;
  PeerBuffers buffers_;
  SharedMemory own_ = {};
  std::byte* slots_ = nullptr;
  uint32_t* stop_ = nullptr;  // in host memory
  bool slots_unmapped_ = false;
};

class PeerCollective final : public Collective {
 public:
  PeerCollective(std::unique_ptr<Collective> nccl,
                 std::unique_ptr<PeerGpuMemory> memory, PeerForm form)
      : form_(form),
        nccl_(std::move(nccl)),
        memory_(std::move(memory)),
        watcher_([this] { Watch(); }) {}

  ~PeerCollective() override {
    {
      absl::MutexLock lock(&mutex_);
      stopping_ = true;
    }
    watcher_.join();
    cudaSetDevice(memory_->device());
    if (nccl_->health().ok()) {
      cudaDeviceSynchronize();
      memory_->CloseMappings();
      if (nccl_->Barrier().ok()) memory_->SetUnmapped();
    } else {
      memory_->Stop();
    }
    nccl_.reset();  // releases its own kernels
    cudaDeviceSynchronize();
  }

  absl::Status AllReduceSum(void* buffer, int64_t num_elements,
                            CollectiveType type,
                            CollectiveStream stream) override {
    if (num_elements * CollectiveTypeBytes(type) >
        memory_->buffers().slot_bytes) {
      return nccl_->AllReduceSum(buffer, num_elements, type, stream);
    }
    SY_RETURN_IF_ERROR(nccl_->health());
    if (num_elements == 0) return absl::OkStatus();
    PeerShape shape;
    shape.form = form_;
    return LaunchPeerReduce(memory_->buffers(), buffer, num_elements, type,
                            static_cast<cudaStream_t>(stream), shape);
  }

  absl::StatusOr<bool> TryAllReduceAddRmsNorm(
      const AddRmsNormArgs& args, CollectiveStream stream) override {
    if (!CanReduceNorm(memory_->buffers(), args)) return false;
    SY_RETURN_IF_ERROR(nccl_->health());
    SY_RETURN_IF_ERROR(LaunchPeerReduceNorm(
        memory_->buffers(), args, static_cast<cudaStream_t>(stream), form_));
    return true;
  }

  absl::Status AllGather(const void* input, void* output, int64_t num_elements,
                         CollectiveType type,
                         CollectiveStream stream) override {
    return nccl_->AllGather(input, output, num_elements, type, stream);
  }

  absl::Status Barrier() override { return nccl_->Barrier(); }

  // The status first: who sees a kernel end early must find out why.
  void Abort() override {
    nccl_->Abort();
    memory_->Stop();
  }

  absl::Status health() override { return nccl_->health(); }

  int rank() const override { return nccl_->rank(); }
  int world_size() const override { return nccl_->world_size(); }
  absl::Duration time_spent() const override { return nccl_->time_spent(); }

 private:
  // Releases kernels that wait for a peer which NCCL has lost.
  void Watch() {
    absl::MutexLock lock(&mutex_);
    while (
        !mutex_.AwaitWithTimeout(absl::Condition(&stopping_), kWatchPeriod)) {
      if (nccl_->health().ok()) continue;
      memory_->Stop();
      return;
    }
  }

  const PeerForm form_;
  std::unique_ptr<Collective> nccl_;
  const std::unique_ptr<PeerGpuMemory> memory_;

  absl::Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;

  std::thread watcher_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Collective>> MakePeerCollective(
    const PeerCollectiveOptions& options, Rendezvous& rendezvous) {
  int device = 0;
  SY_RETURN_IF_CUDA_ERROR(cudaGetDevice(&device));
  SY_ASSIGN_OR_RETURN(std::unique_ptr<Collective> nccl,
                      MakeNcclCollective(options.group, rendezvous));
  auto memory = std::make_unique<PeerGpuMemory>(options, device);
  SY_ASSIGN_OR_RETURN(const PeerAgreement agreement,
                      AgreeOnPeers(options.group, rendezvous, *memory));
  if (!agreement.agreed) {
    Log(LogLevel::kInfo, "all-reduces go to NCCL",
        {{"why", agreement.objection}});
    return nccl;
  }
  Log(LogLevel::kInfo, "short all-reduces go through the peers' memory",
      {{"max_bytes", memory->buffers().slot_bytes}});
  return std::make_unique<PeerCollective>(std::move(nccl), std::move(memory),
                                          options.form);
}

}  // namespace switchyard
