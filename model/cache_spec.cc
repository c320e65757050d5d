#include "model/cache_spec.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "kernels/status.h"

namespace switchyard {
namespace {

constexpr int32_t kMaxBlockSize = 1024;
constexpr int32_t kStateElementBytes = 4;  // recurrent states are fp32

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t RoundUpToUnit(int64_t bytes) {
  return CeilDiv(bytes, kCacheUnitBytes) * kCacheUnitBytes;
}

struct SlotShape {
  int32_t conv_channels = 0;
  int32_t conv_kernel_size = 0;
  int32_t heads = 0;
  int32_t rows = 0;
  int32_t cols = 0;
};

MixerCacheSpec MakeSlot(const SlotShape& shape,
                        const CacheSpecOptions& options) {
  MixerCacheSpec spec;
  spec.kind = CacheKind::kSlot;
  spec.conv_channels_local = shape.conv_channels;
  spec.conv_state_length = shape.conv_kernel_size - 1;
  spec.conv_bytes = int64_t{spec.conv_channels_local} * spec.conv_state_length *
                    options.conv_element_bytes;
  spec.state_offset = RoundUpToUnit(spec.conv_bytes);
  spec.state_heads_local = shape.heads;
  spec.state_rows = shape.rows;
  spec.state_cols = shape.cols;
  spec.state_bytes =
      int64_t{shape.heads} * shape.rows * shape.cols * kStateElementBytes;
  spec.unit_bytes = RoundUpToUnit(spec.state_offset + spec.state_bytes);
  return spec;
}

MixerCacheSpec MakeSpec(const AttentionConfig& attention,
                        const CacheSpecOptions& options) {
  MixerCacheSpec spec;
  spec.kind = CacheKind::kBlocks;
  // Fewer KV heads than ranks are replicated: each rank holds one.
  spec.num_kv_heads_local =
      std::max(1, attention.num_kv_heads / options.world_size);
  spec.head_size = attention.head_size;
  spec.value_offset = int64_t{spec.num_kv_heads_local} * options.block_size *
                      spec.head_size * options.kv_element_bytes;
  spec.unit_bytes = RoundUpToUnit(2 * spec.value_offset);
  spec.window = attention.window_size.value_or(0);
  spec.ring_blocks =
      static_cast<int32_t>(CeilDiv(spec.window, options.block_size));
  return spec;
}

MixerCacheSpec MakeSpec(const GdnConfig& gdn, const CacheSpecOptions& options) {
  // Replicated where there are fewer than ranks.
  const int32_t key_heads = std::max(1, gdn.num_key_heads / options.world_size);
  const int32_t value_heads = gdn.num_value_heads / options.world_size;
  SlotShape shape;
  shape.conv_channels =
      2 * key_heads * gdn.key_head_dim + value_heads * gdn.value_head_dim;
  shape.conv_kernel_size = gdn.conv_kernel_size;
  shape.heads = value_heads;
  shape.rows = gdn.key_head_dim;
  shape.cols = gdn.value_head_dim;
  return MakeSlot(shape, options);
}

MixerCacheSpec MakeSpec(const KdaConfig& kda, const CacheSpecOptions& options) {
  SlotShape shape;
  shape.heads = kda.num_heads / options.world_size;
  shape.conv_channels = 3 * shape.heads * kda.head_dim;
  shape.conv_kernel_size = kda.conv_kernel_size;
  shape.rows = kda.head_dim;
  shape.cols = kda.head_dim;
  return MakeSlot(shape, options);
}

MixerCacheSpec MakeSpec(const MambaConfig& mamba,
                        const CacheSpecOptions& options) {
  SlotShape shape;
  shape.conv_channels =
      (mamba.repeat_kv_before_conv ? mamba.d_inner : mamba.d_xb) /
      options.world_size;
  shape.conv_kernel_size = mamba.d_conv;
  shape.heads = 1;
  shape.rows = mamba.d_inner / options.world_size;
  shape.cols = mamba.state_size;
  return MakeSlot(shape, options);
}

bool IsPowerOfTwo(int32_t value) {
  return value > 0 && (value & (value - 1)) == 0;
}

absl::Status CheckRange(absl::string_view name, int32_t value, int32_t min,
                        int32_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(name, " must be from ", min, " to ", max, ", is ", value));
}

}  // namespace

absl::Status ValidateBlockSize(int32_t block_size) {
  if (IsPowerOfTwo(block_size) && block_size <= kMaxBlockSize) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("block_size must be a power of two from 1 to ",
                   kMaxBlockSize, ", is ", block_size));
}

absl::StatusOr<CacheSpec> CacheSpec::Create(const ModelConfig& config,
                                            const CacheSpecOptions& options) {
  SY_RETURN_IF_ERROR(ValidateBlockSize(options.block_size));
  SY_RETURN_IF_ERROR(
      CheckRange("kv_element_bytes", options.kv_element_bytes, 1, 8));
  SY_RETURN_IF_ERROR(
      CheckRange("conv_element_bytes", options.conv_element_bytes, 1, 8));
  SY_RETURN_IF_ERROR(ValidateTensorParallel(config, options.world_size));

  CacheSpec spec;
  spec.options_ = options;
  spec.layers_.reserve(config.layers.size());
  for (const LayerConfig& layer : config.layers) {
    std::vector<MixerCacheSpec>& mixers = spec.layers_.emplace_back();
    for (const MixerConfig& mixer : layer.mixers) {
      mixers.push_back(std::visit(
          [&](const auto& params) { return MakeSpec(params, options); },
          mixer.params));
    }
  }
  return spec;
}

int64_t CacheSpec::NumUnits(int32_t layer, int32_t mixer,
                            int64_t num_tokens) const {
  SY_CHECK(num_tokens >= 0);
  const MixerCacheSpec& spec = At(layer, mixer);
  if (spec.kind == CacheKind::kSlot) return num_tokens > 0 ? 1 : 0;
  const int64_t num_blocks = CeilDiv(num_tokens, options_.block_size);
  return spec.ring_blocks == 0
             ? num_blocks
             : std::min<int64_t>(num_blocks, spec.ring_blocks);
}

int64_t CacheSpec::SequenceBytes(const Placement& placement,
                                 int64_t num_tokens) const {
  SY_CHECK(placement.num_layers() == num_layers());
  int64_t bytes = 0;
  for (int32_t layer = 0; layer < num_layers(); ++layer) {
    const int32_t mixer = placement[layer];
    bytes += NumUnits(layer, mixer, num_tokens) * At(layer, mixer).unit_bytes;
  }
  return bytes;
}

}  // namespace switchyard
