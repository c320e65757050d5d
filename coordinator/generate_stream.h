// One Generate call on the wire.
#ifndef SWITCHYARD_COORDINATOR_GENERATE_STREAM_H_
#define SWITCHYARD_COORDINATOR_GENERATE_STREAM_H_

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "coordinator/engine.h"
#include "coordinator/request.h"
#include "switchyard/v1/generation.pb.h"

namespace switchyard {

// The streams that have been admitted and are not written to their ends yet.
// Thread-safe.
class OpenStreams {
 public:
  void Add() ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    ++count_;
  }
  void Remove() ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    --count_;
  }
  // Or until `patience` ends.
  void WaitUntilNone(absl::Duration patience) ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    mutex_.AwaitWithTimeout(
        absl::Condition(
            +[](int* count) { return *count == 0; }, &count_),
        patience);
  }

 private:
  absl::Mutex mutex_;
  int count_ ABSL_GUARDED_BY(mutex_) = 0;
};

// Between the engine's thread, which pushes events, and gRPC's threads, which
// report what has been written. At most one write is outstanding; events that
// come meanwhile join one pending chunk, or several where one message would
// grow too long for a client to take. Deletes itself when gRPC is done with
// it, which is after the engine's last event, because only that ends the call.
class GenerateStream final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                             public RequestSink {
 public:
  // Both are borrowed.
  GenerateStream(Engine* engine, OpenStreams* open)
      : engine_(engine), open_(open) {}

  // One of these, once, on any thread; gRPC may have the reactor already.
  void Start(EngineRequest request) ABSL_LOCKS_EXCLUDED(mutex_);
  void Refuse(const absl::Status& why) ABSL_LOCKS_EXCLUDED(mutex_);

  // Whether the client is known to be gone.
  bool is_cancelled() const ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    return is_cancelled_;
  }

  // RequestSink, on the engine's thread.
  void OnAdmitted() override;
  void OnTokens(const TokenDelta& delta) override ABSL_LOCKS_EXCLUDED(mutex_);
  void OnComplete(v1::GenerateComplete complete) override
      ABSL_LOCKS_EXCLUDED(mutex_);
  void OnError(const absl::Status& status) override ABSL_LOCKS_EXCLUDED(mutex_);

  // ServerWriteReactor, on gRPC's threads.
  void OnWriteDone(bool ok) override ABSL_LOCKS_EXCLUDED(mutex_);
  void OnCancel() override ABSL_LOCKS_EXCLUDED(mutex_);
  void OnDone() override {
    if (admitted_) open_->Remove();
    delete this;
  }

 private:
  enum class Next { kNothing, kWrite, kFinish };

  // What to do now that no write is outstanding. A write has been serialised
  // into writing_.
  Next Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ClearChunk() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Does it. After kFinish nothing may touch this object.
  void Do(Next next) ABSL_LOCKS_EXCLUDED(mutex_);

  Engine* const engine_;
  OpenStreams* const open_;
  bool admitted_ = false;  // written by the engine's thread, before the end

  mutable absl::Mutex mutex_;
  uint64_t handle_ ABSL_GUARDED_BY(mutex_) = 0;  // 0 until the engine has it
  // Until Start or Refuse is through: nothing is written before, so that gRPC
  // cannot be done with this object while one of them uses it.
  bool is_starting_ ABSL_GUARDED_BY(mutex_) = true;
  bool is_cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  bool is_writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool has_pending_ ABSL_GUARDED_BY(mutex_) = false;  // chunk_ has something
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;   // the engine's last event came
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;  // the client does not read
  bool has_complete_ ABSL_GUARDED_BY(mutex_) = false;
  // Chunks that are long enough, before chunk_.
  std::deque<grpc::ByteBuffer> long_chunks_ ABSL_GUARDED_BY(mutex_);
  // Reused for every message: its strings and arrays keep their memory.
  v1::GenerateResponse chunk_ ABSL_GUARDED_BY(mutex_);
  size_t chunk_bytes_ ABSL_GUARDED_BY(mutex_) = 0;  // about
  v1::GenerateResponse complete_ ABSL_GUARDED_BY(mutex_);
  absl::Status status_ ABSL_GUARDED_BY(mutex_);  // how the call ends
  grpc::ByteBuffer writing_;  // untouched while a write is outstanding
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_GENERATE_STREAM_H_
