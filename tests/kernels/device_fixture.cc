#include "tests/kernels/device_fixture.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace switchyard {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t{64} << 20;

// NaN as fp32, bf16 and fp16 alike.
constexpr uint8_t kPoison = 0xff;

}  // namespace

float RoundTo(float value, DType dtype) {
  switch (dtype) {
    case DType::kBF16:
      return BF16ToFloat(FloatToBF16(value));
    case DType::kF16:
      return F16ToFloat(FloatToF16(value));
    default:
      return value;
  }
}

void OpTest::SetUp() {
  auto device = MakeDevice(wants_cuda_ ? "cuda" : "cpu", 2);
  ASSERT_TRUE(device.ok()) << device.status();
  device_ = *std::move(device);
  auto scratch = device_->Allocate(kWorkspaceBytes);
  ASSERT_TRUE(scratch.ok()) << scratch.status();
  scratch_ = *std::move(scratch);
  SY_ASSERT_OK(device_->Fill(scratch_.get(), kPoison, kWorkspaceBytes));
  workspace_ = Workspace(scratch_.get(), kWorkspaceBytes);
  context_.device = device_.get();
  context_.workspace = &workspace_;
}

int32_t OpTest::RandomInt(int32_t low, int32_t high) {
  return std::uniform_int_distribution<int32_t>(low, high)(random_);
}

HostMatrix OpTest::RandomMatrix(int64_t rows, int64_t cols, DType dtype,
                                float scale) {
  HostMatrix m{rows, cols, dtype, RandomVector(rows * cols, scale)};
  for (float& v : m.values) v = RoundTo(v, dtype);
  return m;
}

std::vector<float> OpTest::RandomVector(int64_t size, float scale) {
  std::normal_distribution<float> normal;
  std::vector<float> values(size);
  for (float& v : values) v = scale * normal(random_);
  return values;
}

std::byte* OpTest::AllocateBytes(int64_t bytes) {
  auto buffer = device_->Allocate(bytes);
  if (!buffer.ok()) {
    ADD_FAILURE() << buffer.status();
    std::abort();
  }
  buffers_.push_back(*std::move(buffer));
  return buffers_.back().get();
}

std::byte* OpTest::PoisonedBytes(int64_t bytes) {
  std::byte* data = AllocateBytes(bytes);
  SY_EXPECT_OK(device_->Fill(data, kPoison, bytes));
  return data;
}

void* OpTest::UploadBytes(const void* host, int64_t bytes) {
  std::byte* data = AllocateBytes(bytes);
  SY_EXPECT_OK(device_->CopyToDevice(data, host, bytes));
  SY_EXPECT_OK(device_->Synchronize());
  return data;
}

void OpTest::DownloadBytes(void* host, const void* data, int64_t bytes) {
  SY_EXPECT_OK(device_->CopyToHost(host, data, bytes));
  SY_EXPECT_OK(device_->Synchronize());
}

MatrixView OpTest::Poisoned(int64_t rows, int64_t cols, DType dtype,
                            int64_t row_stride) {
  if (row_stride == 0) row_stride = cols;
  std::byte* data = PoisonedBytes(rows * row_stride * DTypeBytes(dtype));
  return MatrixView{data, dtype, rows, cols, row_stride};
}

MatrixView OpTest::Upload(const HostMatrix& host, int64_t row_stride) {
  if (row_stride == 0) row_stride = host.cols;
  const int64_t element = DTypeBytes(host.dtype);
  std::vector<uint8_t> bytes(host.rows * row_stride * element, kPoison);
  for (int64_t row = 0; row < host.rows; ++row) {
    for (int64_t col = 0; col < host.cols; ++col) {
      const float value = host.at(row, col);
      uint8_t* to = &bytes[(row * row_stride + col) * element];
      if (host.dtype == DType::kF32) {
        std::memcpy(to, &value, sizeof(value));
      } else {
        const uint16_t bits =
            host.dtype == DType::kBF16 ? FloatToBF16(value) : FloatToF16(value);
        std::memcpy(to, &bits, sizeof(bits));
      }
    }
  }
  return MatrixView{UploadArray(bytes), host.dtype, host.rows, host.cols,
                    row_stride};
}

HostMatrix OpTest::Download(const MatrixView& view) {
  HostMatrix host{view.rows, view.cols, view.dtype, {}};
  host.values.resize(view.rows * view.cols);
  if (host.values.empty()) return host;
  const int64_t element = DTypeBytes(view.dtype);
  const int64_t size = (view.rows - 1) * view.row_stride + view.cols;
  const std::vector<uint8_t> bytes =
      DownloadArray(static_cast<const uint8_t*>(view.data), size * element);
  for (int64_t row = 0; row < view.rows; ++row) {
    for (int64_t col = 0; col < view.cols; ++col) {
      const uint8_t* from = &bytes[(row * view.row_stride + col) * element];
      float& value = host.at(row, col);
      if (view.dtype == DType::kF32) {
        std::memcpy(&value, from, sizeof(value));
      } else {
        uint16_t bits;
        std::memcpy(&bits, from, sizeof(bits));
        value =
            view.dtype == DType::kBF16 ? BF16ToFloat(bits) : F16ToFloat(bits);
      }
    }
  }
  return host;
}

VarlenBatch OpTest::MakeBatch(
    const std::vector<std::pair<int32_t, int32_t>>& seqs) {
  VarlenBatch batch;
  batch.num_seqs = static_cast<int32_t>(seqs.size());
  auto offsets = std::make_unique<std::vector<int32_t>>(1, 0);
  auto contexts = std::make_unique<std::vector<int32_t>>();
  std::vector<int32_t> positions;
  bool decodes = true;
  for (const auto& [context, num_new] : seqs) {
    decodes = decodes && num_new == 1;
    if (decodes) ++batch.num_decodes;
    contexts->push_back(context);
    for (int32_t i = 0; i < num_new; ++i) positions.push_back(context + i);
    offsets->push_back(static_cast<int32_t>(positions.size()));
    batch.max_new_tokens = std::max(batch.max_new_tokens, num_new);
    batch.max_total_tokens =
        std::max(batch.max_total_tokens, context + num_new);
  }
  batch.num_tokens = static_cast<int32_t>(positions.size());
  batch.positions = UploadArray(positions);
  batch.token_offsets = UploadArray(*offsets);
  batch.context_lens = UploadArray(*contexts);
  batch.host_token_offsets = offsets->data();
  batch.host_context_lens = contexts->data();
  host_arrays_.push_back(std::move(offsets));
  host_arrays_.push_back(std::move(contexts));
  return batch;
}

void OpTest::ExpectNear(const HostMatrix& actual,
                        const std::vector<double>& expected, double fp32,
                        const std::string& what, double scale) {
  ASSERT_EQ(actual.values.size(), expected.size()) << what;
  // Half a unit in the last place of the output's type, doubled.
  const double rounding = actual.dtype == DType::kBF16  ? 0x1p-8
                          : actual.dtype == DType::kF16 ? 0x1p-11
                                                        : 0x1p-23;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double allowed =
        fp32 * scale * std::max(1.0, std::fabs(expected[i])) +
        rounding * std::fabs(expected[i]);
    // Negated, so that NaN fails.
    if (!(std::fabs(actual.values[i] - expected[i]) <= allowed)) {
      ADD_FAILURE() << what << ": row " << i / actual.cols << ", column "
                    << i % actual.cols << " is " << actual.values[i]
                    << ", should be " << expected[i] << " +- " << allowed;
      return;
    }
  }
}

void OpTest::ExpectSame(const HostMatrix& actual, const HostMatrix& expected,
                        const std::string& what, double fp32) {
  if (cuda()) {
    const double tolerance = actual.dtype == DType::kF32 ? fp32 : 2e-2;
    ExpectNear(
        actual,
        std::vector<double>(expected.values.begin(), expected.values.end()),
        tolerance, what);
    return;
  }
  ASSERT_EQ(actual.values.size(), expected.values.size()) << what;
  for (size_t i = 0; i < expected.values.size(); ++i) {
    ASSERT_EQ(
        std::memcmp(&actual.values[i], &expected.values[i], sizeof(float)), 0)
        << what << ": row " << i / actual.cols << ", column " << i % actual.cols
        << ": the bits of " << actual.values[i] << " are not those of "
        << expected.values[i];
  }
}

std::vector<DType> ActivationTypes(bool cuda) {
  if (cuda) return {DType::kF32, DType::kBF16};
  return {DType::kF32};
}

std::string ActivationName(const testing::TestParamInfo<DType>& info) {
  return DTypeName(info.param);
}

}  // namespace switchyard
