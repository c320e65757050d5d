#include "kernels/selective_scan.h"

#include <algorithm>
#include <cmath>

#include "tests/kernels/device_fixture.h"

namespace switchyard {
namespace {

struct Config {
  int32_t num_heads = 8;
  int32_t num_b_heads = 4;
  int32_t num_x_heads = 8;
  int32_t state_size = 16;
  int32_t head_width = 16;

  int64_t d_inner() const { return int64_t{num_heads} * head_width; }
  std::string name() const {
    return std::to_string(num_heads) + "/" + std::to_string(num_b_heads) + "/" +
           std::to_string(num_x_heads) + " heads of " +
           std::to_string(head_width) + ", state " + std::to_string(state_size);
  }
};

constexpr Config kConfigs[] = {
    {8, 4, 8, 16, 16}, {8, 2, 2, 16, 16}, {4, 4, 4, 8, 8}, {3, 1, 3, 5, 10}};

struct Sequence {
  HostMatrix x, dt, b, c, z;
};

HostMatrix SliceRows(const HostMatrix& m, int64_t begin, int64_t count) {
  return {count,
          m.cols,
          m.dtype,
          {m.values.begin() + begin * m.cols,
           m.values.begin() + (begin + count) * m.cols}};
}

class SelectiveScanTest : public OpTest {
 protected:
  void Configure(const Config& config, int32_t num_seqs) {
    config_ = config;
    const int64_t size = config.d_inner() * config.state_size;
    a_log_ = RandomVector(size);
    d_ = RandomVector(config.d_inner());
    device_a_log_ = UploadArray(a_log_);
    device_d_ = UploadArray(d_);
    slot_units_ = static_cast<uint32_t>((size * 4 + kCacheUnitBytes - 1) /
                                        kCacheUnitBytes);
    initial_ = RandomVector(size);
    arena_ = PoisonedBytes(num_seqs * slot_units_ * kCacheUnitBytes);
    for (int32_t s = 0; s < num_seqs; ++s) ResetState(s);
  }

  void ResetState(int32_t seq) {
    SY_EXPECT_OK(device()->CopyToDevice(
        arena_ + seq * slot_units_ * kCacheUnitBytes, initial_.data(),
        initial_.size() * sizeof(float)));
    SY_EXPECT_OK(device()->Synchronize());
  }

  HostMatrix State(int32_t seq) {
    const auto* data = reinterpret_cast<const float*>(
        arena_ + seq * slot_units_ * kCacheUnitBytes);
    return {config_.d_inner(), config_.state_size, DType::kF32,
            DownloadArray(data, initial_.size())};
  }

  Sequence MakeSequence(int64_t length) {
    const Config& c = config_;
    return {
        RandomMatrix(length, int64_t{c.num_x_heads} * c.head_width,
                     activation()),
        RandomMatrix(length, c.d_inner(), activation(), 2),
        RandomMatrix(length, int64_t{c.num_b_heads} * c.state_size,
                     activation()),
        RandomMatrix(length, int64_t{c.num_heads} * c.state_size, activation()),
        RandomMatrix(length, c.d_inner(), activation())};
  }

  HostMatrix Run(const Sequence& seq, int32_t slot, int32_t begin,
                 int32_t count) {
    SelectiveScanArgs args;
    args.batch = MakeBatch({{begin, count}});
    args.state = {arena_,
                  UploadArray(std::vector<uint32_t>{
                      static_cast<uint32_t>(slot * slot_units_)}),
                  0};
    args.state_size = config_.state_size;
    args.num_heads = config_.num_heads;
    args.num_b_heads = config_.num_b_heads;
    args.num_x_heads = config_.num_x_heads;
    args.x = Upload(SliceRows(seq.x, begin, count), seq.x.cols + 8);
    args.dt = Upload(SliceRows(seq.dt, begin, count));
    args.b = Upload(SliceRows(seq.b, begin, count), seq.b.cols + 24);
    args.c = Upload(SliceRows(seq.c, begin, count));
    args.z = Upload(SliceRows(seq.z, begin, count), seq.z.cols + 8);
    args.a_log = device_a_log_;
    args.d = device_d_;
    args.out = Poisoned(count, config_.d_inner(), activation());
    SY_EXPECT_OK(SelectiveScan(context(), args));
    return Download(args.out);
  }

  std::vector<double> Expected(const Sequence& seq,
                               std::vector<double>* state) const {
    const int32_t n = config_.state_size, width = config_.head_width;
    std::vector<double> out;
    for (int64_t t = 0; t < seq.x.rows; ++t) {
      for (int64_t i = 0; i < config_.d_inner(); ++i) {
        const int64_t head = i / width;
        const int64_t b_head = head * config_.num_b_heads / config_.num_heads;
        const int64_t x_head = head * config_.num_x_heads / config_.num_heads;
        const double x = seq.x.at(t, x_head * width + i % width);
        const double dt = std::log1p(std::exp(double{seq.dt.at(t, i)}));
        double y = d_[i] * x;
        for (int32_t j = 0; j < n; ++j) {
          double& s = (*state)[i * n + j];
          s = std::exp(-dt * std::exp(double{a_log_[i * n + j]})) * s +
              dt * seq.b.at(t, b_head * n + j) * x;
          y += s * seq.c.at(t, head * n + j);
        }
        const double z = seq.z.at(t, i);
        out.push_back(y * z / (1 + std::exp(-z)));
      }
    }
    return out;
  }

  Config config_;
  std::vector<float> a_log_, d_, initial_;
  const float* device_a_log_ = nullptr;
  const float* device_d_ = nullptr;
  std::byte* arena_ = nullptr;
  int64_t slot_units_ = 0;
};

TEST_P(SelectiveScanTest, MatchesTheDefinitionHoweverItIsCut) {
  for (const Config& config : kConfigs) {
    constexpr int32_t kLength = 70;
    Configure(config, 2);
    const Sequence seq = MakeSequence(kLength);
    std::vector<double> state(initial_.begin(), initial_.end());
    const std::vector<double> expected = Expected(seq, &state);
    const HostMatrix whole = Run(seq, 1, 0, kLength);
    ExpectNear(whole, expected, 1e-5, config.name());
    const HostMatrix last_state = State(1);
    ExpectNear(last_state, state, 1e-5, config.name() + ", state");
    ExpectSame(State(0),
               {config.d_inner(), config.state_size, DType::kF32, initial_},
               "the other slot", 0);
    for (int32_t most : {1, 4, 30}) {
      ResetState(1);
      HostMatrix parts{kLength, config.d_inner(), activation(), {}};
      for (int32_t done = 0; done < kLength;) {
        const int32_t count = std::min(RandomInt(1, most), kLength - done);
        const HostMatrix part = Run(seq, 1, done, count);
        parts.values.insert(parts.values.end(), part.values.begin(),
                            part.values.end());
        done += count;
      }
      ExpectSame(parts, whole, config.name());
      ExpectSame(State(1), last_state, config.name() + ", state");
    }
  }
}

TEST_P(SelectiveScanTest, RejectsBadArguments) {
  Configure(kConfigs[0], 1);
  SelectiveScanArgs args;
  args.batch = MakeBatch({{0, 1}});
  args.state = {arena_, UploadArray(std::vector<uint32_t>{0}), 0};
  args.state_size = 16;
  args.num_heads = 8;
  args.num_b_heads = 3;
  args.num_x_heads = 8;
  args.dt = Poisoned(1, 128, activation());
  EXPECT_EQ(SelectiveScan(context(), args).message(),
            "SelectiveScan: num_b_heads 3 does not divide num_heads 8");
}

SY_INSTANTIATE_OP_TEST(SelectiveScanTest);

}  // namespace
}  // namespace switchyard
