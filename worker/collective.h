// The collective operations of one rank of a tensor-parallel group.
//
// Every rank of the group must make the same calls, in the same order, with the
// same counts and types. One thread at a time may call the operations; Abort()
// may be called from any other thread at any moment. An operation begins when
// the one before has ended: the caller sees to that where their streams differ.
//
// Determinism: a sum is formed element by element in rank order (((r0 + r1) +
// r2) + r3), whatever the size of the message, so every rank holds the same
// bits and an element's sum does not depend on what travels beside it.
//
// After any error the group is over: every later operation fails too. Errors:
// kUnavailable (a peer is gone; named when known), kDeadlineExceeded (a peer
// did not take part in time), kAborted (Abort() was called).
#ifndef SWITCHYARD_WORKER_COLLECTIVE_H_
#define SWITCHYARD_WORKER_COLLECTIVE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace switchyard {

class Rendezvous;
struct AddRmsNormArgs;  // kernels/rms_norm.h

enum class CollectiveType { kFloat32, kBfloat16 };

inline constexpr int64_t CollectiveTypeBytes(CollectiveType type) {
  return type == CollectiveType::kFloat32 ? 4 : 2;
}

// A device stream (cudaStream_t) that orders an operation among kernels; null
// on the CPU, where operations are complete when they return.
using CollectiveStream = void*;

class Collective {
 public:
  virtual ~Collective() = default;

  // buffer <- the sum over ranks of buffer, in place.
  virtual absl::Status AllReduceSum(void* buffer, int64_t num_elements,
                                    CollectiveType type,
                                    CollectiveStream stream) = 0;

  // Does AddRmsNorm(args) with the sum over ranks of args.delta, if it has one
  // operation for both; returns false, having done nothing, if it has not,
  // which depends on nothing in which ranks may differ. Leaves the delta
  // undefined. The same bits as AllReduceSum and AddRmsNorm one after the
  // other. REQUIRES: the ranks' args are alike but for addresses and strides.
  virtual absl::StatusOr<bool> TryAllReduceAddRmsNorm(
      const AddRmsNormArgs& args, CollectiveStream stream) {
    return false;
  }

  // output [world_size, num_elements] <- every rank's input [num_elements], in
  // rank order. The input may lie at its own place inside the output.
  virtual absl::Status AllGather(const void* input, void* output,
                                 int64_t num_elements, CollectiveType type,
                                 CollectiveStream stream) = 0;

  // Returns when every rank has called it. Synchronous on every device.
  virtual absl::Status Barrier() = 0;

  // Ends the group: pending and later operations of this rank return kAborted
  // soon, those of its peers kUnavailable. Idempotent; any thread.
  virtual void Abort() = 0;

  // What an operation would fail with now, or OK. Where operations are
  // asynchronous this is how their failures are learnt of. Any thread.
  virtual absl::Status health() { return absl::OkStatus(); }

  virtual int rank() const = 0;
  virtual int world_size() const = 0;

  // Time spent inside operations so far; where they are asynchronous, an
  // estimate. Any thread.
  virtual absl::Duration time_spent() const = 0;
};

// What a rank needs to meet its peers.
struct CollectiveOptions {
  int rank = 0;
  int world_size = 1;
  // The local address that peers can reach, without a port.
  std::string local_host = "127.0.0.1";
  // How long connecting may take: ranks load at different speeds.
  absl::Duration connect_timeout = absl::Minutes(5);
  // How long one operation may wait for a peer that is alive but silent.
  absl::Duration operation_timeout = absl::Seconds(30);
};

// Joins the group: meets the peers through `rendezvous` (borrowed for the call)
// and returns when all are connected.
using CollectiveFactory =
    std::function<absl::StatusOr<std::unique_ptr<Collective>>(
        const CollectiveOptions& options, Rendezvous& rendezvous)>;

// The collective of a group of one: every operation is the identity.
std::unique_ptr<Collective> MakeLocalCollective();

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_COLLECTIVE_H_
