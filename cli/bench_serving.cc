// switchyard bench serving: load on a server through its own API, and where the
// time of a step goes.
#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "cli/bench.h"
#include "cli/client_flags.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/placement_arg.h"
#include "cli/subprocess.h"
#include "kernels/status.h"
#include "model/random_init.h"
#include "proto/grpc_status.h"
#include "switchyard/v1/admin.grpc.pb.h"
#include "switchyard/v1/generation.grpc.pb.h"

namespace switchyard {
namespace {

struct ServingOptions {
  std::string model_dir;
  std::string device = "auto";
  std::vector<std::string> world_sizes = {"1"};
  std::vector<std::string> concurrency = {"1", "8", "32"};
  uint32_t prompt_tokens = 32;
  uint32_t shared_tokens = 0;  // of these, the same in all requests
  uint32_t max_tokens = 128;
  std::optional<std::string> placement;
  // Defaults that the server has served before anything is measured; the last
  // one stays.
  std::vector<std::string> switch_first;
  // Default placements to switch between under load; empty: no switches.
  std::vector<std::string> switch_between;
  absl::Duration switch_every = absl::Seconds(1);
  std::optional<std::string> json_path;
  std::vector<std::string> serve_flags;
  ClientFiles files;
};

// The value that a share of the sorted ones does not exceed; 0 of none.
double Percentile(const std::vector<double>& sorted, double share) {
  if (sorted.empty()) return 0;
  return sorted[static_cast<size_t>(share * (sorted.size() - 1) + 0.5)];
}

// One line of the table.
struct ServingResult {
  int world_size = 0;
  int num_sequences = 0;
  double seconds = 0;
  uint64_t num_tokens = 0;
  uint64_t num_steps = 0;
  double busy_seconds = 0;
  double execute_seconds = 0;
  double device_seconds = 0;  // of rank 0; zero where it has no clock
  double device_idle_seconds = 0;
  uint64_t num_graph_steps = 0;
  std::vector<double> first_ms;  // to the first token, of every stream; sorted
  std::vector<double> gap_ms;    // between messages with tokens; sorted
  // With switches: what the same load was like without.
  int num_switches = 0;
  std::vector<double> pause_ms;  // of the step loop, as the server tells
  double longest_gap_before_ms = 0;
  double tokens_per_second_before = 0;

  double TokensPerSecond() const {
    return static_cast<double>(num_tokens) / seconds;
  }
  double StepMs() const {
    return 1e3 * busy_seconds / static_cast<double>(num_steps);
  }
  double ExecuteMs() const {
    return 1e3 * execute_seconds / static_cast<double>(num_steps);
  }
  double ShareOutside() const { return 1 - execute_seconds / busy_seconds; }
  double DeviceMs() const {
    return 1e3 * device_seconds / static_cast<double>(num_steps);
  }
  double ShareIdle() const {
    return device_idle_seconds /
           std::max(device_seconds + device_idle_seconds, 1e-9);
  }
};

absl::StatusOr<std::vector<int>> ParseCounts(
    const char* flag, const std::vector<std::string>& texts) {
  std::vector<int> counts;
  for (const std::string& text : texts) {
    int count = 0;
    if (!absl::SimpleAtoi(text, &count) || count < 1) {
      return absl::InvalidArgumentError(
          absl::StrCat("--", flag, ": '", text, "' is not a count"));
    }
    counts.push_back(count);
  }
  return counts;
}

v1::GenerateRequest MakeRequest(const ServingOptions& options,
                                uint32_t vocab_size, int number) {
  v1::GenerateRequest request;
  // Any ids do: the work does not depend on them. Different ones in every
  // request to a server, so that nothing is reused but what is to be shared.
  uint32_t state = 1;
  for (uint32_t i = 0; i < options.prompt_tokens; ++i) {
    if (i == options.shared_tokens) {
      state = 2654435761u * static_cast<uint32_t>(number + 1);
    }
    state = state * 1664525u + 1013904223u;
    request.mutable_token_ids()->add_ids((state >> 8) % vocab_size);
  }
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_ignore_eos(true);
  request.mutable_sampling()->set_max_tokens(options.max_tokens);
  if (options.placement.has_value())
    *request.mutable_placement() = PlacementFromArgument(*options.placement);
  return request;
}

class Load {
 public:
  Load(const std::shared_ptr<grpc::Channel>& channel,
       const std::shared_ptr<grpc::Channel>& admin_channel)
      : generation_(v1::GenerationService::NewStub(channel)),
        admin_(v1::AdminService::NewStub(admin_channel)) {}

  absl::StatusOr<ServingResult> Measure(const ServingOptions& options,
                                        int num_sequences) {
    grpc::ClientContext context;
    v1::GetModelInfoResponse info;
    SY_RETURN_IF_ERROR(
        FromGrpcStatus(generation_->GetModelInfo(&context, {}, &info)));
    ServingOptions warm = options;
    warm.max_tokens = 16;
    for (const std::string& placement : options.switch_first) {
      SY_RETURN_IF_ERROR(Switch(placement).status());
      SY_RETURN_IF_ERROR(RunAll(warm, info.vocab_size(), num_sequences));
    }
    SY_RETURN_IF_ERROR(RunAll(warm, info.vocab_size(), num_sequences));
    if (options.switch_between.empty()) {
      return MeasureOnce(options, info.vocab_size(), num_sequences);
    }
    // Every placement once, so that what is warm later is warm from the start.
    for (const std::string& placement : options.switch_between) {
      SY_RETURN_IF_ERROR(Switch(placement).status());
      SY_RETURN_IF_ERROR(RunAll(warm, info.vocab_size(), num_sequences));
    }
    SY_ASSIGN_OR_RETURN(const ServingResult still,
                        MeasureOnce(options, info.vocab_size(), num_sequences));
    Switching switching(this, options);
    absl::StatusOr<ServingResult> result =
        MeasureOnce(options, info.vocab_size(), num_sequences);
    SY_ASSIGN_OR_RETURN(std::vector<double> pauses, switching.Stop());
    if (!result.ok()) return result;
    result->num_switches = static_cast<int>(pauses.size());
    result->pause_ms = std::move(pauses);
    std::sort(result->pause_ms.begin(), result->pause_ms.end());
    result->longest_gap_before_ms = Percentile(still.gap_ms, 1);
    result->tokens_per_second_before = still.TokensPerSecond();
    return result;
  }

 private:
  // When a stream began, and when each of its messages with tokens came.
  struct StreamTimes {
    absl::Time start;
    std::vector<absl::Time> tokens;
  };

  // Switches the default placement to and fro in a thread of its own.
  class Switching {
   public:
    Switching(Load* load, const ServingOptions& options)
        : thread_([this, load, &options] {
            size_t next = 0;
            while (
                !stop_.WaitForNotificationWithTimeout(options.switch_every)) {
              const absl::StatusOr<double> pause = load->Switch(
                  options
                      .switch_between[next++ % options.switch_between.size()]);
              if (!pause.ok()) {
                status_ = pause.status();
                return;
              }
              pauses_.push_back(*pause);
            }
          }) {}
    // The pauses of the switches, in milliseconds.
    absl::StatusOr<std::vector<double>> Stop() {
      stop_.Notify();
      thread_.join();
      if (!status_.ok()) return status_;
      return std::move(pauses_);
    }

   private:
    absl::Notification stop_;
    absl::Status status_;
    std::vector<double> pauses_;
    std::thread thread_;  // the last: it uses the others
  };

  // The pause of the step loop, in milliseconds.
  absl::StatusOr<double> Switch(const std::string& placement) {
    grpc::ClientContext context;
    v1::SetDefaultPlacementRequest request;
    *request.mutable_placement() = PlacementFromArgument(placement);
    request.set_in_flight(v1::IN_FLIGHT_FINISH);
    v1::SetDefaultPlacementResponse response;
    SY_RETURN_IF_ERROR(FromGrpcStatus(
        admin_->SetDefaultPlacement(&context, request, &response)));
    return response.pause_ms();
  }

  absl::StatusOr<ServingResult> MeasureOnce(const ServingOptions& options,
                                            uint32_t vocab_size,
                                            int num_sequences) {
    SY_ASSIGN_OR_RETURN(const v1::Load before, Counters());
    const absl::Time start = absl::Now();
    std::vector<StreamTimes> times;
    SY_RETURN_IF_ERROR(RunAll(options, vocab_size, num_sequences, &times));
    ServingResult result;
    result.seconds = absl::ToDoubleSeconds(absl::Now() - start);
    for (const StreamTimes& stream : times) {
      for (size_t i = 0; i < stream.tokens.size(); ++i) {
        const absl::Time last = i == 0 ? stream.start : stream.tokens[i - 1];
        (i == 0 ? result.first_ms : result.gap_ms)
            .push_back(absl::ToDoubleMilliseconds(stream.tokens[i] - last));
      }
    }
    std::sort(result.first_ms.begin(), result.first_ms.end());
    std::sort(result.gap_ms.begin(), result.gap_ms.end());
    SY_ASSIGN_OR_RETURN(const v1::Load after, Counters());
    result.num_sequences = num_sequences;
    result.num_tokens =
        after.num_generated_tokens() - before.num_generated_tokens();
    result.num_steps = after.num_steps() - before.num_steps();
    result.busy_seconds = after.busy_seconds() - before.busy_seconds();
    result.execute_seconds = after.execute_seconds() - before.execute_seconds();
    result.device_seconds = after.device_seconds() - before.device_seconds();
    result.device_idle_seconds =
        after.device_idle_seconds() - before.device_idle_seconds();
    result.num_graph_steps = after.num_graph_steps() - before.num_graph_steps();
    if (result.num_steps == 0 || result.num_tokens < options.max_tokens) {
      return absl::InternalError("the server's counters did not move");
    }
    return result;
  }

  absl::StatusOr<v1::Load> Counters() {
    grpc::ClientContext context;
    v1::GetServerInfoResponse info;
    SY_RETURN_IF_ERROR(
        FromGrpcStatus(admin_->GetServerInfo(&context, {}, &info)));
    return info.load();
  }

  absl::Status RunAll(const ServingOptions& options, uint32_t vocab_size,
                      int num_sequences,
                      std::vector<StreamTimes>* times = nullptr) {
    const int first_number = num_requests_;
    num_requests_ += num_sequences;
    std::vector<StreamTimes> unwanted;
    if (times == nullptr) times = &unwanted;
    times->resize(num_sequences);
    std::vector<absl::Status> statuses(num_sequences);
    std::vector<std::thread> threads;
    for (int i = 0; i < num_sequences; ++i) {
      threads.emplace_back([&, i] {
        grpc::ClientContext context;
        StreamTimes& stream_times = (*times)[i];
        stream_times.start = absl::Now();
        auto stream = generation_->Generate(
            &context, MakeRequest(options, vocab_size, first_number + i));
        v1::GenerateResponse event;
        while (stream->Read(&event)) {
          if (event.has_chunk() && event.chunk().token_ids_size() > 0) {
            stream_times.tokens.push_back(absl::Now());
          }
        }
        statuses[i] = FromGrpcStatus(stream->Finish());
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const absl::Status& status : statuses) SY_RETURN_IF_ERROR(status);
    return absl::OkStatus();
  }

  int num_requests_ = 0;
  std::unique_ptr<v1::GenerationService::Stub> generation_;
  std::unique_ptr<v1::AdminService::Stub> admin_;
};

void PrintHeading() {
  std::printf("%6s %6s %9s %9s %9s %8s %10s %9s %7s %8s %8s %8s %8s %8s\n",
              "ranks", "seqs", "tokens/s", "ms/step", "executor", "outside",
              "device ms", "it idles", "graphs", "first", "p99", "gap", "p99",
              "longest");
}

void PrintRow(const ServingResult& result) {
  std::printf(
      "%6d %6d %9.0f %9.3f %9.3f %7.1f%% %10.3f %8.1f%% %6.1f%% %8.2f %8.2f "
      "%8.2f %8.2f %8.2f\n",
      result.world_size, result.num_sequences, result.TokensPerSecond(),
      result.StepMs(), result.ExecuteMs(), 100 * result.ShareOutside(),
      result.DeviceMs(), 100 * result.ShareIdle(),
      100.0 * static_cast<double>(result.num_graph_steps) /
          static_cast<double>(result.num_steps),
      Percentile(result.first_ms, 0.5), Percentile(result.first_ms, 0.99),
      Percentile(result.gap_ms, 0.5), Percentile(result.gap_ms, 0.99),
      Percentile(result.gap_ms, 1));
  if (result.num_switches > 0) {
    std::printf(
        "    %d switches: the step loop paused %.3f ms at most; without them "
        "%.0f tokens/s, longest gap %.2f ms\n",
        result.num_switches, Percentile(result.pause_ms, 1),
        result.tokens_per_second_before, result.longest_gap_before_ms);
  }
  std::fflush(stdout);
}

nlohmann::json PercentilesJson(const std::vector<double>& sorted) {
  return {{"p50", Percentile(sorted, 0.5)},
          {"p90", Percentile(sorted, 0.9)},
          {"p99", Percentile(sorted, 0.99)},
          {"max", Percentile(sorted, 1)}};
}

nlohmann::json ToJson(const ServingResult& result) {
  nlohmann::json json = {{"world_size", result.world_size},
                         {"sequences", result.num_sequences},
                         {"tokens_per_second", result.TokensPerSecond()},
                         {"step_ms", result.StepMs()},
                         {"execute_ms", result.ExecuteMs()},
                         {"share_outside_executor", result.ShareOutside()},
                         {"device_ms", result.DeviceMs()},
                         {"share_device_idle", result.ShareIdle()},
                         {"graph_steps", result.num_graph_steps},
                         {"ttft_ms", PercentilesJson(result.first_ms)},
                         {"token_gap_ms", PercentilesJson(result.gap_ms)},
                         {"switches", result.num_switches}};
  if (result.num_switches > 0) {
    json["switch_pause_ms"] = PercentilesJson(result.pause_ms);
    json["without_switches"] = {
        {"longest_gap_ms", result.longest_gap_before_ms},
        {"tokens_per_second", result.tokens_per_second_before}};
  }
  return json;
}

absl::Status RunWorldSize(const ServingOptions& options, int world_size,
                          const std::vector<int>& concurrency,
                          std::vector<ServingResult>* results) {
  const std::vector<std::string> shapes = NamedShapes();
  const bool random = std::find(shapes.begin(), shapes.end(),
                                options.model_dir) != shapes.end();
  std::vector<std::string> command = {"serve",
                                      random ? "--random-init" : "--model",
                                      options.model_dir,
                                      "--device",
                                      options.device,
                                      "--tensor-parallel-size",
                                      absl::StrCat(world_size),
                                      "--port",
                                      "0",
                                      "--admin-port",
                                      "0",
                                      "--metrics-port",
                                      "0",
                                      "--log-level",
                                      "warning",
                                      "--health-port",
                                      "0"};
  command.insert(command.end(), options.serve_flags.begin(),
                 options.serve_flags.end());
  SY_ASSIGN_OR_RETURN(std::unique_ptr<Subprocess> server,
                      Subprocess::Start(command));
  const absl::Time deadline = absl::Now() + absl::Minutes(30);
  SY_ASSIGN_OR_RETURN(const std::string target,
                      server->ReadAfter("serving on ", deadline));
  SY_ASSIGN_OR_RETURN(const std::string admin_target,
                      server->ReadAfter("admin on ", deadline));
  SY_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel,
                      Dial(target, options.files));
  SY_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> admin_channel,
                      Dial(admin_target, options.files));
  Load load(channel, admin_channel);
  for (const int num_sequences : concurrency) {
    SY_ASSIGN_OR_RETURN(ServingResult result,
                        load.Measure(options, num_sequences));
    result.world_size = world_size;
    PrintRow(result);
    results->push_back(result);
  }
  server->Signal(SIGTERM);
  (void)server->Wait(absl::Now() + absl::Seconds(30));
  return absl::OkStatus();
}

}  // namespace

int BenchServing(absl::Span<const std::string> args) {
  ServingOptions options;
  FlagSet flags("switchyard bench serving",
                "Starts a server for every world size, loads it through gRPC "
                "from this process, and tells what a step "
                "costs and how much of it is not the executor's.",
                "DIR [flags] [-- SERVE FLAGS]");
  flags.Operand("DIR", &options.model_dir,
                "the checkpoint, or a shape of `serve --random-init`");
  flags.Operands("SERVE FLAGS", &options.serve_flags,
                 "passed on to `switchyard serve`");
  flags.Choice("device", &options.device, {"auto", "cpu", "cuda"},
               "of the workers");
  flags.List("world-sizes", &options.world_sizes, "1,2",
             "tensor-parallel sizes");
  flags.List("concurrency", &options.concurrency, "1,8,32",
             "sequences at a time");
  flags.Int("shared-tokens", &options.shared_tokens, 0, 1 << 20,
            "of each prompt, the same in all requests: for prefix reuse");
  flags.Int("prompt-tokens", &options.prompt_tokens, 1, 1 << 20,
            "of every request");
  flags.Int("max-tokens", &options.max_tokens, 17, 1 << 20,
            "generated by every request");
  flags.String("placement", &options.placement, "PRESET|A,B,...",
               "of every request");
  flags.List("switch-first", &options.switch_first, "P,P,...",
             "serve each of these presets as the default for a moment before "
             "anything is measured, under the last of them");
  flags.List("switch-between", &options.switch_between, "P,P,...",
             "switch the default placement between these presets under load, "
             "and tell what it does to the streams");
  flags.Duration("switch-every", &options.switch_every, "between switches");
  flags.String("json", &options.json_path, "FILE", "the results as JSON, too");
  AddClientFlags(&options.files, &flags);
  if (std::optional<int> exit_code = flags.ParseOrExitCode(args))
    return *exit_code;

  const absl::StatusOr<std::vector<int>> world_sizes =
      ParseCounts("world-sizes", options.world_sizes);
  const absl::StatusOr<std::vector<int>> concurrency =
      ParseCounts("concurrency", options.concurrency);
  if (!world_sizes.ok()) return Fail("bench serving", world_sizes.status());
  if (!concurrency.ok()) return Fail("bench serving", concurrency.status());

  std::printf(
      "%s, %s placement, %u prompt tokens, %u generated; %ld CPU cores; times "
      "in "
      "ms: of a step, of that in the executor; to a stream's first token, and "
      "from one message with tokens to the next\n",
      options.model_dir.c_str(),
      options.placement
          .value_or(options.switch_first.empty() ? "the default"
                                                 : options.switch_first.back())
          .c_str(),
      options.prompt_tokens, options.max_tokens, sysconf(_SC_NPROCESSORS_ONLN));
  PrintHeading();
  std::vector<ServingResult> results;
  for (const int world_size : *world_sizes) {
    const absl::Status status =
        RunWorldSize(options, world_size, *concurrency, &results);
    if (!status.ok()) return Fail("bench serving", status);
  }
  if (options.json_path.has_value()) {
    nlohmann::json json = nlohmann::json::array();
    for (const ServingResult& result : results) json.push_back(ToJson(result));
    std::ofstream file(*options.json_path);
    file << json.dump(1) << "\n";
    if (!file)
      return Fail("bench serving", absl::UnavailableError(absl::StrCat(
                                       "cannot write ", *options.json_path)));
  }
  return kExitOk;
}

}  // namespace switchyard
