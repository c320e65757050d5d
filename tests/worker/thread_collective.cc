#include "tests/worker/thread_collective.h"

#include <cstring>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace switchyard {
namespace {

// Where the ranks meet. A round: everyone shows its buffer, all are there,
// everyone reads, all have read.
class Meeting {
 public:
  explicit Meeting(int world_size) : buffers_(world_size) {}

  void Show(int rank, const float* buffer) { buffers_[rank] = buffer; }
  const float* buffer(int rank) const { return buffers_[rank]; }

  // False once a rank has left for good.
  bool Wait() {
    absl::MutexLock lock(&mutex_);
    const int64_t round = round_;
    if (++waiting_ == static_cast<int>(buffers_.size())) {
      waiting_ = 0;
      ++round_;
      return !broken_;
    }
    const auto done = [this, round]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
      return round_ != round || broken_;
    };
    mutex_.Await(absl::Condition(&done));
    return !broken_;
  }

  void Break() {
    absl::MutexLock lock(&mutex_);
    broken_ = true;
  }

 private:
  std::vector<const float*> buffers_;
  absl::Mutex mutex_;
  int waiting_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t round_ ABSL_GUARDED_BY(mutex_) = 0;
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;
};

class ThreadCollective final : public Collective {
 public:
  ThreadCollective(int rank, int world_size, std::shared_ptr<Meeting> meeting)
      : rank_(rank), world_size_(world_size), meeting_(std::move(meeting)) {}

  absl::Status AllReduceSum(void* buffer, int64_t num_elements, CollectiveType,
                            CollectiveStream) override {
    float* const values = static_cast<float*>(buffer);
    meeting_->Show(rank_, values);
    if (!meeting_->Wait()) return Broken();
    std::vector<float> sum(meeting_->buffer(0),
                           meeting_->buffer(0) + num_elements);
    for (int r = 1; r < world_size_; ++r) {
      for (int64_t i = 0; i < num_elements; ++i) {
        sum[i] += meeting_->buffer(r)[i];
      }
    }
    if (!meeting_->Wait()) return Broken();
    std::memcpy(values, sum.data(), num_elements * sizeof(float));
    return absl::OkStatus();
  }

  absl::Status AllGather(const void* input, void* output, int64_t num_elements,
                         CollectiveType, CollectiveStream) override {
    meeting_->Show(rank_, static_cast<const float*>(input));
    if (!meeting_->Wait()) return Broken();
    for (int r = 0; r < world_size_; ++r) {
      std::memmove(static_cast<float*>(output) + r * num_elements,
                   meeting_->buffer(r), num_elements * sizeof(float));
    }
    return meeting_->Wait() ? absl::OkStatus() : Broken();
  }

  absl::Status Barrier() override {
    return meeting_->Wait() ? absl::OkStatus() : Broken();
  }
  void Abort() override { meeting_->Break(); }
  int rank() const override { return rank_; }
  int world_size() const override { return world_size_; }
  absl::Duration time_spent() const override { return absl::ZeroDuration(); }

 private:
  static absl::Status Broken() { return absl::AbortedError("a rank left"); }

  const int rank_;
  const int world_size_;
  const std::shared_ptr<Meeting> meeting_;
};

}  // namespace

std::vector<std::unique_ptr<Collective>> MakeThreadCollectives(int world_size) {
  const auto meeting = std::make_shared<Meeting>(world_size);
  std::vector<std::unique_ptr<Collective>> collectives;
  for (int rank = 0; rank < world_size; ++rank) {
    collectives.push_back(
        std::make_unique<ThreadCollective>(rank, world_size, meeting));
  }
  return collectives;
}

}  // namespace switchyard
