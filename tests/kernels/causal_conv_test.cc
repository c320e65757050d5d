#include "kernels/causal_conv.h"

#include <algorithm>
#include <cmath>

#include "tests/kernels/device_fixture.h"

namespace switchyard {
namespace {

constexpr int64_t kSlotOffset = 512;

class CausalConvTest : public OpTest {
 protected:
  // Slots of zeros, as handed out.
  void MakeSlots(int32_t num_seqs, int64_t num_channels, int32_t kernel_size) {
    const int64_t bytes = (kSlotOffset + num_channels * (kernel_size - 1) * 4 +
                           kCacheUnitBytes - 1) /
                          kCacheUnitBytes * kCacheUnitBytes;
    arena_ = PoisonedBytes(bytes * num_seqs);
    SY_EXPECT_OK(device()->Fill(arena_, 0, bytes * num_seqs));
    slot_units_ = static_cast<uint32_t>(bytes / kCacheUnitBytes);
  }
  SlotTable Slots(const std::vector<int>& which) {
    std::vector<uint32_t> ids;
    for (int s : which) ids.push_back(s * slot_units_);
    return {arena_, UploadArray(ids), kSlotOffset};
  }

  std::byte* arena_ = nullptr;
  uint32_t slot_units_ = 0;
};

std::vector<double> Expected(const HostMatrix& x,
                             const std::vector<float>& weight,
                             const std::vector<float>& bias,
                             int32_t kernel_size, bool silu) {
  std::vector<double> out;
  for (int64_t t = 0; t < x.rows; ++t) {
    for (int64_t c = 0; c < x.cols; ++c) {
      double sum = bias.empty() ? 0 : bias[c];
      for (int32_t j = 0; j < kernel_size; ++j) {
        const int64_t from = t - kernel_size + 1 + j;
        if (from >= 0)
          sum += double{weight[c * kernel_size + j]} * x.at(from, c);
      }
      out.push_back(silu ? sum / (1 + std::exp(-sum)) : sum);
    }
  }
  return out;
}

HostMatrix SliceRows(const HostMatrix& m, int64_t begin, int64_t count) {
  return {count,
          m.cols,
          m.dtype,
          {m.values.begin() + begin * m.cols,
           m.values.begin() + (begin + count) * m.cols}};
}

// A sequence cut at random, decodes included, against the definition and
// against one call.
TEST_P(CausalConvTest, CarriesItsStateAcrossCalls) {
  for (int64_t channels : {1, 48, 64, 200}) {
    for (int32_t kernel_size : {2, 3, 4, 7}) {
      const bool silu = kernel_size != 3;
      constexpr int64_t kLength = 60;
      const HostMatrix x = RandomMatrix(kLength, channels, activation());
      const std::vector<float> weight = RandomVector(channels * kernel_size);
      const std::vector<float> bias =
          kernel_size == 4 ? RandomVector(channels) : std::vector<float>();
      CausalConvArgs args;
      args.weight = UploadArray(weight);
      args.bias = bias.empty() ? nullptr : UploadArray(bias);
      args.kernel_size = kernel_size;
      args.silu = silu;
      const auto run = [&](int64_t begin, int64_t count) {
        args.batch = MakeBatch(
            {{static_cast<int32_t>(begin), static_cast<int32_t>(count)}});
        args.state = Slots({0});
        args.x = Upload(SliceRows(x, begin, count), channels + 8);
        args.out = begin % 2 == 0 ? Poisoned(count, channels, activation())
                                  : args.x;  // in place as well
        SY_EXPECT_OK(CausalConv(context(), args));
        return Download(args.out);
      };
      MakeSlots(1, channels, kernel_size);
      const HostMatrix whole = run(0, kLength);
      ExpectNear(whole, Expected(x, weight, bias, kernel_size, silu), 2e-6,
                 "kernel size " + std::to_string(kernel_size));
      for (int most : {1, 2, 9}) {
        MakeSlots(1, channels, kernel_size);
        HostMatrix parts{kLength, channels, activation(), {}};
        for (int64_t begin = 0; begin < kLength;) {
          const int64_t count =
              std::min<int64_t>(RandomInt(1, most), kLength - begin);
          const HostMatrix part = run(begin, count);
          parts.values.insert(parts.values.end(), part.values.begin(),
                              part.values.end());
          begin += count;
        }
        ExpectSame(parts, whole, "chunks of up to " + std::to_string(most));
      }
    }
  }
}

TEST_P(CausalConvTest, SequencesAreApart) {
  constexpr int64_t kChannels = 96;
  constexpr int32_t kKernel = 4;
  const std::vector<float> weight = RandomVector(kChannels * kKernel);
  MakeSlots(3, kChannels, kKernel);
  CausalConvArgs args;
  args.weight = UploadArray(weight);
  args.kernel_size = kKernel;
  const std::vector<int64_t> lengths = {1, 5, 20};
  std::vector<HostMatrix> xs;
  HostMatrix all{0, kChannels, activation(), {}};
  std::vector<double> expected;
  for (int64_t length : lengths) {
    xs.push_back(RandomMatrix(length, kChannels, activation()));
    all.rows += length;
    all.values.insert(all.values.end(), xs.back().values.begin(),
                      xs.back().values.end());
    const std::vector<double> part =
        Expected(xs.back(), weight, {}, kKernel, true);
    expected.insert(expected.end(), part.begin(), part.end());
  }
  args.batch = MakeBatch({{0, 1}, {0, 5}, {0, 20}});
  args.state = Slots({2, 0, 1});
  args.x = Upload(all);
  args.out = Poisoned(all.rows, kChannels, activation());
  SY_ASSERT_OK(CausalConv(context(), args));
  ExpectNear(Download(args.out), expected, 2e-6, "three sequences");
}

TEST_P(CausalConvTest, RejectsBadArguments) {
  MakeSlots(1, 8, 4);
  CausalConvArgs args;
  args.batch = MakeBatch({{0, 2}});
  args.state = Slots({0});
  args.x = args.out = Poisoned(3, 8, activation());
  args.weight = UploadArray(std::vector<float>(32));
  args.kernel_size = 4;
  EXPECT_EQ(CausalConv(context(), args).message(),
            "CausalConv: x is [3, 8], should be [2, 8]");
}

SY_INSTANTIATE_OP_TEST(CausalConvTest);

}  // namespace
}  // namespace switchyard
