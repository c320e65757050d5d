#include "tests/bench/kernels/harness.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <utility>

#include "kernels/backends.h"
#include "kernels/cuda_status.h"
#include "kernels/matmul_cuda.h"

namespace switchyard::bench {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t{6} << 30;
constexpr int kRepeats = 7;
constexpr double kMinReplayUs = 3000;  // of one timed repeat
constexpr double kWarmUpUs = 30'000;

void OkCuda(cudaError_t code, const char* what) { Ok(CudaStatus(code, what)); }

std::string Padded(std::string text, size_t width) {
  if (text.size() < width) text.resize(width, ' ');
  return text;
}

}  // namespace

void Die(const absl::Status& status) {
  std::fflush(stdout);
  std::fprintf(stderr, "kernel_bench: %s\n", status.ToString().c_str());
  std::exit(2);
}

Harness::Harness(CudaDevice* device, bool times)
    : device_(device), times_wanted_(times) {
  const unsigned seed = std::random_device()();
  std::printf("seed %u\n", seed);
  random_.seed(seed);
  workspace_buffer_ = Value(device->Allocate(kWorkspaceBytes));
  Ok(device->Fill(workspace_buffer_.get(), 0xff, kWorkspaceBytes));
  workspace_ = Workspace(workspace_buffer_.get(), kWorkspaceBytes);
  context_.device = device;
  context_.workspace = &workspace_;
}

OpContext Harness::invariant() const {
  OpContext context = context_;
  context.batch_invariant = true;
  return context;
}

DeviceBuffer Harness::UploadBytes(const void* data, int64_t bytes) {
  DeviceBuffer buffer = Value(device_->Allocate(std::max<int64_t>(bytes, 256)));
  Ok(device_->CopyToDevice(buffer.get(), data, bytes));
  Ok(device_->Synchronize());
  return buffer;
}

void Harness::DownloadBytes(void* host, const void* device, int64_t bytes) {
  Ok(device_->CopyToHost(host, device, bytes));
  Ok(device_->Synchronize());
}

Tensor Harness::FromHost(std::vector<float> values, int64_t rows, int64_t cols,
                         DType dtype) {
  Tensor tensor;
  if (dtype == DType::kF32) {
    tensor.buffer = Upload(values);
  } else {
    std::vector<uint16_t> bits(values.size());
    for (size_t i = 0; i < values.size(); ++i) {
      bits[i] = FloatToBF16(values[i]);
      values[i] = BF16ToFloat(bits[i]);
    }
    tensor.buffer = Upload(bits);
  }
  tensor.host = std::move(values);
  tensor.view = MakeMatrix(tensor.buffer.get(), dtype, rows, cols);
  return tensor;
}

Tensor Harness::Random(int64_t rows, int64_t cols, DType dtype, float scale) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(rows * cols);
  for (float& value : values) value = normal(random_);
  return FromHost(std::move(values), rows, cols, dtype);
}

Tensor Harness::Poisoned(int64_t rows, int64_t cols, DType dtype) {
  Tensor tensor;
  const int64_t bytes = rows * cols * DTypeBytes(dtype);
  tensor.buffer = Value(device_->Allocate(bytes));
  Ok(device_->Fill(tensor.buffer.get(), 0xff, bytes));
  tensor.view = MakeMatrix(tensor.buffer.get(), dtype, rows, cols);
  return tensor;
}

Tensor Harness::Large(int64_t rows, int64_t cols, DType dtype, float scale) {
  Tensor tensor;
  tensor.buffer = Value(device_->Allocate(rows * cols * DTypeBytes(dtype)));
  tensor.view = MakeMatrix(tensor.buffer.get(), dtype, rows, cols);
  Ok(FillRandom(tensor.buffer.get(), dtype, rows * cols, scale, next_seed_++,
                device_->stream()));
  return tensor;
}

WeightMatrix Harness::LargeWeight(int64_t n, int64_t k) {
  auto storage = std::make_unique<internal::CudaWeight>();
  storage->data = std::move(Large(n, k, DType::kBF16, 0.02f).buffer);
  Ok(internal::PlanStreaming(device_->num_sms(), n, k, storage.get()));
  Ok(internal::PlanWide(device_->num_sms(), n, k, storage.get()));
  return WeightMatrix(n, k, DType::kBF16, std::move(storage));
}

std::vector<float> Harness::Download(const MatrixView& view) {
  std::vector<float> values(view.rows * view.cols);
  const int64_t span = (view.rows - 1) * view.row_stride + view.cols;
  if (view.dtype == DType::kF32) {
    const auto all = Download<float>(view.data, span);
    for (int64_t i = 0; i < view.rows * view.cols; ++i)
      values[i] = all[i / view.cols * view.row_stride + i % view.cols];
  } else {
    const auto all = Download<uint16_t>(view.data, span);
    for (int64_t i = 0; i < view.rows * view.cols; ++i)
      values[i] =
          BF16ToFloat(all[i / view.cols * view.row_stride + i % view.cols]);
  }
  return values;
}

void Harness::Check(const std::string& name, const std::vector<float>& out,
                    const std::vector<double>& reference, double tolerance) {
  double difference = 0, norm = 0;
  int64_t worst = 0;
  double worst_error = -1;
  bool finite = out.size() == reference.size();
  for (size_t i = 0; finite && i < out.size(); ++i) {
    const double error = std::abs(out[i] - reference[i]);
    finite = std::isfinite(out[i]);
    if (!(error <= worst_error)) {
      worst_error = error;
      worst = static_cast<int64_t>(i);
    }
    difference += error * error;
    norm += reference[i] * reference[i];
  }
  CheckRow row;
  row.name = name;
  row.error = finite ? std::sqrt(difference / std::max(norm, 1e-30)) : NAN;
  row.tolerance = tolerance;
  row.passed = finite && row.error <= tolerance;
  std::printf("%s  %s error %.2e (at most %.0e)", row.passed ? "ok  " : "FAIL",
              Padded(name, 56).c_str(), row.error, tolerance);
  if (!row.passed && out.size() == reference.size()) {
    std::printf("  worst at %ld: %g, should be %g", static_cast<long>(worst),
                out[worst], reference[worst]);
  }
  std::printf("\n");
  std::fflush(stdout);
  checks_.push_back(row);
}

void Harness::Expect(const std::string& name, bool holds) {
  checks_.push_back({name, holds ? 0.0 : 1.0, 0, holds});
  std::printf("%s  %s\n", holds ? "ok  " : "FAIL", name.c_str());
  std::fflush(stdout);
}

std::pair<double, double> Harness::Replay(
    int num_sets, const std::function<void(int set)>& run) {
  const cudaStream_t stream = device_->cuda_stream();
  // Eagerly once: plans are made outside the capture.
  for (int set = 0; set < num_sets; ++set) run(set);
  Ok(device_->Synchronize());
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  OkCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal),
         "cudaStreamBeginCapture");
  int calls = 0;
  for (; calls < std::max(num_sets, kGraphCalls); ++calls)
    run(calls % num_sets);
  OkCuda(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
  OkCuda(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
  cudaEvent_t start, stop;
  OkCuda(cudaEventCreate(&start), "cudaEventCreate");
  OkCuda(cudaEventCreate(&stop), "cudaEventCreate");
  const auto timed = [&](int replays) {
    OkCuda(cudaEventRecord(start, stream), "cudaEventRecord");
    for (int i = 0; i < replays; ++i)
      OkCuda(cudaGraphLaunch(executable, stream), "cudaGraphLaunch");
    OkCuda(cudaEventRecord(stop, stream), "cudaEventRecord");
    Ok(device_->Synchronize());
    float ms = 0;
    OkCuda(cudaEventElapsedTime(&ms, start, stop), "cudaEventElapsedTime");
    return 1000.0 * ms / (double{1} * replays * calls);
  };
  timed(1);
  const double rough = timed(1) * calls;
  // A GPU that idled while tensors were made has yet to raise its clocks.
  timed(static_cast<int>(std::ceil(kWarmUpUs / rough)));
  const int replays =
      std::max(1, static_cast<int>(std::ceil(kMinReplayUs / rough)));
  std::vector<double> us(kRepeats);
  for (double& value : us) value = timed(replays);
  std::sort(us.begin(), us.end());
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  const double median = us[kRepeats / 2];
  return {median, (us.back() - us.front()) / median};
}

void Harness::Time(const std::string& name, int num_sets, double work,
                   Roof roof, const std::function<void(int set)>& run) {
  const auto [us, spread] = Replay(num_sets, run);
  TimeRow row;
  row.name = name;
  row.us = us;
  row.spread = spread;
  row.rate = roof == Roof::kGemm ? work / us / 1e6 : work / us / 1e3;
  row.unit = roof == Roof::kGemm ? "TFLOP/s" : "GB/s";
  row.ceiling = ceilings_[static_cast<int>(roof)];
  times_.push_back(row);
  std::printf("%s %10.2f us %8.0f %-8s %5.1f%%  +-%.1f%%\n",
              Padded(name, 58).c_str(), row.us, row.rate, row.unit.c_str(),
              100 * row.rate / row.ceiling, 50 * row.spread);
  std::fflush(stdout);
}

void Harness::MeasureCeilings() {
  constexpr int64_t kBytes = int64_t{4} << 30;
  const Tensor from = Large(kBytes / 4, 1, DType::kF32);
  const Tensor to = Large(kBytes / 4, 1, DType::kF32);
  const Tensor sink = Poisoned(1, 1, DType::kF32);
  const double read_us =
      Replay(1, [&](int) {
        Ok(ReadAll(from.view.data, kBytes, static_cast<float*>(sink.view.data),
                   device_->stream()));
      }).first;
  const double copy_us =
      Replay(1, [&](int) {
        Ok(CopyAll(to.view.data, from.view.data, kBytes, device_->stream()));
      }).first;
  constexpr int64_t kSide = 8192;
  auto storage = std::make_unique<internal::CudaWeight>();
  Tensor weight_data = Large(kSide, kSide, DType::kBF16);
  storage->data = std::move(weight_data.buffer);
  const WeightMatrix weight(kSide, kSide, DType::kBF16, std::move(storage));
  const Tensor x = Large(kSide, kSide, DType::kBF16);
  const Tensor out = Large(kSide, kSide, DType::kBF16);
  const double gemm_us = Replay(1, [&](int) {
                           MatmulArgs args;
                           args.x = x.view;
                           args.weight = &weight;
                           args.out = out.view;
                           Ok(internal::MatmulCuda(context_, args));
                         }).first;
  ceilings_[static_cast<int>(Roof::kRead)] = kBytes / read_us / 1e3;
  ceilings_[static_cast<int>(Roof::kCopy)] = 2.0 * kBytes / copy_us / 1e3;
  ceilings_[static_cast<int>(Roof::kGemm)] =
      2.0 * kSide * kSide * kSide / gemm_us / 1e6;
  std::printf("ceilings: read %.0f GB/s, copy %.0f GB/s, GEMM %.0f TFLOP/s\n",
              ceilings_[0], ceilings_[1], ceilings_[2]);
  std::fflush(stdout);
}

bool Harness::AllPassed() const {
  return std::all_of(checks_.begin(), checks_.end(),
                     [](const CheckRow& row) { return row.passed; });
}

void Harness::Report(const std::string& path) const {
  const int64_t failed =
      std::count_if(checks_.begin(), checks_.end(),
                    [](const CheckRow& row) { return !row.passed; });
  for (const CheckRow& row : checks_) {
    if (!row.passed)
      std::printf("FAIL  %s error %.2e\n", row.name.c_str(), row.error);
  }
  std::printf("%zu checks, %ld failed\n", checks_.size(),
              static_cast<long>(failed));
  if (path.empty()) return;
  std::ofstream json(path);
  json << "{\n  \"device\": \"" << device_->name() << "\",\n"
       << "  \"ceilings\": {\"read_gbps\": " << ceilings_[0]
       << ", \"copy_gbps\": " << ceilings_[1]
       << ", \"gemm_tflops\": " << ceilings_[2] << "},\n  \"checks\": [";
  for (size_t i = 0; i < checks_.size(); ++i) {
    const CheckRow& row = checks_[i];
    json << (i == 0 ? "\n" : ",\n") << "    {\"name\": \"" << row.name
         << "\", \"error\": ";
    if (std::isfinite(row.error))
      json << row.error;
    else
      json << "null";
    json << ", \"tolerance\": " << row.tolerance
         << ", \"passed\": " << (row.passed ? "true" : "false") << "}";
  }
  json << "\n  ],\n  \"times\": [";
  for (size_t i = 0; i < times_.size(); ++i) {
    const TimeRow& row = times_[i];
    json << (i == 0 ? "\n" : ",\n") << "    {\"name\": \"" << row.name
         << "\", \"us\": " << row.us << ", \"spread\": " << row.spread
         << ", \"rate\": " << row.rate << ", \"unit\": \"" << row.unit
         << "\", \"share\": " << row.rate / row.ceiling << "}";
  }
  json << "\n  ]\n}\n";
}

}  // namespace switchyard::bench
