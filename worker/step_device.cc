#include "worker/step_device.h"

#include "absl/time/clock.h"

namespace switchyard {
namespace {

class CpuMark final : public StreamMark {
 public:
  absl::Status Set() override {
    time_ = absl::Now();
    return absl::OkStatus();
  }
  absl::StatusOr<bool> Reached() override { return true; }
  absl::StatusOr<absl::Duration> Since(const StreamMark& earlier) override {
    return time_ - static_cast<const CpuMark&>(earlier).time_;
  }

 private:
  absl::Time time_ = absl::InfinitePast();
};

class CpuStepDevice final : public StepDevice {
 public:
  absl::StatusOr<std::unique_ptr<StreamMark>> MakeMark() override {
    return std::make_unique<CpuMark>();
  }

  absl::StatusOr<std::unique_ptr<SideStream>> MakeSideStream() override {
    return nullptr;
  }

  bool has_graphs() const override { return false; }
  absl::StatusOr<std::unique_ptr<StepGraph>> Record(
      absl::FunctionRef<absl::Status()>) override {
    return absl::UnimplementedError("the CPU device has no graphs");
  }

  absl::Status FetchTokens(const FetchTokensArgs& args) override {
    for (int32_t i = 0; i < args.num_tokens; ++i) {
      if (args.sources[i] < 0) continue;
      args.token_ids[i] = args.last_tokens[args.sources[i]];
    }
    return absl::OkStatus();
  }
  absl::Status StoreTokens(const StoreTokensArgs& args) override {
    for (int32_t i = 0; i < args.num_tokens; ++i) {
      args.last_tokens[args.slots[i]] = args.token_ids[i];
    }
    return absl::OkStatus();
  }
};

}  // namespace

std::unique_ptr<StepDevice> MakeStepDevice(Device* device) {
  if (device->type() == DeviceType::kCuda) {
    return internal::MakeCudaStepDevice(device);
  }
  return std::make_unique<CpuStepDevice>();
}

}  // namespace switchyard
