// StepDevice: what the executor needs of a device beside ops, to keep several
// steps in its stream: marks that tell how far it has come, whole steps as
// graphs, and tokens that pass from one step to the next without the host.
//
// All work is ordered on the device's stream. On the CPU work is done when a
// call returns, so every mark is reached at once, and there are no graphs.
// Thread safety: as Device.
#ifndef SWITCHYARD_WORKER_STEP_DEVICE_H_
#define SWITCHYARD_WORKER_STEP_DEVICE_H_

#include <cstdint>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kernels/device.h"

namespace switchyard {

// A place in the stream, with the time at which the device came by.
class StreamMark {
 public:
  virtual ~StreamMark() = default;
  // From now on the mark is where the stream ends now.
  virtual absl::Status Set() = 0;
  // Whether everything before it is done; an error of that work surfaces here.
  virtual absl::StatusOr<bool> Reached() = 0;
  // From `earlier` to this mark. REQUIRES: both are reached, and are of the
  // same device.
  virtual absl::StatusOr<absl::Duration> Since(const StreamMark& earlier) = 0;
};

// Recorded work, ready to be launched any number of times. It reads and writes
// the same addresses every time.
class StepGraph {
 public:
  virtual ~StepGraph() = default;
  virtual absl::Status Launch() = 0;
  virtual int64_t num_nodes() const = 0;
};

// A second stream of the device: what is put into it runs beside what the
// device's own stream is given afterwards, until that joins it.
class SideStream {
 public:
  virtual ~SideStream() = default;
  virtual void* handle() const = 0;  // of the device's kind: cudaStream_t
  // What it is given from now on follows what the device's own stream has now.
  virtual absl::Status Fork() = 0;
  // Names what it has now. The first is 0, each other larger than all before.
  virtual absl::StatusOr<int64_t> Mark() = 0;
  // What the device's own stream is given from now on follows what this one had
  // at the mark.
  virtual absl::Status Join(int64_t mark) = 0;
};

// token_ids[i] <- last_tokens[sources[i]] where sources[i] >= 0. All arrays are
// on the device.
struct FetchTokensArgs {
  int32_t num_tokens = 0;
  const int32_t* sources = nullptr;      // [num_tokens]
  const int32_t* last_tokens = nullptr;  // by slot
  int32_t* token_ids = nullptr;          // [num_tokens]
};

// last_tokens[slots[i]] <- token_ids[i].
struct StoreTokensArgs {
  int32_t num_tokens = 0;
  const int32_t* token_ids = nullptr;  // [num_tokens]
  const int32_t* slots = nullptr;      // [num_tokens]
  int32_t* last_tokens = nullptr;      // by slot
};

class StepDevice {
 public:
  virtual ~StepDevice() = default;

  virtual absl::StatusOr<std::unique_ptr<StreamMark>> MakeMark() = 0;

  // Null where work is done when a call returns.
  virtual absl::StatusOr<std::unique_ptr<SideStream>> MakeSideStream() = 0;

  virtual bool has_graphs() const = 0;
  // Records what `launch` puts into the stream, without running it. What it
  // launches must have run once before: kernels are loaded and libraries set up
  // at their first use. Unimplemented where there are no graphs.
  virtual absl::StatusOr<std::unique_ptr<StepGraph>> Record(
      absl::FunctionRef<absl::Status()> launch) = 0;

  virtual absl::Status FetchTokens(const FetchTokensArgs& args) = 0;
  virtual absl::Status StoreTokens(const StoreTokensArgs& args) = 0;
};

// Borrows the device, which outlives everything made here.
std::unique_ptr<StepDevice> MakeStepDevice(Device* device);

namespace internal {

// REQUIRES: a CUDA device.
std::unique_ptr<StepDevice> MakeCudaStepDevice(Device* device);

}  // namespace internal
}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_STEP_DEVICE_H_
