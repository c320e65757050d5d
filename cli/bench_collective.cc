// switchyard bench collective: what an all-reduce costs, as the layers of a
// tensor-parallel step meet it.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "cli/bench.h"
#include "cli/bench_engine.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "kernels/device.h"
#include "kernels/dtype.h"
#include "kernels/op_context.h"
#include "kernels/rms_norm.h"
#include "kernels/status.h"
#include "kernels/tensor.h"
#include "worker/step_device.h"

namespace switchyard {
namespace {

// As algorithms: short messages take our own kernels, in the form that their
// size has, or in a certain one.
constexpr char kPeers[] = "peers";
constexpr char kOneShot[] = "one-shot";
constexpr char kTwoShot[] = "two-shot";
constexpr int kMaxDrawRanks = 1024;

struct CollectiveBenchOptions {
  RankOptions ranks;
  std::vector<std::string> sizes = {"10240", "81920", "655360", "5242880"};
  std::vector<std::string> algorithms = {"default"};
  int32_t num_calls = 96;  // of a step: two for each of 48 layers
  int32_t num_repeats = 20;
  bool bf16 = false;
  int32_t norm_columns = 0;  // of rows that are summed, added and normed; 0: no
  bool graphs = true;
  std::optional<std::string> json_path;
};

struct SizeResult {
  int64_t bytes = 0;
  StepTimes call;      // milliseconds of one all-reduce
  bool exact = false;  // bit for bit what a sum in rank order gives
  bool graph = false;
};

absl::StatusOr<std::vector<int64_t>> ParseSizes(
    const std::vector<std::string>& texts) {
  std::vector<int64_t> sizes;
  for (const std::string& text : texts) {
    SY_ASSIGN_OR_RETURN(const int64_t bytes, ParseBytes(text));
    if (bytes < 4) {
      return absl::InvalidArgumentError(
          absl::StrCat("--sizes: '", text, "' is less than one number"));
    }
    sizes.push_back(bytes / 4 * 4);
  }
  return sizes;
}

// Element `index` of a rank's message: 24 random bits around zero, in one of
// eight magnitudes, so that sums round.
float Draw(uint64_t seed, int rank, int64_t index) {
  uint64_t x = seed + (static_cast<uint64_t>(index) * kMaxDrawRanks + rank) *
                          0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  x ^= x >> 31;
  const auto signed24 = static_cast<int32_t>(x & 0xffffff) - 0x800000;
  return std::ldexp(static_cast<float>(signed24),
                    -20 + static_cast<int>(x >> 61));
}

// What is timed: a sum over the ranks, or one with the residual and the norm
// that follow it in a layer.
class Message {
 public:
  static absl::StatusOr<Message> Make(RankDevice* rank,
                                      const CollectiveBenchOptions& options,
                                      int64_t bytes) {
    Message m;
    m.rank_ = rank;
    m.type_ =
        options.bf16 ? CollectiveType::kBfloat16 : CollectiveType::kFloat32;
    const int64_t columns = options.norm_columns;
    const int64_t row_bytes = columns * static_cast<int64_t>(sizeof(float));
    if (columns > 0)
      bytes = std::max<int64_t>(1, bytes / row_bytes) * row_bytes;
    m.bytes_ = bytes;
    SY_ASSIGN_OR_RETURN(m.x_, rank->device->Allocate(bytes));
    if (columns > 0) {
      for (DeviceBuffer* buffer : {&m.residual_, &m.out_}) {
        SY_ASSIGN_OR_RETURN(*buffer, rank->device->Allocate(bytes));
      }
      SY_ASSIGN_OR_RETURN(m.weight_, rank->device->Allocate(row_bytes));
      SY_RETURN_IF_ERROR(rank->device->Fill(m.weight_.get(), 0, row_bytes));
      const int64_t rows = bytes / row_bytes;
      m.args_.delta = MakeMatrix(m.x_.get(), DType::kF32, rows, columns);
      m.args_.residual =
          MakeMatrix(m.residual_.get(), DType::kF32, rows, columns);
      // The activation type.
      m.args_.out =
          MakeMatrix(m.out_.get(),
                     rank->device->type() == DeviceType::kCuda ? DType::kBF16
                                                               : DType::kF32,
                     rows, columns);
      m.args_.weight = reinterpret_cast<const float*>(m.weight_.get());
      m.args_.epsilon = 1e-5f;
    }
    return m;
  }

  int64_t bytes() const { return bytes_; }
  int64_t num_elements() const { return bytes_ / CollectiveTypeBytes(type_); }
  bool bf16() const { return type_ == CollectiveType::kBfloat16; }
  std::byte* x() const { return x_.get(); }
  // Where the sum is afterwards.
  std::byte* sum() const {
    return residual_ == nullptr ? x_.get() : residual_.get();
  }

  absl::Status Clear() const {
    SY_RETURN_IF_ERROR(rank_->device->Fill(x_.get(), 0, bytes_));
    if (residual_ == nullptr) return absl::OkStatus();
    return rank_->device->Fill(residual_.get(), 0, bytes_);
  }

  absl::Status Reduce(const OpContext& context) const {
    void* const stream = rank_->device->stream();
    if (residual_ != nullptr) {
      SY_ASSIGN_OR_RETURN(
          const bool done,
          rank_->collective->TryAllReduceAddRmsNorm(args_, stream));
      if (done) return absl::OkStatus();
    }
    SY_RETURN_IF_ERROR(rank_->collective->AllReduceSum(x_.get(), num_elements(),
                                                       type_, stream));
    return residual_ == nullptr ? absl::OkStatus() : AddRmsNorm(context, args_);
  }

 private:
  RankDevice* rank_ = nullptr;
  CollectiveType type_ = CollectiveType::kFloat32;
  int64_t bytes_ = 0;
  DeviceBuffer x_, residual_, out_, weight_;
  AddRmsNormArgs args_;
};

// Sums new numbers over the ranks. True if the result is what a sum in rank
// order gives, bit for bit; an error if an element is further off than the
// rounding of any other order could bring it.
absl::StatusOr<bool> CheckSum(const RankDevice& rank, const OpContext& context,
                              const Message& message, uint64_t seed) {
  const int64_t num_elements = message.num_elements();
  const int64_t bytes = message.bytes();
  const int world_size = rank.collective->world_size();
  const bool bf16 = message.bf16();
  std::vector<float> fp32(num_elements);
  std::vector<uint16_t> half(bf16 ? num_elements : 0);
  const auto draw = [&](int of_rank, int64_t i) {
    const float x = Draw(seed, of_rank, i);
    return bf16 ? BF16ToFloat(FloatToBF16(x)) : x;
  };
  for (int64_t i = 0; i < num_elements; ++i) {
    fp32[i] = draw(rank.collective->rank(), i);
    if (bf16) half[i] = FloatToBF16(fp32[i]);
  }
  void* const host = bf16 ? static_cast<void*>(half.data()) : fp32.data();
  SY_RETURN_IF_ERROR(message.Clear());
  SY_RETURN_IF_ERROR(rank.device->CopyToDevice(message.x(), host, bytes));
  SY_RETURN_IF_ERROR(message.Reduce(context));
  SY_RETURN_IF_ERROR(rank.device->CopyToHost(host, message.sum(), bytes));
  SY_RETURN_IF_ERROR(rank.device->Synchronize());
  bool exact = true;
  const float epsilon = world_size * (bf16 ? 0x1p-8f : 0x1p-23f);
  for (int64_t i = 0; i < num_elements; ++i) {
    float want = draw(0, i), magnitude = std::abs(want);
    for (int r = 1; r < world_size; ++r) {
      const float x = draw(r, i);
      want += x;
      magnitude += std::abs(x);
    }
    const float got = bf16 ? BF16ToFloat(half[i]) : fp32[i];
    if (!(std::abs(got - want) <= epsilon * magnitude)) {
      return absl::InternalError(absl::StrCat(
          "rank ", rank.collective->rank(), ", ", bytes, " bytes, element ", i,
          ": the sum is ", got, " instead of ", want));
    }
    exact = exact && got == (bf16 ? BF16ToFloat(FloatToBF16(want)) : want);
  }
  return exact;
}

// This rank's part; the times are worth reporting on rank 0.
absl::StatusOr<std::vector<SizeResult>> MeasureSizes(
    const CollectiveBenchOptions& options, std::string* device_name) {
  SY_ASSIGN_OR_RETURN(const std::vector<int64_t> sizes,
                      ParseSizes(options.sizes));
  SY_ASSIGN_OR_RETURN(RankDevice rank, JoinRanks(options.ranks));
  *device_name = rank.device->name();
  Workspace workspace;
  OpContext context;
  context.device = rank.device.get();
  context.workspace = &workspace;
  const std::unique_ptr<StepDevice> recorder =
      MakeStepDevice(rank.device.get());
  const bool graphs = options.graphs && recorder->has_graphs();
  // New with every run, and the same on all ranks.
  const uint64_t seed = std::hash<std::string>()(options.ranks.rendezvous_dir);
  std::vector<SizeResult> results;
  for (const int64_t size : sizes) {
    SY_ASSIGN_OR_RETURN(const Message message,
                        Message::Make(&rank, options, size));
    const auto run = [&]() -> absl::Status {
      for (int32_t i = 0; i < options.num_calls; ++i) {
        SY_RETURN_IF_ERROR(message.Reduce(context));
      }
      return absl::OkStatus();
    };
    // The first connects. Then no sum that an earlier one left would do.
    SY_ASSIGN_OR_RETURN(bool exact, CheckSum(rank, context, message, seed));
    SY_ASSIGN_OR_RETURN(const bool again,
                        CheckSum(rank, context, message, seed + 1));
    exact = exact && again;
    SY_RETURN_IF_ERROR(message.Clear());
    SY_RETURN_IF_ERROR(run());
    SY_RETURN_IF_ERROR(rank.device->Synchronize());
    std::unique_ptr<StepGraph> graph;
    if (graphs) {
      SY_ASSIGN_OR_RETURN(graph, recorder->Record(run));
      SY_RETURN_IF_ERROR(graph->Launch());
      SY_RETURN_IF_ERROR(rank.device->Synchronize());
    }
    std::vector<double> ms;
    for (int32_t repeat = 0; repeat < options.num_repeats; ++repeat) {
      SY_RETURN_IF_ERROR(rank.collective->Barrier());
      const absl::Time start = absl::Now();
      SY_RETURN_IF_ERROR(graph != nullptr ? graph->Launch() : run());
      SY_RETURN_IF_ERROR(rank.device->Synchronize());
      ms.push_back(absl::ToDoubleMilliseconds(absl::Now() - start) /
                   options.num_calls);
    }
    results.push_back(
        {message.bytes(), Summarize(std::move(ms)), exact, graph != nullptr});
  }
  return results;
}

nlohmann::json ToJson(const SizeResult& result, const std::string& algorithm,
                      int world_size) {
  const double us = 1e3 * result.call.median_ms;
  return {{"algorithm", algorithm},
          {"bytes", result.bytes},
          {"median_us", us},
          {"p10_us", 1e3 * result.call.p10_ms},
          {"p90_us", 1e3 * result.call.p90_ms},
          {"graph", result.graph},
          {"exact", result.exact},
          // What each rank's links carry in a ring.
          {"bus_gbps",
           2.0 * (world_size - 1) / world_size * result.bytes / us / 1e3}};
}

// One process per algorithm: NCCL reads its environment once. The JSON of its
// results comes back in a file.
absl::StatusOr<nlohmann::json> RunAlgorithm(
    const std::string& algorithm, const std::vector<std::string>& args) {
  unsetenv("NCCL_ALGO");
  unsetenv("NCCL_PROTO");
  std::string all_reduce = "nccl";
  if (algorithm == kPeers) {
    all_reduce = "auto";
  } else if (algorithm == kOneShot || algorithm == kTwoShot) {
    all_reduce = algorithm;
  } else if (algorithm != "default") {
    const std::vector<std::string> parts = absl::StrSplit(algorithm, '/');
    setenv("NCCL_ALGO", parts[0].c_str(), 1);
    if (parts.size() > 1) setenv("NCCL_PROTO", parts[1].c_str(), 1);
  }
  SY_ASSIGN_OR_RETURN(const std::unique_ptr<ScratchDirectory> directory,
                      ScratchDirectory::Make());
  const std::string path = absl::StrCat(directory->path(), "/results.json");
  std::vector<std::string> command = {"bench", "collective"};
  command.insert(command.end(), args.begin(), args.end());
  command.push_back("--algorithms=default");
  command.push_back("--all-reduce=" + all_reduce);
  command.push_back("--json=" + path);
  SY_ASSIGN_OR_RETURN(const std::unique_ptr<Subprocess> process,
                      Subprocess::Start(command));
  while (process->ReadLine(absl::Now() + absl::Minutes(5)).ok()) {
  }
  const absl::StatusOr<int> code =
      process->Wait(absl::Now() + absl::Seconds(10));
  if (!code.ok()) return code.status();
  return *code == 0 ? ReadJson(path)
                    : absl::UnavailableError(
                          absl::StrCat("ended with exit code ", *code));
}

void PrintRow(const std::string& algorithm, const nlohmann::json& row) {
  std::printf("%-16s %10lld %10.2f %10.2f %10.2f %9.1f %6s %6s\n",
              algorithm.c_str(), row["bytes"].get<long long>(),
              row["median_us"].get<double>(), row["p10_us"].get<double>(),
              row["p90_us"].get<double>(), row["bus_gbps"].get<double>(),
              row["graph"].get<bool>() ? "yes" : "no",
              row["exact"].get<bool>() ? "yes" : "no");
  std::fflush(stdout);
}

void PrintHeading() {
  std::printf("%-16s %10s %10s %10s %10s %9s %6s %6s\n", "algorithm", "bytes",
              "us", "p10", "p90", "bus GB/s", "graph", "exact");
}

absl::Status RunAll(const CollectiveBenchOptions& options,
                    const std::vector<std::string>& args) {
  nlohmann::json json;
  PrintHeading();
  for (const std::string& algorithm : options.algorithms) {
    const absl::StatusOr<nlohmann::json> one = RunAlgorithm(algorithm, args);
    if (!one.ok()) {
      std::printf("%-16s %s\n", algorithm.c_str(),
                  std::string(one.status().message()).c_str());
      continue;
    }
    if (json.is_null()) {
      json = *one;
      json["results"] = nlohmann::json::array();
    }
    for (nlohmann::json row : (*one)["results"]) {
      row["algorithm"] = algorithm;
      PrintRow(algorithm, row);
      json["results"].push_back(row);
    }
  }
  if (json.is_null()) {
    return absl::UnavailableError("no algorithm gave a result");
  }
  return WriteJson(options.json_path, json);
}

absl::Status RunHere(const CollectiveBenchOptions& options) {
  std::string device;
  SY_ASSIGN_OR_RETURN(const std::vector<SizeResult> results,
                      MeasureSizes(options, &device));
  if (options.ranks.rank != 0) return absl::OkStatus();
  nlohmann::json json = {{"benchmark", "collective"},
                         {"device", device},
                         {"world_size", options.ranks.world_size},
                         {"type", options.bf16 ? "bf16" : "fp32"},
                         {"calls_per_replay", options.num_calls},
                         {"norm_columns", options.norm_columns},
                         {"results", nlohmann::json::array()}};
  PrintHeading();
  for (const SizeResult& result : results) {
    const nlohmann::json row =
        ToJson(result, "default", options.ranks.world_size);
    PrintRow("default", row);
    json["results"].push_back(row);
  }
  return WriteJson(options.json_path, json);
}

}  // namespace

int BenchCollective(absl::Span<const std::string> args) {
  CollectiveBenchOptions options;
  options.ranks.world_size = 2;
  FlagSet flags("switchyard bench collective",
                "Times the all-reduce of tensor-parallel ranks, a process "
                "each, in runs as long as those of a decode step; on GPUs "
                "inside a CUDA graph. Algorithms are compared in processes of "
                "their own. Every size is checked with random numbers first: "
                "exact means the very bits of a sum in rank order.",
                "[flags]");
  AddRankFlags(&options.ranks, &flags);
  flags.Section("What is measured");
  flags.List("sizes", &options.sizes, "BYTES,...", "of the reduced vector");
  flags.List("algorithms", &options.algorithms, "A,A/P,...",
             "peers: our own kernels where messages are short; one-shot, "
             "two-shot: those in this form; default: NCCL's choice; or "
             "NCCL_ALGO and NCCL_PROTO: Ring/LL, Tree/Simple, ...; default "
             "alone obeys --all-reduce");
  flags.Int("calls", &options.num_calls, 1, 1 << 16, "of a run");
  flags.Int("repeats", &options.num_repeats, 1, 1 << 16, "runs that are timed");
  flags.Bool("bf16", &options.bf16,
             "sum bf16 instead of fp32, which the residual stream is");
  flags.Int("norm-columns", &options.norm_columns, 0, 8192,
            "sum as many whole rows of so many columns as a size has, and go "
            "on with the residual and the norm, as a layer does; 0: sum only");
  flags.Bool("graphs", &options.graphs, "record a run as a CUDA graph");
  flags.String("json", &options.json_path, "FILE", "the results as JSON, too");
  if (std::optional<int> exit_code = flags.ParseOrExitCode(args))
    return *exit_code;

  if (options.norm_columns > 0 &&
      (options.bf16 || options.norm_columns % 8 != 0)) {
    return Fail("bench collective",
                absl::InvalidArgumentError(
                    "--norm-columns takes fp32 and a multiple of 8 columns"));
  }

  const std::vector<std::string> arguments(args.begin(), args.end());
  if (options.algorithms != std::vector<std::string>{"default"}) {
    const absl::Status status = RunAll(options, arguments);
    if (!status.ok()) return Fail("bench collective", status);
    return kExitOk;
  }
  std::vector<std::string> command = {"bench", "collective"};
  command.insert(command.end(), args.begin(), args.end());
  const absl::StatusOr<std::unique_ptr<BenchRanks>> ranks =
      BenchRanks::Start(command, &options.ranks);
  if (!ranks.ok()) EndBench("collective", ranks.status());
  const absl::Status status = RunHere(options);
  if (!status.ok()) EndBench("collective", status);
  return kExitOk;
}

}  // namespace switchyard
