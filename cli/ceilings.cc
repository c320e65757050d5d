#include "cli/ceilings.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "kernels/matmul.h"
#include "kernels/status.h"

namespace switchyard {
namespace {

constexpr int kRepeats = 7;

// The median time of one of `num_calls` calls enqueued together.
absl::StatusOr<double> MedianSeconds(
    Device* device, int num_calls, const std::function<absl::Status()>& call) {
  std::vector<double> seconds;
  for (int repeat = 0; repeat <= kRepeats; ++repeat) {
    const absl::Time start = absl::Now();
    for (int i = 0; i < num_calls; ++i) SY_RETURN_IF_ERROR(call());
    SY_RETURN_IF_ERROR(device->Synchronize());
    if (repeat == 0) continue;  // the first pays for plans and pages
    seconds.push_back(absl::ToDoubleSeconds(absl::Now() - start) / num_calls);
  }
  std::sort(seconds.begin(), seconds.end());
  return seconds[kRepeats / 2];
}

// Calls work(begin, end) on parts of [0, num), a thread each.
void InThreads(int num_threads, int64_t num,
               const std::function<void(int64_t, int64_t)>& work) {
  std::vector<std::thread> threads;
  for (int i = 0; i < num_threads; ++i) {
    threads.emplace_back(work, num * i / num_threads,
                         num * (i + 1) / num_threads);
  }
  for (std::thread& thread : threads) thread.join();
}

absl::Status ReadOnCpu(Device* device, const std::byte* data, int64_t bytes,
                       std::atomic<uint64_t>* sink) {
  const auto* words = reinterpret_cast<const uint64_t*>(data);
  InThreads(device->num_threads(), bytes / 8, [&](int64_t begin, int64_t end) {
    uint64_t sums[8] = {};
    int64_t i = begin;
    for (; i + 8 <= end; i += 8) {
      for (int j = 0; j < 8; ++j) sums[j] += words[i + j];
    }
    for (const uint64_t sum : sums) *sink += sum;
  });
  return absl::OkStatus();
}

absl::Status CopyOnCpu(Device* device, std::byte* to, const std::byte* from,
                       int64_t bytes) {
  InThreads(device->num_threads(), bytes, [&](int64_t begin, int64_t end) {
    std::memcpy(to + begin, from + begin, end - begin);
  });
  return absl::OkStatus();
}

absl::Status MeasureMemory(Device* device, Ceilings& ceilings) {
  const bool cuda = device->type() == DeviceType::kCuda;
  const int64_t bytes = int64_t{1} << (cuda ? 31 : 27);
  const int num_calls = cuda ? 4 : 1;
  SY_ASSIGN_OR_RETURN(const DeviceBuffer from, device->Allocate(bytes));
  SY_ASSIGN_OR_RETURN(const DeviceBuffer to, device->Allocate(bytes));
  std::atomic<uint64_t> sum{0};
  if (cuda) {
    SY_RETURN_IF_ERROR(internal::FillOnGpu(device, from.get(), bytes));
  } else {
    SY_RETURN_IF_ERROR(device->Fill(from.get(), 0x5a, bytes));
  }
  SY_ASSIGN_OR_RETURN(
      const double read, MedianSeconds(device, num_calls, [&] {
        return cuda ? internal::ReadOnGpu(device, from.get(), bytes,
                                          reinterpret_cast<float*>(to.get()))
                    : ReadOnCpu(device, from.get(), bytes, &sum);
      }));
  SY_ASSIGN_OR_RETURN(
      const double copy, MedianSeconds(device, num_calls, [&] {
        return cuda ? internal::CopyOnGpu(device, to.get(), from.get(), bytes)
                    : CopyOnCpu(device, to.get(), from.get(), bytes);
      }));
  ceilings.read_gbps = bytes / read / 1e9;
  ceilings.copy_gbps = 2.0 * bytes / copy / 1e9;
  return absl::OkStatus();
}

absl::Status MeasureGemm(Device* device, Ceilings& ceilings) {
  const bool cuda = device->type() == DeviceType::kCuda;
  const int64_t side = cuda ? 8192 : 1024;
  const DType dtype = cuda ? DType::kBF16 : DType::kF32;
  const int64_t bytes = side * side * DTypeBytes(dtype);
  std::vector<std::byte> host(bytes);
  uint64_t state = 1;
  for (int64_t i = 0; i < side * side; ++i) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    const float value = static_cast<float>(state >> 40) * 0x1p-23f - 1.0f;
    if (cuda) {
      const uint16_t bits = FloatToBF16(value);
      std::memcpy(host.data() + 2 * i, &bits, 2);
    } else {
      std::memcpy(host.data() + 4 * i, &value, 4);
    }
  }
  SY_ASSIGN_OR_RETURN(
      const WeightMatrix weight,
      WeightMatrix::Create(device, MakeMatrix(host.data(), dtype, side, side),
                           dtype));
  SY_ASSIGN_OR_RETURN(const DeviceBuffer x, device->Allocate(bytes));
  SY_ASSIGN_OR_RETURN(const DeviceBuffer out, device->Allocate(bytes));
  SY_RETURN_IF_ERROR(device->CopyToDevice(x.get(), host.data(), bytes));
  constexpr int64_t kScratchBytes = int64_t{64} << 20;
  SY_ASSIGN_OR_RETURN(const DeviceBuffer scratch,
                      device->Allocate(kScratchBytes));
  Workspace workspace(scratch.get(), kScratchBytes);
  const OpContext context{device, &workspace};
  MatmulArgs args;
  args.x = MakeMatrix(x.get(), dtype, side, side);
  args.weight = &weight;
  args.out = MakeMatrix(out.get(), dtype, side, side);
  SY_ASSIGN_OR_RETURN(const double seconds,
                      MedianSeconds(device, cuda ? 10 : 2, [&] {
                        workspace.Reset();
                        return Matmul(context, args);
                      }));
  ceilings.gemm_tflops = 2.0 * side * side * side / seconds / 1e12;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Ceilings> MeasureCeilings(Device* device) {
  Ceilings ceilings;
  SY_RETURN_IF_ERROR(MeasureMemory(device, ceilings));
  SY_RETURN_IF_ERROR(MeasureGemm(device, ceilings));
  return ceilings;
}

nlohmann::json ToJson(const Ceilings& ceilings) {
  return {{"read_gbps", ceilings.read_gbps},
          {"copy_gbps", ceilings.copy_gbps},
          {"gemm_tflops", ceilings.gemm_tflops}};
}

}  // namespace switchyard
