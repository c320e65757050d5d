#include "worker/collective.h"

#include <atomic>
#include <cstring>
#include <memory>

namespace switchyard {
namespace {

class LocalCollective final : public Collective {
 public:
  absl::Status AllReduceSum(void*, int64_t, CollectiveType,
                            CollectiveStream) override {
    return Live();
  }

  absl::Status AllGather(const void* input, void* output, int64_t num_elements,
                         CollectiveType type,
                         CollectiveStream stream) override {
    if (stream != nullptr)
      return absl::UnimplementedError(
          "the local collective has no device streams");
    if (input != output && num_elements > 0)
      std::memcpy(output, input, num_elements * CollectiveTypeBytes(type));
    return Live();
  }

  absl::Status Barrier() override { return Live(); }
  void Abort() override { aborted_ = true; }
  int rank() const override { return 0; }
  int world_size() const override { return 1; }
  absl::Duration time_spent() const override { return absl::ZeroDuration(); }

 private:
  absl::Status Live() const {
    return aborted_ ? absl::AbortedError("the collective was aborted")
                    : absl::OkStatus();
  }

  std::atomic<bool> aborted_{false};
};

}  // namespace

std::unique_ptr<Collective> MakeLocalCollective() {
  return std::make_unique<LocalCollective>();
}

}  // namespace switchyard
