#include "coordinator/generation_service.h"

#include <grpcpp/generic/generic_stub.h>

#include <limits>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "switchyard/v1/generation.grpc.pb.h"
#include "switchyard/v1/rpc_status.pb.h"
#include "tests/coordinator/service_fixture.h"

namespace switchyard {
namespace {

struct Outcome {
  std::vector<uint32_t> tokens;
  std::string text;
  std::vector<std::string> request_ids;
  int num_chunks = 0;
  int num_completes = 0;
  v1::GenerateComplete complete;
  grpc::Status status;
};

class GenerationServiceTest : public ServiceFixture {
 protected:
  std::unique_ptr<v1::GenerationService::Stub> Stub() {
    return v1::GenerationService::NewStub(channel_);
  }

  static void ReadAll(grpc::ClientReader<v1::GenerateResponse>* reader,
                      Outcome* outcome) {
    v1::GenerateResponse event;
    while (reader->Read(&event)) {
      outcome->request_ids.push_back(event.request_id());
      if (event.has_complete()) {
        ++outcome->num_completes;
        outcome->complete = event.complete();
        continue;
      }
      EXPECT_EQ(outcome->num_completes, 0) << "a chunk after the end";
      ++outcome->num_chunks;
      outcome->tokens.insert(outcome->tokens.end(),
                             event.chunk().token_ids().begin(),
                             event.chunk().token_ids().end());
      outcome->text += event.chunk().text();
    }
    outcome->status = reader->Finish();
  }

  Outcome Generate(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    const auto reader = Stub()->Generate(&context, request);
    Outcome outcome;
    ReadAll(reader.get(), &outcome);
    return outcome;
  }

  // Expects a refusal that mentions every one of `words`.
  void Refused(const v1::GenerateRequest& request, grpc::StatusCode code,
               const std::vector<std::string>& words) {
    const Outcome outcome = Generate(request);
    EXPECT_EQ(outcome.status.error_code(), code)
        << outcome.status.error_message();
    EXPECT_EQ(outcome.num_chunks + outcome.num_completes, 0);
    for (const std::string& word : words) {
      EXPECT_NE(outcome.status.error_message().find(word), std::string::npos)
          << outcome.status.error_message() << " lacks " << word;
    }
  }

  // Sends `bytes` as the message of a call, whatever they are.
  grpc::Status CallWithBytes(const std::string& method,
                             const std::string& bytes) {
    grpc::GenericStub stub(channel_);
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    grpc::Slice slice(bytes);
    const grpc::ByteBuffer message(&slice, 1);
    const auto call = stub.PrepareUnaryCall(&context, method, message, &queue);
    call->StartCall();
    grpc::ByteBuffer response;
    grpc::Status status;
    call->Finish(&response, &status, nullptr);
    void* tag = nullptr;
    bool ok = false;
    queue.Next(&tag, &ok);
    queue.Shutdown();
    return status;
  }
};

TEST_F(GenerationServiceTest, StreamsToTheEnd) {
  Start();
  v1::GenerateRequest request = MakeRequest({1, 2, 3}, 30);
  request.set_request_id("mine");
  const Outcome outcome = Generate(request);
  ASSERT_TRUE(outcome.status.ok()) << outcome.status.error_message();
  EXPECT_EQ(outcome.tokens.size(), 30);
  EXPECT_EQ(outcome.text, model_.tokenizer->Decode(outcome.tokens, true));
  EXPECT_EQ(outcome.num_completes, 1);
  EXPECT_EQ(outcome.complete.completion_tokens(), 30);
  for (const std::string& id : outcome.request_ids) EXPECT_EQ(id, "mine");
}

TEST_F(GenerationServiceTest, AssignsDifferentIds) {
  Start();
  const Outcome first = Generate(MakeRequest({1}, 1));
  const Outcome second = Generate(MakeRequest({1}, 1));
  EXPECT_NE(first.request_ids.at(0), "");
  EXPECT_NE(first.request_ids.at(0), second.request_ids.at(0));
}

TEST_F(GenerationServiceTest, TextPromptsGetTheTemplatesTokens) {
  Start();
  v1::GenerateRequest by_text = MakeRequest({}, 8);
  by_text.set_text("in the");
  const std::vector<uint32_t> ids =
      model_.tokenizer->Encode("in the", true).value();
  const Outcome outcome = Generate(by_text);
  EXPECT_EQ(outcome.complete.prompt_tokens(), ids.size());
  EXPECT_EQ(outcome.tokens, Generate(MakeRequest(ids, 8)).tokens);
}

TEST_F(GenerationServiceTest, BadRequestsNameTheField) {
  Start();
  constexpr auto kInvalid = grpc::StatusCode::INVALID_ARGUMENT;
  Refused({}, kInvalid, {"prompt", "text", "token_ids"});
  Refused(MakeRequest({}, 5), kInvalid, {"prompt", "empty"});
  v1::GenerateRequest request = MakeRequest({}, 5);
  request.set_text("");
  Refused(request, kInvalid, {"text", "empty"});
  Refused(MakeRequest(std::vector<uint32_t>(9000, 1), 5), kInvalid,
          {"prompt", "9000", "8192"});
  Refused(MakeRequest(std::vector<uint32_t>(8192, 1), 5), kInvalid, {"8192"});
  Refused(MakeRequest({1, 265}, 5), kInvalid, {"token_ids.ids[1]", "265"});
  request = MakeRequest({1}, 5);
  request.mutable_sampling()->set_temperature(-1);
  Refused(request, kInvalid, {"sampling.temperature"});
  request = MakeRequest({1}, 5);
  request.mutable_sampling()->set_top_p(
      std::numeric_limits<float>::quiet_NaN());
  Refused(request, kInvalid, {"sampling.top_p"});
  request = MakeRequest({1}, 5);
  request.set_request_id(std::string(300, 'x'));
  Refused(request, kInvalid, {"request_id", "300"});
  request = MakeRequest({1}, 5);
  request.mutable_placement();
  Refused(request, kInvalid, {"placement"});
  request.mutable_placement()->set_preset("nonsense");
  Refused(request, grpc::StatusCode::NOT_FOUND, {"nonsense"});
  for (const char* name : {"gdn", "gdn", "mambo"}) {
    request.mutable_placement()->mutable_mixers()->add_names(name);
  }
  Refused(request, grpc::StatusCode::FAILED_PRECONDITION, {"layer 2", "mambo"});
  request.mutable_placement()->mutable_mixers()->mutable_names()->RemoveLast();
  Refused(request, grpc::StatusCode::FAILED_PRECONDITION, {"2", "3"});
}

TEST_F(GenerationServiceTest, MessagesThatCannotBeParsedAreInvalid) {
  Start();
  const std::string not_utf8 = {0x12, 0x02, '\xc3', '\x28'};  // text
  for (const char* method : {"Generate", "Tokenize"}) {
    const std::string bytes = method == std::string("Generate")
                                  ? not_utf8
                                  : std::string({0x0a, 0x02, '\xc3', '\x28'});
    const grpc::Status status = CallWithBytes(
        absl::StrCat("/switchyard.v1.GenerationService/", method), bytes);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT)
        << method << ": " << status.error_message();
  }
}

TEST_F(GenerationServiceTest, NamesTextWhoseTokensTheModelHasNot) {
  model_.config.vocab_size = 9;  // special tokens and a byte
  Start();
  v1::GenerateRequest request = MakeRequest({}, 5);
  request.set_text("words");
  Refused(request, grpc::StatusCode::INVALID_ARGUMENT,
          {"text", "tokenizer.json", "only 9"});
}

TEST_F(GenerationServiceTest, WithoutATokenizerTextIsUnimplemented) {
  model_.tokenizer = nullptr;
  Start();
  v1::GenerateRequest request = MakeRequest({}, 5);
  request.set_text("words");
  Refused(request, grpc::StatusCode::UNIMPLEMENTED, {"text", "tokenizer.json"});
  request = MakeRequest({1}, 5);
  request.mutable_sampling()->add_stop("x");
  Refused(request, grpc::StatusCode::UNIMPLEMENTED, {"sampling.stop"});
  EXPECT_EQ(Generate(MakeRequest({1}, 5)).tokens.size(), 5);
  grpc::ClientContext context;
  v1::TokenizeRequest tokenize;
  tokenize.set_text("words");
  v1::TokenizeResponse response;
  EXPECT_EQ(Stub()->Tokenize(&context, tokenize, &response).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
}

TEST_F(GenerationServiceTest, AFullQueueTellsWhenToComeBack) {
  options_.scheduler.max_num_seqs = 1;
  options_.max_waiting_seqs = 0;
  options_.retry_delay = absl::Milliseconds(1500);
  Start();
  group_->Hold();
  grpc::ClientContext context;
  const auto running = Stub()->Generate(&context, MakeRequest({1}, 8000));
  ASSERT_TRUE(group_->Allow(1));
  running->WaitForInitialMetadata();  // admitted
  // The engine hears of a request between two steps.
  absl::Notification heard;
  std::thread stepper([this, &heard] {
    while (!heard.HasBeenNotified() && group_->Allow(1)) {
      std::this_thread::yield();
    }
  });
  const Outcome refused = Generate(MakeRequest({2}, 4));
  heard.Notify();
  stepper.join();
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  v1::RpcStatus details;
  ASSERT_TRUE(details.ParseFromString(refused.status.error_details()));
  EXPECT_EQ(details.code(), 8);
  ASSERT_EQ(details.details_size(), 1);
  EXPECT_EQ(details.details(0).type_url(),
            "type.googleapis.com/google.rpc.RetryInfo");
  v1::RetryInfo info;
  ASSERT_TRUE(info.ParseFromString(details.details(0).value()));
  EXPECT_EQ(info.retry_delay().seconds(), 1);
  EXPECT_EQ(info.retry_delay().nanos(), 500000000);
  group_->Release();
  Outcome outcome;
  ReadAll(running.get(), &outcome);
  EXPECT_EQ(outcome.tokens.size(), 8000);
}

TEST_F(GenerationServiceTest, ASlowClientLosesNothingAndDelaysNobody) {
  Start();
  // More than the transport buffers: 20 top log-probabilities per token would
  // do; long request ids make every message large instead.
  v1::GenerateRequest request = MakeRequest({1}, 6000);
  request.set_request_id(std::string(256, 'r'));
  request.mutable_sampling()->set_logprobs(1);
  grpc::ClientContext context;
  const auto slow = Stub()->Generate(&context, request);
  slow->WaitForInitialMetadata();
  EXPECT_EQ(Generate(MakeRequest({2}, 100)).tokens.size(), 100);
  while (engine_->load()->running_sequences() > 0) {
  }
  Outcome outcome;  // all of it was generated before the first read
  ReadAll(slow.get(), &outcome);
  EXPECT_TRUE(outcome.status.ok());
  EXPECT_EQ(outcome.tokens.size(), 6000);
  EXPECT_EQ(outcome.text, model_.tokenizer->Decode(outcome.tokens, true));
  EXPECT_LT(outcome.num_chunks, 6000);
}

TEST_F(GenerationServiceTest, AClientThatLeavesFreesItsCache) {
  Start();
  grpc::ClientContext context;
  const auto reader = Stub()->Generate(&context, MakeRequest({1}, 8000));
  v1::GenerateResponse event;
  ASSERT_TRUE(reader->Read(&event));
  context.TryCancel();
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  while (engine_->load()->running_sequences() > 0) {
  }
  EXPECT_EQ(engine_->load()->cache_used_bytes(), 0);
}

TEST_F(GenerationServiceTest, ADeadlineEndsTheRequest) {
  Start();
  group_->Hold();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() +
                       std::chrono::milliseconds(100));
  const auto reader = Stub()->Generate(&context, MakeRequest({1}, 8000));
  Outcome outcome;
  ReadAll(reader.get(), &outcome);
  EXPECT_EQ(outcome.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  group_->Release();
  while (engine_->load()->running_sequences() > 0) {
  }
  EXPECT_EQ(engine_->load()->cache_used_bytes(), 0);
}

TEST_F(GenerationServiceTest, ALostGroupIsUnavailableAndNamed) {
  Start();
  grpc::ClientContext context;
  const auto reader = Stub()->Generate(&context, MakeRequest({1}, 8000));
  v1::GenerateResponse event;
  ASSERT_TRUE(reader->Read(&event));
  group_->Lose(absl::UnavailableError("rank 1 (fake:2) left in step 4"));
  while (reader->Read(&event)) {
  }
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(status.error_message(), "rank 1 (fake:2) left in step 4");
}

TEST_F(GenerationServiceTest, TokenizesAndDetokenizes) {
  Start();
  v1::TokenizeRequest request;
  request.set_text("in the");
  v1::TokenizeResponse with_bos, without;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(Stub()->Tokenize(&context, request, &with_bos).ok());
  }
  request.set_add_special_tokens(false);
  {
    grpc::ClientContext context;
    ASSERT_TRUE(Stub()->Tokenize(&context, request, &without).ok());
  }
  EXPECT_EQ(with_bos.token_ids_size(), without.token_ids_size() + 1);
  EXPECT_EQ(with_bos.token_ids(0), kTinyBos);
  v1::DetokenizeRequest ids;
  *ids.mutable_token_ids() = with_bos.token_ids();
  ids.set_skip_special_tokens(true);
  v1::DetokenizeResponse text;
  {
    grpc::ClientContext context;
    ASSERT_TRUE(Stub()->Detokenize(&context, ids, &text).ok());
  }
  EXPECT_EQ(text.text(), "in the");
  ids.add_token_ids(100000);
  grpc::ClientContext context;
  const grpc::Status status = Stub()->Detokenize(&context, ids, &text);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(GenerationServiceTest, TellsWhatItServes) {
  Start();
  grpc::ClientContext context;
  v1::GetModelInfoResponse info;
  ASSERT_TRUE(Stub()->GetModelInfo(&context, {}, &info).ok());
  EXPECT_EQ(info.model(), "made-up");
  EXPECT_EQ(info.vocab_size(), kTinyVocabSize);
  EXPECT_EQ(info.max_context_tokens(), 8192);
  EXPECT_EQ(info.num_layers(), kNumLayers);
  EXPECT_TRUE(info.has_tokenizer());
  EXPECT_EQ(info.default_placement().names(0), "attention");
  EXPECT_EQ(info.epoch(), 1);
}

TEST_F(GenerationServiceTest, TwoServersDoNotShareAPort) {
  Start();
  ServerOptions taken;
  const std::string address = server_->address();
  taken.port = std::stoi(address.substr(address.rfind(':') + 1));
  taken.admin_port = 0;
  const auto second = Server::Start(taken, engine_.get(), &model_);
  ASSERT_FALSE(second.ok());
  EXPECT_NE(second.status().message().find(address), std::string::npos);
}

}  // namespace
}  // namespace switchyard
