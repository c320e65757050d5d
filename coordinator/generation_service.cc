#include "coordinator/generation_service.h"

#include <grpcpp/impl/codegen/proto_utils.h>
#include <grpcpp/support/server_callback.h>

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
#include "coordinator/log.h"
#include "coordinator/request.h"
#include "kernels/check.h"
#include "kernels/status.h"
#include "switchyard/v1/generation.grpc.pb.h"
#include "switchyard/v1/generation.pb.h"

namespace switchyard {
namespace {

// Requests with strings arrive as bytes, because gRPC reports a message that
// cannot be parsed (a string that is not UTF-8, say) as unimplemented.
using Base = v1::GenerationService::WithRawCallbackMethod_Generate<
    v1::GenerationService::WithRawCallbackMethod_Tokenize<
        v1::GenerationService::WithCallbackMethod_Detokenize<
            v1::GenerationService::WithCallbackMethod_GetModelInfo<
                v1::GenerationService::Service>>>>;

template <typename Message>
absl::StatusOr<Message> Parse(const grpc::ByteBuffer* bytes) {
  Message message;
  grpc::ByteBuffer copy = *bytes;  // shares the memory
  if (grpc::SerializationTraits<Message>::Deserialize(&copy, &message).ok()) {
    return message;
  }
  return absl::InvalidArgumentError(
      absl::StrCat(Message::descriptor()->name(),
                   ": cannot be parsed; are all its strings UTF-8?"));
}

// A call that fails before there is a stream.
class RefusedStream final : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  explicit RefusedStream(const absl::Status& status) {
    Finish(ToClientStatus(status));
  }
  void OnDone() override { delete this; }
};

}  // namespace

class GenerationService::Impl final : public Base {
 public:
  Impl(Engine* engine, const ServedModel* model)
      : engine_(engine), model_(model) {
    absl::MutexLock lock(&mutex_);
    id_prefix_ = absl::StrFormat("%08x", absl::Uniform<uint32_t>(random_));
  }

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(
      grpc::CallbackServerContext* /*context*/,
      const grpc::ByteBuffer* bytes) override {
    absl::StatusOr<v1::GenerateRequest> message =
        Parse<v1::GenerateRequest>(bytes);
    if (!message.ok()) return Refuse("", message.status());
    std::string assigned_id;
    uint64_t seed = 0;
    Draw(&assigned_id, &seed);
    absl::StatusOr<EngineRequest> request =
        ParseGenerateRequest(*message, *model_, assigned_id, seed);
    if (!request.ok()) {
      return Refuse(
          message->request_id().empty() ? assigned_id : message->request_id(),
          request.status());
    }
    auto* stream = new GenerateStream(engine_, request->request_id);
    stream->Start(*std::move(request));
    return stream;
  }

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const grpc::ByteBuffer* bytes,
                                     grpc::ByteBuffer* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(ToClientStatus(Tokenize(bytes, response)));
    return reactor;
  }

  grpc::ServerUnaryReactor* Detokenize(
      grpc::CallbackServerContext* context,
      const v1::DetokenizeRequest* request,
      v1::DetokenizeResponse* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(ToClientStatus(Detokenize(*request, response)));
    return reactor;
  }

  grpc::ServerUnaryReactor* GetModelInfo(
      grpc::CallbackServerContext* context,
      const v1::GetModelInfoRequest* /*request*/,
      v1::GetModelInfoResponse* response) override {
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
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

 private:
  static RefusedStream* Refuse(absl::string_view request_id,
                               const absl::Status& why) {
    Log(LogLevel::kInfo, "request refused",
        {{"request_id", request_id.substr(0, kMaxRequestIdBytes)},
         {"code", absl::StatusCodeToString(why.code())}});
    return new RefusedStream(why);
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

  absl::Status Tokenize(const grpc::ByteBuffer* bytes,
                        grpc::ByteBuffer* response) {
    SY_ASSIGN_OR_RETURN(const v1::TokenizeRequest request,
                        Parse<v1::TokenizeRequest>(bytes));
    SY_RETURN_IF_ERROR(NeedsTokenizer("Tokenize"));
    const bool add_special_tokens =
        !request.has_add_special_tokens() || request.add_special_tokens();
    absl::StatusOr<std::vector<uint32_t>> ids =
        model_->tokenizer->Encode(request.text(), add_special_tokens);
    if (!ids.ok()) {
      return absl::Status(ids.status().code(),
                          absl::StrCat("text: ", ids.status().message()));
    }
    v1::TokenizeResponse message;
    message.mutable_token_ids()->Add(ids->begin(), ids->end());
    bool own_buffer = false;
    SY_CHECK(grpc::SerializationTraits<v1::TokenizeResponse>::Serialize(
                 message, response, &own_buffer)
                 .ok());
    return absl::OkStatus();
  }

  absl::Status Detokenize(const v1::DetokenizeRequest& request,
                          v1::DetokenizeResponse* response) {
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

  Engine* const engine_;
  const ServedModel* const model_;
  absl::Mutex mutex_;
  absl::BitGen random_ ABSL_GUARDED_BY(mutex_);
  std::string id_prefix_ ABSL_GUARDED_BY(mutex_);  // of this server's life
  uint64_t num_ids_ ABSL_GUARDED_BY(mutex_) = 0;
};

GenerationService::GenerationService(Engine* engine, const ServedModel* model)
    : impl_(std::make_unique<Impl>(engine, model)) {}

GenerationService::~GenerationService() = default;

grpc::Service* GenerationService::service() { return impl_.get(); }

}  // namespace switchyard
