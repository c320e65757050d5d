// switchyard generate: one request, streamed to the terminal.
#include <google/protobuf/util/json_util.h>
#include <grpcpp/grpcpp.h>

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/client_flags.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/output.h"
#include "cli/placement_arg.h"
#include "kernels/status.h"
#include "proto/grpc_status.h"
#include "switchyard/v1/generation.grpc.pb.h"

namespace switchyard {
namespace {

struct GenerateOptions {
  std::string target = "127.0.0.1:8000";
  ClientFiles files;
  std::optional<std::string> prompt;
  std::vector<std::string> prompt_ids;
  std::optional<std::string> placement;
  std::optional<uint32_t> max_tokens;
  std::optional<uint32_t> min_tokens;
  std::optional<float> temperature;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<uint32_t> top_k;
  std::optional<float> repetition_penalty;
  std::optional<float> frequency_penalty;
  std::optional<float> presence_penalty;
  std::optional<uint64_t> seed;
  std::optional<uint32_t> logprobs;
  std::optional<uint32_t> prompt_logprobs;
  std::optional<std::string> stop;
  std::string request_id;
  bool ignore_eos = false;
  bool json = false;
  bool quiet = false;
};

void Declare(FlagSet& flags, GenerateOptions& options) {
  flags.Section("What to continue (one of them)");
  flags.String("prompt", &options.prompt, "TEXT", "a text");
  flags.List("prompt-ids", &options.prompt_ids, "1,2,3",
             "token ids, used as they are");
  flags.Section("How");
  flags.String(
      "placement", &options.placement, "PRESET|A,B,...",
      "a preset, or one mixer name per layer; otherwise the server's default");
  flags.Int("max-tokens", &options.max_tokens, 1, INT32_MAX,
            "at most this many tokens");
  flags.Int("min-tokens", &options.min_tokens, 0, INT32_MAX,
            "no stop token before this many");
  flags.Real("temperature", &options.temperature, 0, 1e6,
             "0 is greedy; the server's default is 1");
  flags.Int("top-k", &options.top_k, 0, INT32_MAX,
            "only the k likeliest tokens; 0: all");
  flags.Real("top-p", &options.top_p, 0, 1,
             "only the likeliest tokens that make up p");
  flags.Real("min-p", &options.min_p, 0, 1,
             "only tokens at least this likely, relative to the likeliest");
  flags.Real("repetition-penalty", &options.repetition_penalty, 0, 1e6,
             "above 1 discourages tokens already there");
  flags.Real("frequency-penalty", &options.frequency_penalty, -2, 2,
             "per earlier occurrence in the output");
  flags.Real("presence-penalty", &options.presence_penalty, -2, 2,
             "once per token in the output");
  flags.Unsigned("seed", &options.seed, "same seed, same tokens");
  flags.String("stop", &options.stop, "TEXT", "ends before this text");
  flags.Bool("ignore-eos", &options.ignore_eos,
             "goes on after the end-of-text token");
  flags.Section("What to show");
  flags.Int("logprobs", &options.logprobs, 0, 20,
            "log-probabilities of the n best beside each token (with --json)");
  flags.Int("prompt-logprobs", &options.prompt_logprobs, 0, 20,
            "the same for the prompt (with --json)");
  flags.Bool("json", &options.json,
             "prints one JSON object per event instead of the text");
  flags.Bool("quiet", &options.quiet, "leaves out the closing line on stderr");
  flags.String("request-id", &options.request_id, "ID",
               "shown in the server's logs");
  AddTargetFlags(&options.target, "the server's client port", &options.files,
                 &flags);
}

absl::StatusOr<v1::GenerateRequest> BuildRequest(
    const GenerateOptions& options) {
  v1::GenerateRequest request;
  request.set_request_id(options.request_id);
  if (options.prompt.has_value() == !options.prompt_ids.empty()) {
    return absl::InvalidArgumentError("give either --prompt or --prompt-ids");
  }
  if (options.prompt.has_value()) request.set_text(*options.prompt);
  for (const std::string& text : options.prompt_ids) {
    uint32_t id = 0;
    if (!absl::SimpleAtoi(text, &id)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--prompt-ids: '", text, "' is not a token id"));
    }
    request.mutable_token_ids()->add_ids(id);
  }
  if (options.placement.has_value())
    *request.mutable_placement() = PlacementFromArgument(*options.placement);
  v1::SamplingParams& sampling = *request.mutable_sampling();
  if (options.temperature) sampling.set_temperature(*options.temperature);
  if (options.top_p) sampling.set_top_p(*options.top_p);
  if (options.top_k) sampling.set_top_k(*options.top_k);
  if (options.min_p) sampling.set_min_p(*options.min_p);
  if (options.repetition_penalty)
    sampling.set_repetition_penalty(*options.repetition_penalty);
  if (options.frequency_penalty)
    sampling.set_frequency_penalty(*options.frequency_penalty);
  if (options.presence_penalty)
    sampling.set_presence_penalty(*options.presence_penalty);
  if (options.max_tokens) sampling.set_max_tokens(*options.max_tokens);
  if (options.min_tokens) sampling.set_min_tokens(*options.min_tokens);
  if (options.seed) sampling.set_seed(*options.seed);
  if (options.logprobs) sampling.set_logprobs(*options.logprobs);
  if (options.prompt_logprobs)
    sampling.set_prompt_logprobs(*options.prompt_logprobs);
  if (options.stop) sampling.add_stop(*options.stop);
  sampling.set_ignore_eos(options.ignore_eos);
  return request;
}

void PrintJson(const v1::GenerateResponse& event) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string line;
  (void)google::protobuf::util::MessageToJsonString(event, &line, options);
  std::printf("%s\n", line.c_str());
}

void PrintEnd(const v1::GenerateComplete& complete) {
  absl::string_view reason = v1::FinishReason_Name(complete.finish_reason());
  reason.remove_prefix(sizeof("FINISH_REASON_") - 1);
  std::fprintf(stderr,
               "[%.*s after %u tokens; %u prompt tokens; epoch %llu; %s]\n",
               static_cast<int>(reason.size()), reason.data(),
               complete.completion_tokens(), complete.prompt_tokens(),
               static_cast<unsigned long long>(complete.epoch()),
               absl::StrJoin(complete.placement().names(), ",").c_str());
}

}  // namespace

int GenerateCommand(absl::Span<const std::string> args) {
  GenerateOptions options;
  FlagSet flags("switchyard generate",
                "Continues a prompt and streams the text to the terminal.",
                "--prompt TEXT [flags]");
  Declare(flags, options);
  if (std::optional<int> exit_code = flags.ParseOrExitCode(args))
    return *exit_code;
  absl::StatusOr<v1::GenerateRequest> request = BuildRequest(options);
  if (!request.ok()) {
    std::fprintf(stderr, "switchyard generate: %s\n",
                 std::string(request.status().message()).c_str());
    return kExitUsage;
  }

  const absl::StatusOr<std::shared_ptr<grpc::Channel>> channel =
      Dial(options.target, options.files);
  if (!channel.ok()) return Fail("generate", channel.status());
  auto stub = v1::GenerationService::NewStub(*channel);
  grpc::ClientContext context;
  auto stream = stub->Generate(&context, *request);
  v1::GenerateResponse event;
  int output_error = 0;
  while (stream->Read(&event)) {
    if (options.json) {
      PrintJson(event);
    } else if (event.has_chunk()) {
      std::fwrite(event.chunk().text().data(), 1, event.chunk().text().size(),
                  stdout);
    } else {
      std::printf("\n");
      if (std::fflush(stdout) != 0) output_error = errno;
      if (!options.quiet) PrintEnd(event.complete());
    }
    // What cannot be written need not be generated.
    if (output_error == 0 && std::fflush(stdout) != 0) {
      output_error = errno;
      context.TryCancel();
    }
  }
  const grpc::Status status = stream->Finish();
  if (output_error != 0) return FailOutput("generate", output_error);
  if (!status.ok()) return Fail("generate", FromGrpcStatus(status));
  return kExitOk;
}

}  // namespace switchyard
