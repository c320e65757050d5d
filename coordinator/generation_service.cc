#include "coordinator/generation_service.h"

#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/support/server_callback.h>

#include <chrono>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/random/random.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "coordinator/client_status.h"
#include "coordinator/generate_stream.h"
#include "coordinator/request.h"
#include "coordinator/request_lane.h"
#include "kernels/check.h"
#include "kernels/status.h"
#include "rpc/tokens.h"
#include "switchyard/v1/generation.grpc.pb.h"
#include "switchyard/v1/generation.pb.h"

namespace switchyard {
namespace {

// Requests arrive as bytes, because gRPC reports a message that cannot be
// parsed (a string that is not UTF-8, say) as unimplemented.
using Base = v1::GenerationService::WithRawCallbackMethod_Generate<
    v1::GenerationService::WithRawCallbackMethod_Tokenize<
        v1::GenerationService::WithRawCallbackMethod_Detokenize<
            v1::GenerationService::WithRawCallbackMethod_GetModelInfo<
                v1::GenerationService::Service>>>>;

// Requests up to this size are read at once, on gRPC's own thread: some ten
// milliseconds at the most. Longer ones take the lane.
constexpr size_t kMaxBytesAtOnce = 32 << 10;
// What may wait in the lane: some twenty seconds of its work.
constexpr int64_t kMaxWaitingBytes = 64 << 20;
constexpr absl::Duration kLaneRetryDelay = absl::Seconds(1);

template <typename Message>
absl::StatusOr<Message> Parse(grpc::ByteBuffer bytes) {
  Message message;
  if (grpc::SerializationTraits<Message>::Deserialize(&bytes, &message).ok()) {
    return message;
  }
  return absl::InvalidArgumentError(
      absl::StrCat(Message::descriptor()->name(),
                   ": cannot be parsed; are all its strings UTF-8?"));
}

void Serialize(const google::protobuf::Message& message,
               grpc::ByteBuffer* bytes) {
  bool own_buffer = false;
  SY_CHECK(grpc::SerializationTraits<google::protobuf::Message>::Serialize(
               message, bytes, &own_buffer)
               .ok());
}

}  // namespace

class GenerationService::Impl final : public Base {
 public:
  Impl(Engine* engine, const ServedModel* model, TokenSet* tokens)
      : engine_(engine), model_(model), tokens_(tokens) {
    absl::MutexLock lock(&mutex_);
    id_prefix_ = absl::StrFormat("%08x", absl::Uniform<uint32_t>(random_));
  }

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(
      grpc::CallbackServerContext* context,
      const grpc::ByteBuffer* bytes) override {
    auto* stream = new GenerateStream(engine_, &open_streams_);
    if (absl::Status status = CheckToken(tokens_, *context); !status.ok()) {
      Refuse("", status, stream);
      return stream;
    }
    const auto received = std::chrono::steady_clock::now();
    const absl::Status posted =
        AtOnceOrInLane(*bytes, [this, stream, received, message = *bytes] {
          if (stream->is_cancelled()) {
            stream->Refuse(absl::CancelledError("the client went away"));
          } else {
            Begin(message, received, stream);
          }
        });
    if (!posted.ok()) Refuse("", posted, stream);
    return stream;
  }

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* request,
                                     grpc::ByteBuffer* response) override {
    return Answer(context, &Impl::DoTokenize, request, response);
  }

  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override {
    return Answer(context, &Impl::DoDetokenize, request, response);
  }

  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context,
                                         const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response) override {
    return Answer(context, &Impl::DoGetModelInfo, request, response);
  }

  OpenStreams* open_streams() { return &open_streams_; }

 private:
  void Refuse(absl::string_view request_id, const absl::Status& why,
              GenerateStream* stream) {
    engine_->ReportRefused(request_id.substr(0, kMaxRequestIdBytes), why);
    stream->Refuse(why);
  }

  // Runs `read`, which works on `bytes`: here if they are few, else in the
  // lane. ResourceExhausted, and it is not run, if that is full.
  absl::Status AtOnceOrInLane(const grpc::ByteBuffer& bytes,
                              std::function<void()> read) {
    if (bytes.Length() <= kMaxBytesAtOnce) {
      read();
      return absl::OkStatus();
    }
    if (lane_.Post(static_cast<int64_t>(bytes.Length()), std::move(read))) {
      return absl::OkStatus();
    }
    return WithRetryDelay(
        absl::ResourceExhaustedError(absl::StrCat(
            "too many long requests wait to be tokenized: more than ",
            kMaxWaitingBytes >> 20, " MiB")),
        kLaneRetryDelay);
  }

  // Reads the request and hands it to the engine, or refuses it.
  void Begin(const grpc::ByteBuffer& bytes,
             std::chrono::steady_clock::time_point received,
             GenerateStream* stream) {
    const absl::StatusOr<v1::GenerateRequest> message =
        Parse<v1::GenerateRequest>(bytes);
    if (!message.ok()) return Refuse("", message.status(), stream);
    std::string assigned_id;
    uint64_t seed = 0;
    Draw(&assigned_id, &seed);
    absl::StatusOr<EngineRequest> request =
        ParseGenerateRequest(*message, *model_, assigned_id, seed);
    if (!request.ok()) {
      return Refuse(
          message->request_id().empty() ? assigned_id : message->request_id(),
          request.status(), stream);
    }
    request->received = received;
    stream->Start(*std::move(request));
  }

  void Draw(std::string* request_id, uint64_t* seed)
      ABSL_LOCKS_EXCLUDED(mutex_) {
    absl::MutexLock lock(&mutex_);
    *request_id = absl::StrCat("req-", id_prefix_, "-", ++num_ids_);
    *seed = absl::Uniform<uint64_t>(random_);
  }

  absl::Status NeedsTokenizer(absl::string_view feature) const {
    if (model_->tokenizer != nullptr) return absl::OkStatus();
    return absl::UnimplementedError(
        absl::StrCat(feature, ": ", model_->name, " has no tokenizer.json"));
  }

  // A unary call.
  template <typename Request, typename Response>
  grpc::ServerUnaryReactor* Answer(
      grpc::CallbackServerContext* context,
      absl::Status (Impl::*method)(const Request&, Response*) const,
      const grpc::ByteBuffer* bytes, grpc::ByteBuffer* response_bytes) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    absl::Status status = CheckToken(tokens_, *context);
    if (status.ok()) {
      status = AtOnceOrInLane(*bytes, [this, method, context, message = *bytes,
                                       response_bytes, reactor] {
        if (context->IsCancelled()) {
          reactor->Finish(grpc::Status::CANCELLED);
          return;
        }
        const absl::StatusOr<Request> request = Parse<Request>(message);
        Response response;
        const absl::Status done = request.ok()
                                      ? (this->*method)(*request, &response)
                                      : request.status();
        if (done.ok()) Serialize(response, response_bytes);
        reactor->Finish(ToClientStatus(done));
      });
    }
    if (!status.ok()) reactor->Finish(ToClientStatus(status));
    return reactor;
  }

  absl::Status DoTokenize(const v1::TokenizeRequest& request,
                          v1::TokenizeResponse* response) const {
    SY_RETURN_IF_ERROR(NeedsTokenizer("Tokenize"));
    const bool add_special_tokens =
        !request.has_add_special_tokens() || request.add_special_tokens();
    absl::StatusOr<std::vector<uint32_t>> ids =
        model_->tokenizer->Encode(request.text(), add_special_tokens);
    if (!ids.ok()) {
      return absl::Status(ids.status().code(),
                          absl::StrCat("text: ", ids.status().message()));
    }
    response->mutable_token_ids()->Add(ids->begin(), ids->end());
    return absl::OkStatus();
  }

  absl::Status DoDetokenize(const v1::DetokenizeRequest& request,
                            v1::DetokenizeResponse* response) const {
    SY_RETURN_IF_ERROR(NeedsTokenizer("Detokenize"));
    for (int i = 0; i < request.token_ids_size(); ++i) {
      if (request.token_ids(i) <
          static_cast<uint32_t>(model_->config.vocab_size)) {
        continue;
      }
      return absl::InvalidArgumentError(
          absl::StrCat("token_ids[", i, "]: ", request.token_ids(i),
                       " is not below the vocabulary's size of ",
                       model_->config.vocab_size));
    }
    response->set_text(model_->tokenizer->Decode(
        {request.token_ids().data(),
         static_cast<size_t>(request.token_ids_size())},
        request.skip_special_tokens()));
    return absl::OkStatus();
  }

  absl::Status DoGetModelInfo(const v1::GetModelInfoRequest& /*request*/,
                              v1::GetModelInfoResponse* response) const {
    const ModelConfig& config = model_->config;
    response->set_model(model_->name);
    response->set_vocab_size(config.vocab_size);
    response->set_max_context_tokens(model_->max_context_tokens);
    response->set_num_layers(config.num_layers());
    for (const int32_t id : config.eos_token_ids) {
      response->add_eos_token_ids(id);
    }
    response->set_has_tokenizer(model_->tokenizer != nullptr);
    const std::shared_ptr<const PlacementTable> table = engine_->placements();
    *response->mutable_default_placement() =
        table->ToProto(table->default_placement());
    response->set_epoch(table->epoch());
    return absl::OkStatus();
  }

  Engine* const engine_;
  const ServedModel* const model_;
  TokenSet* const tokens_;  // null: none are needed
  OpenStreams open_streams_;
  absl::Mutex mutex_;
  absl::BitGen random_ ABSL_GUARDED_BY(mutex_);
  std::string id_prefix_ ABSL_GUARDED_BY(mutex_);  // of this server's life
  uint64_t num_ids_ ABSL_GUARDED_BY(mutex_) = 0;
  RequestLane lane_{kMaxWaitingBytes};  // its thread uses all of the above
};

GenerationService::GenerationService(Engine* engine, const ServedModel* model,
                                     TokenSet* tokens)
    : impl_(std::make_unique<Impl>(engine, model, tokens)) {}

GenerationService::~GenerationService() = default;

grpc::Service* GenerationService::service() { return impl_.get(); }

void GenerationService::WaitForStreams(absl::Duration patience) {
  impl_->open_streams()->WaitUntilNone(patience);
}

}  // namespace switchyard
