// switchyard align: a model, served, against a golden file.
//
// Every case runs twice through the API: once decoding freely from the prompt,
// and once with the reference's own tokens as part of the prompt, whose
// log-probabilities then tell the engine's first choice after each of them.
#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "cli/align_report.h"
#include "cli/client_flags.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/golden_file.h"
#include "cli/subprocess.h"
#include "kernels/status.h"
#include "proto/grpc_status.h"
#include "switchyard/v1/generation.grpc.pb.h"

namespace switchyard {
namespace {

struct AlignOptions {
  std::string model_dir;
  std::string golden_path;
  std::optional<std::string> target;
  ClientFiles files;
  std::string device = "auto";
  std::string dtype = "auto";
  int tensor_parallel_size = 1;
  int concurrency = 16;
  double min_margin = 1e-3;
  std::optional<double> max_logprob_difference;
  std::optional<double> max_mean_logprob_difference;
  std::optional<double> min_forced_match;
};

struct Generation {
  std::vector<uint32_t> ids;
  std::vector<v1::TokenLogprobs> logprobs;
  v1::GenerateComplete complete;
};

absl::StatusOr<Generation> Run(v1::GenerationService::Stub& stub,
                               const v1::GenerateRequest& request) {
  grpc::ClientContext context;
  auto stream = stub.Generate(&context, request);
  Generation generation;
  v1::GenerateResponse event;
  while (stream->Read(&event)) {
    if (event.has_complete()) {
      generation.complete = event.complete();
      continue;
    }
    generation.ids.insert(generation.ids.end(),
                          event.chunk().token_ids().begin(),
                          event.chunk().token_ids().end());
    generation.logprobs.insert(generation.logprobs.end(),
                               event.chunk().logprobs().begin(),
                               event.chunk().logprobs().end());
  }
  SY_RETURN_IF_ERROR(FromGrpcStatus(stream->Finish()));
  return generation;
}

v1::GenerateRequest GreedyRequest(const GoldenCase& golden) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->mutable_ids()->Assign(golden.prompt_ids.begin(),
                                                     golden.prompt_ids.end());
  for (const std::string& mixer : golden.placement)
    request.mutable_placement()->mutable_mixers()->add_names(mixer);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_ignore_eos(true);
  return request;
}

absl::Status CompareFree(v1::GenerationService::Stub& stub,
                         const GoldenCase& golden, AlignReport* report) {
  constexpr uint32_t kNumTop = 20;
  v1::GenerateRequest request = GreedyRequest(golden);
  request.mutable_sampling()->set_max_tokens(
      static_cast<uint32_t>(golden.greedy_ids.size()));
  request.mutable_sampling()->set_logprobs(
      golden.last_logprobs.empty() ? 0 : kNumTop);
  if (!golden.prompt_logprobs.empty())
    request.mutable_sampling()->set_prompt_logprobs(0);
  SY_ASSIGN_OR_RETURN(const Generation generation, Run(stub, request));
  if (generation.ids.size() != golden.greedy_ids.size() ||
      generation.logprobs.size() != generation.ids.size()) {
    return absl::InternalError(absl::StrCat(
        "case ", golden.index, ": asked for ", golden.greedy_ids.size(),
        " tokens with log-probabilities, got ", generation.ids.size(), " and ",
        generation.logprobs.size()));
  }
  for (size_t i = 0; i < generation.ids.size(); ++i) {
    report->AddFree({golden.index, static_cast<int32_t>(i),
                     golden.greedy_ids[i], generation.ids[i],
                     golden.margins[i]});
    if (generation.ids[i] != golden.greedy_ids[i])
      break;  // from here on the texts differ
    report->AddLogprobDifference(
        std::abs(generation.logprobs[i].logprob() - golden.greedy_logprobs[i]));
  }
  if (!golden.last_logprobs.empty()) {
    for (const v1::TopLogprob& top : generation.logprobs[0].top()) {
      if (top.token_id() >= golden.last_logprobs.size()) {
        return absl::InvalidArgumentError(absl::StrCat(
            "case ", golden.index, ": last_logits has ",
            golden.last_logprobs.size(), " entries, and the model a token ",
            top.token_id(), ": is the golden file another model's?"));
      }
      report->AddLogprobDifference(
          std::abs(top.logprob() - golden.last_logprobs[top.token_id()]));
    }
  }
  if (!golden.prompt_logprobs.empty()) {
    if (generation.complete.prompt_logprobs_size() !=
        static_cast<int>(golden.prompt_ids.size())) {
      return absl::InternalError(absl::StrCat(
          "case ", golden.index, ": ", golden.prompt_ids.size(),
          " prompt tokens, but ", generation.complete.prompt_logprobs_size(),
          " prompt log-probabilities"));
    }
    for (size_t i = 1; i < golden.prompt_ids.size(); ++i) {
      report->AddLogprobDifference(std::abs(
          generation.complete.prompt_logprobs(static_cast<int>(i)).logprob() -
          golden.prompt_logprobs[i]));
    }
  }
  return absl::OkStatus();
}

absl::Status CompareForced(v1::GenerationService::Stub& stub,
                           const GoldenCase& golden, AlignReport* report) {
  v1::GenerateRequest request = GreedyRequest(golden);
  request.mutable_token_ids()->mutable_ids()->Add(golden.greedy_ids.begin(),
                                                  golden.greedy_ids.end());
  request.mutable_sampling()->set_max_tokens(1);
  request.mutable_sampling()->set_prompt_logprobs(1);
  SY_ASSIGN_OR_RETURN(const Generation generation, Run(stub, request));
  if (generation.complete.prompt_logprobs_size() !=
      request.token_ids().ids_size()) {
    return absl::InternalError(absl::StrCat(
        "case ", golden.index, ": prompt log-probabilities are missing"));
  }
  for (size_t i = 0; i < golden.greedy_ids.size(); ++i) {
    const v1::TokenLogprobs& logprobs = generation.complete.prompt_logprobs(
        static_cast<int>(golden.prompt_ids.size() + i));
    if (logprobs.top_size() != 1)
      return absl::InternalError(
          "the best token of a prompt position is missing");
    report->AddForced({golden.index, static_cast<int32_t>(i),
                       golden.greedy_ids[i], logprobs.top(0).token_id(),
                       golden.margins[i]});
    report->AddLogprobDifference(
        std::abs(logprobs.logprob() - golden.greedy_logprobs[i]));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<AlignReport>> Compare(
    const std::string& target, const ClientFiles& files,
    const std::vector<GoldenCase>& cases, int concurrency) {
  SY_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel,
                      Dial(target, files));
  auto stub = v1::GenerationService::NewStub(channel);
  std::vector<AlignReport> case_reports;
  for (const GoldenCase& golden : cases) {
    case_reports.emplace_back(golden.placement.empty()
                                  ? "(the model's)"
                                  : absl::StrJoin(golden.placement, ","));
  }
  const bool show_progress = isatty(STDERR_FILENO) != 0;
  std::atomic<size_t> next{0};
  absl::Mutex mutex;
  absl::Status failure;
  auto work = [&] {
    for (size_t i = next++; i < cases.size(); i = next++) {
      absl::Status status = CompareFree(*stub, cases[i], &case_reports[i]);
      if (status.ok())
        status = CompareForced(*stub, cases[i], &case_reports[i]);
      absl::MutexLock lock(&mutex);
      failure.Update(status);
      if (!failure.ok()) return;
      if (show_progress)
        std::fprintf(stderr, "\r%zu of %zu cases", i + 1, cases.size());
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < concurrency; ++i) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  if (show_progress) std::fprintf(stderr, "\r\033[K");
  SY_RETURN_IF_ERROR(failure);

  std::vector<AlignReport> reports;  // by placement, in the file's order
  std::map<std::string, size_t> index;
  AlignReport all("all");
  for (const AlignReport& report : case_reports) {
    auto [entry, is_new] =
        index.try_emplace(report.placement(), reports.size());
    if (is_new) reports.emplace_back(report.placement());
    reports[entry->second].Merge(report);
    all.Merge(report);
  }
  reports.push_back(std::move(all));
  return reports;
}

void Print(const std::vector<AlignReport>& reports) {
  std::printf(
      "%s\nshare of cases equal to the reference up to each generated token, "
      "decoding freely:\n",
      FormatAlignTable(reports).c_str());
  for (const AlignReport& report : reports) {
    std::printf("  %s\n   ", report.placement().c_str());
    for (double share : report.MatchByPosition()) std::printf(" %.3f", share);
    std::printf("\n");
  }
}

// A server of our own for the model, on ports of its choice.
absl::StatusOr<std::unique_ptr<Subprocess>> StartServer(
    const AlignOptions& options, std::string* target) {
  SY_ASSIGN_OR_RETURN(
      std::unique_ptr<Subprocess> server,
      Subprocess::Start({"serve", "--model", options.model_dir, "--device",
                         options.device, "--dtype", options.dtype,
                         "--tensor-parallel-size",
                         absl::StrCat(options.tensor_parallel_size), "--port",
                         "0", "--admin-port", "0", "--metrics-port", "0",
                         "--health-port", "0", "--log-level", "warning"}));
  absl::StatusOr<std::string> address =
      server->ReadAfter("serving on ", absl::Now() + absl::Minutes(30));
  if (!address.ok()) {
    return absl::UnavailableError(
        "the server did not start (its own message is above)");
  }
  *target = *address;
  return server;
}

}  // namespace

int AlignCommand(absl::Span<const std::string> args) {
  AlignOptions options;
  FlagSet flags(
      "switchyard align",
      "Compares a model's tokens and log-probabilities with a golden file.",
      "DIR GOLDEN.json [flags]");
  flags.Operand("DIR", &options.model_dir, "the checkpoint");
  flags.Operand("GOLDEN.json", &options.golden_path, "what the reference said");
  flags.String("target", &options.target, "HOST:PORT",
               "a running server of the model; otherwise one is started for "
               "the comparison");
  flags.Choice("device", &options.device, {"auto", "cpu", "cuda"},
               "of the server that is started");
  flags.Choice("dtype", &options.dtype, {"auto", "fp32", "bf16"},
               "of the server that is started");
  flags.Int("tensor-parallel-size", &options.tensor_parallel_size, 1, 64,
            "of the server that is started");
  flags.Int("concurrency", &options.concurrency, 1, 256, "cases at a time");
  AddClientFlags(&options.files, &flags);
  flags.Section("Limits: exit with 1 when");
  flags.Real("min-margin", &options.min_margin, 0, 100,
             "a token differs although the reference's first choice leads by "
             "more than this");
  flags.Real("max-logprob-difference", &options.max_logprob_difference, 0, 1e9,
             "any log-probability is further off");
  flags.Real("max-mean-logprob-difference",
             &options.max_mean_logprob_difference, 0, 1e9,
             "they are further off on average");
  flags.Real("min-forced-match", &options.min_forced_match, 0, 1,
             "a smaller share of first choices is the reference's; takes the "
             "place of --min-margin");
  if (std::optional<int> exit_code = flags.ParseOrExitCode(args))
    return *exit_code;

  absl::StatusOr<std::vector<GoldenCase>> cases =
      LoadGoldenFile(options.golden_path);
  if (!cases.ok()) return Fail("align", cases.status());
  std::unique_ptr<Subprocess> server;
  std::string target = options.target.value_or("");
  if (target.empty()) {
    absl::StatusOr<std::unique_ptr<Subprocess>> started =
        StartServer(options, &target);
    if (!started.ok()) return Fail("align", started.status());
    server = *std::move(started);
  }
  absl::StatusOr<std::vector<AlignReport>> reports =
      Compare(target, options.files, *cases, options.concurrency);
  if (server != nullptr) {
    server->Signal(SIGTERM);
    (void)server->Wait(absl::Now() + absl::Seconds(30));
  }
  if (!reports.ok()) return Fail("align", reports.status());
  Print(*reports);

  const AlignLimits limits = {
      options.min_margin, options.max_logprob_difference,
      options.max_mean_logprob_difference, options.min_forced_match};
  int exit_code = kExitOk;
  for (size_t i = 0; i + 1 < reports->size(); ++i) {
    for (const std::string& violation : (*reports)[i].Violations(limits)) {
      std::fprintf(stderr, "%s\n", violation.c_str());
      exit_code = kExitFailure;
    }
  }
  std::printf("%s\n", exit_code == kExitOk ? "within the limits"
                                           : "NOT within the limits");
  return exit_code;
}

}  // namespace switchyard
