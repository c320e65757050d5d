// Steps in parts, whose sums over ranks run beside the next part's products.
#include <algorithm>
#include <cstring>
#include <deque>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gtest/gtest.h"
#include "kernels/device.h"
#include "kernels/status.h"
#include "tests/worker/executor_harness.h"
#include "worker/collective.h"
#include "worker/executor.h"
#include "worker/step_device.h"

namespace switchyard {
namespace {

// Does everything as late as it may: when it is joined. Until then the numbers
// are not there.
class LateStream final : public SideStream {
 public:
  explicit LateStream(size_t* most_pending) : most_pending_(most_pending) {}

  void* handle() const override { return const_cast<LateStream*>(this); }
  absl::Status Fork() override { return absl::OkStatus(); }
  absl::StatusOr<int64_t> Mark() override { return num_given_ - 1; }
  absl::Status Join(int64_t mark) override {
    while (num_done_ <= mark) {
      Sum sum = std::move(pending_.front());
      pending_.pop_front();
      ++num_done_;
      std::memcpy(sum.buffer, sum.values.data(),
                  sum.values.size() * sizeof(float));
      SY_RETURN_IF_ERROR(sum.collective->AllReduceSum(
          sum.buffer, static_cast<int64_t>(sum.values.size()),
          CollectiveType::kFloat32, nullptr));
    }
    return absl::OkStatus();
  }

  void Give(Collective* collective, float* buffer, int64_t num_elements) {
    pending_.push_back({collective, buffer,
                        std::vector<float>(buffer, buffer + num_elements)});
    std::fill_n(buffer, num_elements, std::numeric_limits<float>::quiet_NaN());
    ++num_given_;
    *most_pending_ = std::max(*most_pending_, pending_.size());
  }

 private:
  struct Sum {
    Collective* collective;
    float* buffer;
    std::vector<float> values;
  };
  size_t* const most_pending_;
  std::deque<Sum> pending_;
  int64_t num_given_ = 0;
  int64_t num_done_ = 0;
};

// The CPU's, but with a stream beside its own.
class TwoStreamDevice final : public StepDeviceAsItIs {
 public:
  TwoStreamDevice(Device* device, size_t* most_pending)
      : StepDeviceAsItIs(device), most_pending_(most_pending) {}

  absl::StatusOr<std::unique_ptr<SideStream>> MakeSideStream() override {
    return std::make_unique<LateStream>(most_pending_);
  }

 private:
  size_t* const most_pending_;
};

// Leaves sums of the side stream to that.
class TwoStreamCollective final : public Collective {
 public:
  explicit TwoStreamCollective(std::unique_ptr<Collective> own)
      : own_(std::move(own)) {}

  absl::Status AllReduceSum(void* buffer, int64_t num_elements,
                            CollectiveType type,
                            CollectiveStream stream) override {
    if (stream == nullptr) {
      return own_->AllReduceSum(buffer, num_elements, type, stream);
    }
    static_cast<LateStream*>(stream)->Give(
        own_.get(), static_cast<float*>(buffer), num_elements);
    return absl::OkStatus();
  }
  absl::Status AllGather(const void* input, void* output, int64_t num_elements,
                         CollectiveType type,
                         CollectiveStream stream) override {
    return own_->AllGather(input, output, num_elements, type, stream);
  }
  absl::Status Barrier() override { return own_->Barrier(); }
  void Abort() override { own_->Abort(); }
  int rank() const override { return own_->rank(); }
  int world_size() const override { return own_->world_size(); }
  absl::Duration time_spent() const override { return own_->time_spent(); }

 private:
  const std::unique_ptr<Collective> own_;
};

std::vector<HarnessRequest> Requests() {
  const std::vector<std::vector<std::string>> placements = {
      {"attention", "attention", "attention"},
      {"gdn", "kda", "mamba"},
      {"attention", "swa", "gdn"}};
  std::vector<HarnessRequest> requests;
  for (size_t i = 0; i < placements.size(); ++i) {
    HarnessRequest request;
    request.mixers = placements[i];
    request.prompt = Prompt(static_cast<int32_t>(50 + 9 * i), i);
    request.max_tokens = 3;
    request.sampling = GreedyWithLogprobs(2);
    requests.push_back(std::move(request));
  }
  return requests;
}

std::string Bits(const HarnessResult& result) {
  std::string bits;
  for (const auto* logprobs : {&result.logprobs, &result.prompt_logprobs}) {
    for (const v1::TokenLogprobs& one : *logprobs) {
      bits += one.SerializeAsString();
    }
  }
  return bits;
}

// A part whose sum was not awaited, or was touched before, would be NaN.
TEST(ExecutorOverlapTest, PartsGiveTheBitsOfTheWhole) {
  HarnessOptions options;
  options.model_dir = kStochasticDir;
  options.world_size = 2;
  options.overlapped = true;
  const auto whole = ExecutorHarness::Create(options).value();
  size_t most_pending[2] = {};
  int num_devices = 0;
  options.overlap_tokens = 4;
  options.make_step_device = [&](Device* device) {
    return std::make_unique<TwoStreamDevice>(device,
                                             &most_pending[num_devices++]);
  };
  options.wrap_collective = [](std::unique_ptr<Collective> own) {
    return std::make_unique<TwoStreamCollective>(std::move(own));
  };
  const auto in_parts = ExecutorHarness::Create(options).value();

  const std::vector<HarnessRequest> requests = Requests();
  std::vector<std::vector<HarnessRequest>> runs = {requests};
  for (const HarnessRequest& request : requests) runs.push_back({request});
  for (size_t run = 0; run < runs.size(); ++run) {
    for (const int32_t budget : {0, 23, 8}) {
      const auto want = whole->Generate(runs[run], budget);
      const auto got = in_parts->Generate(runs[run], budget);
      ASSERT_TRUE(want.ok()) << want.status();
      ASSERT_TRUE(got.ok()) << got.status();
      for (size_t i = 0; i < runs[run].size(); ++i) {
        const std::string what = "run " + std::to_string(run) + ", request " +
                                 std::to_string(i) + ", budget " +
                                 std::to_string(budget);
        EXPECT_EQ((*got)[i].tokens, (*want)[i].tokens) << what;
        EXPECT_EQ(Bits((*got)[i]), Bits((*want)[i])) << what;
      }
    }
  }
  // One is under way while the other part's is begun.
  EXPECT_EQ(most_pending[0], 2u);
  EXPECT_EQ(most_pending[1], 2u);
}

}  // namespace
}  // namespace switchyard
