#include "kernels/device.h"

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/activation.h"
#include "tests/kernels/device_fixture.h"

namespace switchyard {
namespace {

class DeviceTest : public OpTest {};

TEST_P(DeviceTest, CopiesAndFills) {
  auto buffer = device()->Allocate(1000);
  ASSERT_TRUE(buffer.ok()) << buffer.status();
  auto other = device()->Allocate(1000);
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer->get()) % 256, 0u);
  std::vector<uint8_t> host(1000), back(1000);
  for (int i = 0; i < 1000; ++i) host[i] = static_cast<uint8_t>(i * 7);
  SY_ASSERT_OK(device()->CopyToDevice(buffer->get(), host.data(), 1000));
  SY_ASSERT_OK(device()->CopyOnDevice(other->get(), buffer->get(), 1000));
  SY_ASSERT_OK(device()->Fill(buffer->get(), 0x5a, 10));
  SY_ASSERT_OK(device()->CopyToHost(back.data(), other->get(), 1000));
  SY_ASSERT_OK(device()->Synchronize());
  EXPECT_EQ(back, host);
  SY_ASSERT_OK(device()->CopyToHost(back.data(), buffer->get(), 11));
  SY_ASSERT_OK(device()->Synchronize());
  EXPECT_EQ(back[9], 0x5a);
  EXPECT_EQ(back[10], host[10]);
}

TEST_P(DeviceTest, AllocatesNothingAndTooMuch) {
  EXPECT_TRUE(device()->Allocate(0).ok());
  const auto huge = device()->Allocate(std::numeric_limits<int64_t>::max() / 2);
  EXPECT_TRUE(absl::IsResourceExhausted(huge.status())) << huge.status();
  EXPECT_NE(std::string(huge.status().message()).find("4611686018427387903"),
            std::string::npos)
      << huge.status();
  const auto free_bytes = device()->FreeBytes();
  ASSERT_TRUE(free_bytes.ok()) << free_bytes.status();
  EXPECT_GT(*free_bytes, 0);
}

SY_INSTANTIATE_OP_TEST(DeviceTest);

TEST(MakeDeviceTest, KnowsItsNames) {
  const auto cpu = MakeDevice("cpu", 3);
  ASSERT_TRUE(cpu.ok());
  EXPECT_EQ((*cpu)->type(), DeviceType::kCpu);
  EXPECT_EQ((*cpu)->num_threads(), 3);
  EXPECT_GE((*MakeDevice("cpu", 0))->num_threads(), 1);
  EXPECT_TRUE(MakeDevice("auto", 1).ok());
  for (const char* wrong : {"", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"}) {
    EXPECT_TRUE(absl::IsInvalidArgument(MakeDevice(wrong, 1).status()))
        << wrong;
  }
  // There is no such GPU, or no CUDA at all.
  const absl::Status status = MakeDevice("cuda:1000", 1).status();
  EXPECT_TRUE(absl::IsUnavailable(status) || absl::IsUnimplemented(status))
      << status;
}

TEST(DeviceOfRankTest, GivesEveryRankItsGpuOrNone) {
  std::string why;
  EXPECT_EQ(DeviceOfRank("cuda", 3, 4, &why), "cuda:3");
  EXPECT_EQ(DeviceOfRank("cpu", 3, 4, &why), "cpu");
  EXPECT_EQ(DeviceOfRank("cuda:2", 0, 1, &why), "cuda:2");
  EXPECT_EQ(why, "");
  // Nobody has so many GPUs: then no rank has one.
  for (int rank : {0, 999}) {
    EXPECT_EQ(DeviceOfRank("auto", rank, 1000, &why), "cpu");
    EXPECT_TRUE(why.empty() || why.find("device cuda:") != std::string::npos)
        << why;
  }
}

}  // namespace
}  // namespace switchyard
