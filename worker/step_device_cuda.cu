#include <cuda_runtime_api.h>

#include "kernels/cuda_common.h"
#include "kernels/cuda_device.h"
#include "kernels/cuda_status.h"
#include "kernels/status.h"
#include "worker/step_device.h"

namespace switchyard::internal {
namespace {

using namespace switchyard::cuda;

constexpr int kThreads = 256;

// One block, so that its order among the kernels around it is all it needs.
__global__ void FetchTokensKernel(const FetchTokensArgs args) {
  GridTrigger();
  GridWait();
  for (int32_t i = threadIdx.x; i < args.num_tokens; i += kThreads) {
    const int32_t source = args.sources[i];
    if (source >= 0) args.token_ids[i] = args.last_tokens[source];
  }
}

__global__ void StoreTokensKernel(const StoreTokensArgs args) {
  GridTrigger();
  GridWait();
  for (int32_t i = threadIdx.x; i < args.num_tokens; i += kThreads)
    args.last_tokens[args.slots[i]] = args.token_ids[i];
}

class CudaMark final : public StreamMark {
 public:
  CudaMark(cudaEvent_t event, cudaStream_t stream)
      : event_(event), stream_(stream) {}
  ~CudaMark() override { cudaEventDestroy(event_); }

  absl::Status Set() override {
    SY_RETURN_IF_CUDA_ERROR(cudaEventRecord(event_, stream_));
    return absl::OkStatus();
  }
  absl::StatusOr<bool> Reached() override {
    const cudaError_t code = cudaEventQuery(event_);
    if (code == cudaErrorNotReady) return false;
    SY_RETURN_IF_CUDA_ERROR(code);
    return true;
  }
  absl::StatusOr<absl::Duration> Since(const StreamMark& earlier) override {
    float ms = 0;
    SY_RETURN_IF_CUDA_ERROR(cudaEventElapsedTime(
        &ms, static_cast<const CudaMark&>(earlier).event_, event_));
    return absl::Milliseconds(ms);
  }

 private:
  const cudaEvent_t event_;
  const cudaStream_t stream_;
};

class CudaStepGraph final : public StepGraph {
 public:
  CudaStepGraph(cudaGraphExec_t graph, int64_t num_nodes, cudaStream_t stream)
      : graph_(graph), num_nodes_(num_nodes), stream_(stream) {}
  // The stream may still run it; CUDA keeps what it needs until then.
  ~CudaStepGraph() override { cudaGraphExecDestroy(graph_); }

  absl::Status Launch() override {
    SY_RETURN_IF_CUDA_ERROR(cudaGraphLaunch(graph_, stream_));
    return absl::OkStatus();
  }
  int64_t num_nodes() const override { return num_nodes_; }

 private:
  const cudaGraphExec_t graph_;
  const int64_t num_nodes_;
  const cudaStream_t stream_;
};

class CudaSideStream final : public SideStream {
 public:
  // Of the highest priority: the other ranks wait for what is in it, so it does
  // not queue behind the blocks of a product.
  static absl::StatusOr<std::unique_ptr<SideStream>> Make(cudaStream_t main) {
    std::unique_ptr<CudaSideStream> side(new CudaSideStream(main));
    int lowest = 0, highest = 0;
    SY_RETURN_IF_CUDA_ERROR(
        cudaDeviceGetStreamPriorityRange(&lowest, &highest));
    SY_RETURN_IF_CUDA_ERROR(cudaStreamCreateWithPriority(
        &side->stream_, cudaStreamNonBlocking, highest));
    SY_RETURN_IF_CUDA_ERROR(
        cudaEventCreateWithFlags(&side->fork_, cudaEventDisableTiming));
    for (cudaEvent_t& mark : side->marks_) {
      SY_RETURN_IF_CUDA_ERROR(
          cudaEventCreateWithFlags(&mark, cudaEventDisableTiming));
    }
    return side;
  }
  ~CudaSideStream() override {
    for (cudaEvent_t mark : marks_) {
      if (mark != nullptr) cudaEventDestroy(mark);
    }
    if (fork_ != nullptr) cudaEventDestroy(fork_);
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
  }

  void* handle() const override { return stream_; }
  absl::Status Fork() override {
    SY_RETURN_IF_CUDA_ERROR(cudaEventRecord(fork_, main_));
    SY_RETURN_IF_CUDA_ERROR(cudaStreamWaitEvent(stream_, fork_));
    return absl::OkStatus();
  }
  absl::StatusOr<int64_t> Mark() override {
    const int64_t mark = num_marks_++;
    SY_RETURN_IF_CUDA_ERROR(cudaEventRecord(marks_[mark % kNumMarks], stream_));
    return mark;
  }
  // An event that has been recorded anew stands for a later mark, which takes
  // in this one.
  absl::Status Join(int64_t mark) override {
    SY_RETURN_IF_CUDA_ERROR(
        cudaStreamWaitEvent(main_, marks_[mark % kNumMarks]));
    return absl::OkStatus();
  }

 private:
  static constexpr int kNumMarks = 16;

  explicit CudaSideStream(cudaStream_t main) : main_(main) {}

  const cudaStream_t main_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t fork_ = nullptr;
  cudaEvent_t marks_[kNumMarks] = {};
  int64_t num_marks_ = 0;
};

class CudaStepDevice final : public StepDevice {
 public:
  explicit CudaStepDevice(CudaDevice* device)
      : device_(device), stream_(device->cuda_stream()) {}

  absl::StatusOr<std::unique_ptr<StreamMark>> MakeMark() override {
    cudaEvent_t event = nullptr;
    SY_RETURN_IF_CUDA_ERROR(cudaEventCreate(&event));
    return std::make_unique<CudaMark>(event, stream_);
  }

  absl::StatusOr<std::unique_ptr<SideStream>> MakeSideStream() override {
    return CudaSideStream::Make(stream_);
  }

  bool has_graphs() const override { return true; }

  absl::StatusOr<std::unique_ptr<StepGraph>> Record(
      absl::FunctionRef<absl::Status()> launch) override {
    // Thread-local: other threads, such as the collective's watcher, go on.
    SY_RETURN_IF_CUDA_ERROR(
        cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    const absl::Status launched = launch();
    cudaGraph_t graph = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(stream_, &graph);
    if (!launched.ok()) {
      if (graph != nullptr) cudaGraphDestroy(graph);
      cudaGetLastError();
      return launched;
    }
    SY_RETURN_IF_CUDA_ERROR(ended);
    size_t num_nodes = 0;
    cudaGraphExec_t executable = nullptr;
    cudaError_t code = cudaGraphGetNodes(graph, nullptr, &num_nodes);
    if (code == cudaSuccess) {
      code = cudaGraphInstantiate(&executable, graph, 0);
    }
    cudaGraphDestroy(graph);
    SY_RETURN_IF_CUDA_ERROR(code);
    auto result = std::make_unique<CudaStepGraph>(
        executable, static_cast<int64_t>(num_nodes), stream_);
    // Its first launch is then as quick as the others.
    SY_RETURN_IF_CUDA_ERROR(cudaGraphUpload(executable, stream_));
    return result;
  }

  absl::Status FetchTokens(const FetchTokensArgs& args) override {
    const OpContext context{device_, nullptr, false};
    return Launch(context, "FetchTokens", FetchTokensKernel,
                  {dim3(1), dim3(kThreads)}, args);
  }
  absl::Status StoreTokens(const StoreTokensArgs& args) override {
    const OpContext context{device_, nullptr, false};
    return Launch(context, "StoreTokens", StoreTokensKernel,
                  {dim3(1), dim3(kThreads)}, args);
  }

 private:
  CudaDevice* const device_;
  const cudaStream_t stream_;
};

}  // namespace

std::unique_ptr<StepDevice> MakeCudaStepDevice(Device* device) {
  return std::make_unique<CudaStepDevice>(AsCuda(device));
}

}  // namespace switchyard::internal
