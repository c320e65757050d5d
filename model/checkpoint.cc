#include "model/checkpoint.h"

#include <cstring>
#include <set>

#include "absl/memory/memory.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/check.h"
#include "kernels/status.h"

namespace switchyard {
namespace {

// The vision tower and its projector, in checkpoints of type apriel2.
constexpr char kVisionPrefix[] = "model.vision_encoder.";

std::string ShapeString(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(
    const std::string& model_dir, const ModelConfig& config) {
  SY_ASSIGN_OR_RETURN(SafetensorsModel files,
                      SafetensorsModel::Open(model_dir));
  auto checkpoint = absl::WrapUnique(new Checkpoint(std::move(files)));

  std::set<std::string> expected;
  for (const TensorSpec& spec : EnumerateTensors(config)) {
    const SafetensorsModel::Entry* entry = checkpoint->files_.Find(spec.name);
    if (entry == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(
          model_dir, ": tensor ", spec.name, " ", ShapeString(spec.shape),
          ", which config.json implies, is in no safetensors "
          "file"));
    }
    const std::string& path = checkpoint->files_.paths()[entry->file];
    if (entry->view.shape != spec.shape) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": tensor ", spec.name, " has the shape ",
          ShapeString(entry->view.shape), "; by config.json it must be ",
          ShapeString(spec.shape)));
    }
    const auto dtype = entry->view.dtype;
    if (dtype != DType::kF32 && dtype != DType::kBF16 && dtype != DType::kF16) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ": tensor ", spec.name, " is stored as ",
          entry->view.dtype_name, "; it must be F32, BF16 or F16"));
    }
    expected.insert(spec.name);
  }

  int64_t num_vision = 0, vision_bytes = 0;
  for (const auto& [name, entry] : checkpoint->files_.tensors()) {
    if (expected.count(name) > 0) continue;
    if (config.model_type == "apriel2" &&
        absl::StartsWith(name, kVisionPrefix)) {
      ++num_vision;
      vision_bytes += entry.view.bytes.size();
      continue;
    }
    return absl::InvalidArgumentError(
        absl::StrCat(checkpoint->files_.paths()[entry.file], ": tensor ", name,
                     " ", ShapeString(entry.view.shape),
                     " has no place in the model that "
                     "config.json describes"));
  }
  if (num_vision > 0) {
    checkpoint->notices_.push_back(absl::StrCat(
        "The vision encoder's ", num_vision, " tensors (", vision_bytes,
        " bytes under ", kVisionPrefix, ") are not loaded."));
  }
  return checkpoint;
}

DType Checkpoint::StoredType(const TensorSpec& spec) const {
  const SafetensorsModel::Entry* entry = files_.Find(spec.name);
  SY_CHECK(entry != nullptr && entry->view.dtype.has_value());
  return *entry->view.dtype;
}

absl::Status Checkpoint::ReadInto(const TensorSpec& spec, int32_t rank,
                                  int32_t world_size,
                                  const MatrixView& out) const {
  SY_RETURN_IF_ERROR(CheckSlice(spec, rank, world_size, out));
  const SafetensorsModel::Entry* entry = files_.Find(spec.name);
  if (entry == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(spec.name, ": not a tensor of this checkpoint"));
  }
  const DType stored = *entry->view.dtype;
  const std::byte* data = entry->view.bytes.data();
  const int64_t stored_row_bytes = spec.cols() * DTypeBytes(stored);
  const int64_t out_row_bytes = out.row_stride * DTypeBytes(out.dtype);
  auto* const target = static_cast<std::byte*>(out.data);
  // `num` columns of a stored row, from column `begin`, to a row of `out`.
  const auto copy = [&](int64_t row, int64_t begin, int64_t num,
                        int64_t out_row, int64_t out_begin) {
    ConvertElements(
        stored, data + row * stored_row_bytes + begin * DTypeBytes(stored),
        out.dtype,
        target + out_row * out_row_bytes + out_begin * DTypeBytes(out.dtype),
        num);
  };

  switch (spec.shard.axis) {
    case ShardAxis::kNone:
      for (int64_t row = 0; row < out.rows; ++row) {
        copy(row, 0, out.cols, row, 0);
      }
      return absl::OkStatus();
    case ShardAxis::kRows: {
      int64_t out_row = 0;
      for (const auto& [begin, end] : LocalRanges(spec, rank, world_size)) {
        for (int64_t row = begin; row < end; ++row) {
          copy(row, 0, out.cols, out_row++, 0);
        }
      }
      for (; out_row < out.rows; ++out_row) {  // padding
        std::memset(target + out_row * out_row_bytes, 0,
                    out.cols * DTypeBytes(out.dtype));
      }
      return absl::OkStatus();
    }
    case ShardAxis::kCols: {
      const auto ranges = LocalRanges(spec, rank, world_size);
      for (int64_t row = 0; row < out.rows; ++row) {
        int64_t out_begin = 0;
        for (const auto& [begin, end] : ranges) {
          copy(row, begin, end - begin, row, out_begin);
          out_begin += end - begin;
        }
      }
      return absl::OkStatus();
    }
  }
  return absl::InternalError(absl::StrCat(spec.name, ": unknown shard axis"));
}

}  // namespace switchyard
