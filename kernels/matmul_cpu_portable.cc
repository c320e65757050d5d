#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/cpu_math.h"
#include "kernels/cpu_parallel.h"
#include "kernels/matmul_cpu.h"

namespace switchyard::internal {
namespace {

// A tile of 6 x 16 outputs lives in twelve of the sixteen registers of AVX2.
constexpr int64_t kTileRows = 6;
constexpr int64_t kPanelCols = 16;

// W^T in panels of 16 output features: [out / 16][in][16], the last one padded
// with zeros.
class PortableWeight final : public CpuWeight {
 public:
  PortableWeight(const float* weight, int64_t out_features, int64_t in_features)
      : out_features_(out_features),
        in_features_(in_features),
        num_panels_((out_features + kPanelCols - 1) / kPanelCols),
        panels_(num_panels_ * in_features * kPanelCols) {
    for (int64_t o = 0; o < out_features; ++o) {
      float* panel = panels_.data() + o / kPanelCols * in_features * kPanelCols;
      for (int64_t i = 0; i < in_features; ++i) {
        panel[i * kPanelCols + o % kPanelCols] = weight[o * in_features + i];
      }
    }
  }

  absl::Status Multiply(const MatrixView& x, const float* bias,
                        const MatrixView& out) const override {
    ParallelFor(num_panels_, x.rows * in_features_ * 4, [&](int64_t panel) {
      int64_t row = 0;
      for (; row + kTileRows <= x.rows; row += kTileRows) {
        Tile<kTileRows>(x, row, panel, bias, out);
      }
      for (; row < x.rows; ++row) Tile<1>(x, row, panel, bias, out);
    });
    return absl::OkStatus();
  }

 private:
  template <int kRows>
  void Tile(const MatrixView& x, int64_t row, int64_t panel, const float* bias,
            const MatrixView& out) const {
    F8 low[kRows] = {}, high[kRows] = {};
    const float* in[kRows];
    for (int r = 0; r < kRows; ++r) in[r] = x.Row<const float>(row + r);
    const float* w = panels_.data() + panel * in_features_ * kPanelCols;
    for (int64_t i = 0; i < in_features_; ++i, w += kPanelCols) {
      const F8 w_low = Load8(w), w_high = Load8(w + kLanes);
      for (int r = 0; r < kRows; ++r) {
        const F8 value = Splat8(in[r][i]);
        low[r] += value * w_low;
        high[r] += value * w_high;
      }
    }
    const int64_t begin = panel * kPanelCols;
    const int64_t cols = std::min(kPanelCols, out_features_ - begin);
    for (int r = 0; r < kRows; ++r) {
      float sums[kPanelCols];
      Store8(sums, low[r]);
      Store8(sums + kLanes, high[r]);
      float* to = out.Row<float>(row + r) + begin;
      for (int64_t c = 0; c < cols; ++c) {
        to[c] = bias == nullptr ? sums[c] : sums[c] + bias[begin + c];
      }
    }
  }

  const int64_t out_features_;
  const int64_t in_features_;
  const int64_t num_panels_;
  std::vector<float> panels_;
};

}  // namespace

std::unique_ptr<CpuWeight> PackPortable(const float* weight,
                                        int64_t out_features,
                                        int64_t in_features) {
  return std::make_unique<PortableWeight>(weight, out_features, in_features);
}

}  // namespace switchyard::internal
