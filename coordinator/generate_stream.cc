#include "coordinator/generate_stream.h"

#include <grpcpp/impl/codegen/proto_utils.h>

#include <utility>

#include "coordinator/client_status.h"
#include "kernels/check.h"

namespace switchyard {
namespace {

// A pending chunk of so many bytes gets no more tokens. gRPC's clients refuse
// messages of more than 4 MiB unless told otherwise.
constexpr size_t kLongChunkBytes = 64 << 10;

// At most, of one token id on the wire.
constexpr size_t kTokenIdBytes = 5;

void Serialize(const v1::GenerateResponse& message, grpc::ByteBuffer* buffer) {
  buffer->Clear();  // gRPC serialises into empty buffers only
  bool own_buffer = false;
  const grpc::Status status =
      grpc::SerializationTraits<v1::GenerateResponse>::Serialize(
          message, buffer, &own_buffer);
  SY_CHECK(status.ok());
}

}  // namespace

void GenerateStream::Start(EngineRequest request) {
  {
    absl::MutexLock lock(&mutex_);
    complete_.set_request_id(request.request_id);
    chunk_.set_request_id(request.request_id);
  }
  Engine* const engine = engine_;
  const uint64_t handle = engine->Submit(std::move(request), this);
  bool cancel = false;
  Next next = Next::kNothing;
  {
    absl::MutexLock lock(&mutex_);
    handle_ = handle;
    is_starting_ = false;
    cancel = is_cancelled_ && !ended_;
    next = Advance();
  }
  // From here on the engine's last event may already have ended the call, and
  // this object, unless there is something to do.
  if (cancel) engine->Cancel(handle);
  if (next != Next::kNothing) Do(next);
}

void GenerateStream::Refuse(const absl::Status& why) {
  Next next = Next::kNothing;
  {
    absl::MutexLock lock(&mutex_);
    is_starting_ = false;
    ended_ = true;
    status_ = why;
    next = Advance();
  }
  Do(next);
}

void GenerateStream::OnAdmitted() {
  admitted_ = true;
  open_->Add();
  StartSendInitialMetadata();
}

void GenerateStream::OnTokens(const TokenDelta& delta) {
  Next next = Next::kNothing;
  {
    absl::MutexLock lock(&mutex_);
    if (broken_) return;
    if (chunk_bytes_ >= kLongChunkBytes) {
      Serialize(chunk_, &long_chunks_.emplace_back());
      ClearChunk();
    }
    v1::TokenChunk* chunk = chunk_.mutable_chunk();
    chunk_bytes_ += delta.text.size() + delta.token_ids.size() * kTokenIdBytes;
    chunk->mutable_token_ids()->Add(delta.token_ids.begin(),
                                    delta.token_ids.end());
    chunk->mutable_text()->append(delta.text.data(), delta.text.size());
    if (delta.logprobs != nullptr) {
      for (size_t i = 0; i < delta.token_ids.size(); ++i) {
        chunk_bytes_ += delta.logprobs[i].ByteSizeLong();
        chunk->add_logprobs()->Swap(&delta.logprobs[i]);
      }
    }
    has_pending_ = true;
    next = Advance();
  }
  Do(next);
}

void GenerateStream::OnComplete(v1::GenerateComplete complete) {
  Next next = Next::kNothing;
  {
    absl::MutexLock lock(&mutex_);
    ended_ = true;
    has_complete_ = true;
    *complete_.mutable_complete() = std::move(complete);
    next = Advance();
  }
  Do(next);
}

void GenerateStream::OnError(const absl::Status& status) {
  Next next = Next::kNothing;
  {
    absl::MutexLock lock(&mutex_);
    ended_ = true;
    status_ = status;
    next = Advance();
  }
  Do(next);
}

void GenerateStream::OnWriteDone(bool ok) {
  Next next = Next::kNothing;
  bool cancel = false;
  uint64_t handle = 0;
  {
    absl::MutexLock lock(&mutex_);
    is_writing_ = false;
    handle = handle_;
    if (!ok) {
      cancel = !broken_ && !ended_;
      broken_ = true;
    }
    next = Advance();
  }
  if (cancel) engine_->Cancel(handle);
  Do(next);
}

void GenerateStream::OnCancel() {
  uint64_t handle = 0;
  {
    absl::MutexLock lock(&mutex_);
    is_cancelled_ = true;
    if (is_starting_) return;  // Start sees it
    handle = handle_;
  }
  if (handle != 0) engine_->Cancel(handle);
}

void GenerateStream::ClearChunk() {
  chunk_.mutable_chunk()->Clear();
  chunk_bytes_ = 0;
  has_pending_ = false;
}

GenerateStream::Next GenerateStream::Advance() {
  if (is_starting_ || is_writing_) return Next::kNothing;
  if (broken_) {
    has_pending_ = has_complete_ = false;
    long_chunks_.clear();
    if (!ended_) return Next::kNothing;
    if (status_.ok()) status_ = absl::CancelledError("the client went away");
    return Next::kFinish;
  }
  if (!long_chunks_.empty()) {
    writing_.Swap(&long_chunks_.front());
    long_chunks_.pop_front();
    is_writing_ = true;
    return Next::kWrite;
  }
  if (has_pending_) {
    Serialize(chunk_, &writing_);
    ClearChunk();
    is_writing_ = true;
    return Next::kWrite;
  }
  if (has_complete_) {
    Serialize(complete_, &writing_);
    has_complete_ = false;
    is_writing_ = true;
    return Next::kWrite;
  }
  return ended_ ? Next::kFinish : Next::kNothing;
}

void GenerateStream::Do(Next next) {
  switch (next) {
    case Next::kNothing:
      return;
    case Next::kWrite:
      StartWrite(&writing_);
      return;
    case Next::kFinish: {
      // No other thread comes here any more: the engine's last event and the
      // last write have both happened.
      absl::Status status;
      {
        absl::MutexLock lock(&mutex_);
        status = status_;
      }
      Finish(ToClientStatus(status));
      return;
    }
  }
}

}  // namespace switchyard
