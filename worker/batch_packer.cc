#include "worker/batch_packer.h"

#include <algorithm>
#include <utility>

namespace switchyard {

void BatchPacker::Pack(absl::Span<const SequenceCache* const> caches,
                       const CacheStore& store, StepBuffer& buffer) {
  const auto append = [&buffer](const std::vector<int32_t>& values) {
    return buffer.Append(absl::MakeConstSpan(values));
  };
  token_ids_ = append(plan_->token_ids);
  token_sources_ = append(plan_->token_sources);
  for (const PlannedGrouping& grouping : plan_->groupings) {
    groupings_.push_back({append(grouping.context_lens),
                          append(grouping.token_offsets),
                          append(grouping.positions), append(grouping.rows),
                          append(grouping.inverse)});
  }

  for (size_t i = 0; i < plan_->layers.size(); ++i) {
    const int32_t layer = static_cast<int32_t>(i);
    const PlannedLayer& planned = plan_->layers[i];
    const PlannedGrouping& grouping = plan_->groupings[planned.grouping];
    std::vector<TableSlice> slices;
    for (size_t s = 0; s < grouping.segments.size(); ++s) {
      const PlannedSegment& segment = grouping.segments[s];
      const int64_t stride =
          store.TableWidth(layer, planned.mixers[s], segment.max_total_tokens);
      uint32_t* ids = nullptr;
      slices.push_back({buffer.AppendRoom(segment.num_seqs * stride, &ids),
                        static_cast<int32_t>(stride)});
      // Entries beyond a sequence's own are never read. No memory is an error
      // of the upload.
      for (int32_t q = 0; ids != nullptr && q < segment.num_seqs; ++q) {
        const int32_t entry = grouping.entries[segment.first_seq + q];
        const absl::Span<const uint32_t> table = caches[entry]->ids(layer);
        std::copy_n(table.begin(), std::min<int64_t>(table.size(), stride),
                    ids + q * stride);
      }
    }
    tables_.push_back(std::move(slices));
  }
}

FetchTokensArgs BatchPacker::Fetch(const int32_t* last_tokens,
                                   StepBuffer& buffer) const {
  return {plan_->num_tokens, buffer.device(token_sources_), last_tokens,
          buffer.mutable_device(token_ids_)};
}

ForwardBatch BatchPacker::Resolve(const CacheStore& store,
                                  const StepBuffer& buffer) const {
  ForwardBatch batch;
  batch.num_tokens = plan_->num_tokens;
  batch.token_ids = buffer.device(token_ids_);
  batch.arena = store.arena();
  for (size_t g = 0; g < groupings_.size(); ++g) {
    const PlannedGrouping& planned = plan_->groupings[g];
    const GroupingSlices& slices = groupings_[g];
    Grouping grouping;
    if (!planned.rows.empty()) {
      grouping.rows = buffer.device(slices.rows);
      grouping.inverse = buffer.device(slices.inverse);
    }
    for (const PlannedSegment& source : planned.segments) {
      Segment segment;
      segment.first_row = source.first_row;
      VarlenBatch& varlen = segment.batch;
      varlen.num_seqs = source.num_seqs;
      varlen.num_decodes = source.num_decodes;
      varlen.num_tokens = source.num_tokens;
      varlen.max_new_tokens = source.max_new_tokens;
      varlen.max_total_tokens = source.max_total_tokens;
      varlen.token_offsets =
          buffer.device(slices.token_offsets) + source.first_offset;
      varlen.context_lens =
          buffer.device(slices.context_lens) + source.first_seq;
      varlen.positions = buffer.device(slices.positions) + source.first_row;
      varlen.host_token_offsets =
          buffer.host(slices.token_offsets) + source.first_offset;
      varlen.host_context_lens =
          buffer.host(slices.context_lens) + source.first_seq;
      grouping.segments.push_back(segment);
    }
    batch.groupings.push_back(std::move(grouping));
  }
  for (size_t layer = 0; layer < tables_.size(); ++layer) {
    LayerPlan plan;
    plan.grouping = plan_->layers[layer].grouping;
    for (size_t s = 0; s < tables_[layer].size(); ++s) {
      plan.runs.push_back({plan_->layers[layer].mixers[s],
                           buffer.device(tables_[layer][s].ids),
                           tables_[layer][s].stride});
    }
    batch.layers.push_back(std::move(plan));
  }
  return batch;
}

}  // namespace switchyard
