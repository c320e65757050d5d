#include "worker/batch_packer.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "kernels/check.h"

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

  Tables tables;
  for (size_t i = 0; i < plan_->layers.size(); ++i) {
    std::vector<CacheSlices> slices;
    for (size_t s = 0; s < plan_->layers[i].mixers.size(); ++s) {
      slices.push_back(PackSegment(static_cast<int32_t>(i), s, caches, store,
                                   buffer, tables));
    }
    caches_.push_back(std::move(slices));
  }
  SY_CHECK(tables.num_ids <= std::numeric_limits<int32_t>::max());
  uint32_t* ids = nullptr;
  tables_ = buffer.AppendRoom(tables.num_ids, &ids);
  if (ids == nullptr) return;  // no memory is an error of the upload
  for (const absl::Span<const uint32_t> table : tables.parts) {
    ids = std::copy(table.begin(), table.end(), ids);
  }
}

BatchPacker::CacheSlices BatchPacker::PackSegment(
    int32_t layer, size_t segment_index,
    absl::Span<const SequenceCache* const> caches, const CacheStore& store,
    StepBuffer& buffer, Tables& tables) const {
  const PlannedLayer& planned = plan_->layers[layer];
  const PlannedGrouping& grouping = plan_->groupings[planned.grouping];
  const PlannedSegment& segment = grouping.segments[segment_index];
  const int32_t mixer = planned.mixers[segment_index];
  CacheSlices slices;
  if (!store.HasTable(layer, mixer)) {
    std::vector<uint32_t> slots;
    slots.reserve(segment.num_seqs);
    for (int32_t q = 0; q < segment.num_seqs; ++q) {
      const int32_t entry = grouping.entries[segment.first_seq + q];
      slots.push_back(caches[entry]->ids(layer)[0]);
    }
    slices.slots = buffer.Append(absl::MakeConstSpan(slots));
    return slices;
  }
  std::vector<int32_t> begins;
  begins.reserve(segment.num_seqs + 1);
  for (int32_t q = 0; q < segment.num_seqs; ++q) {
    begins.push_back(static_cast<int32_t>(tables.num_ids));
    const int32_t* offsets = &grouping.token_offsets[segment.first_offset + q];
    const int64_t num_tokens =
        int64_t{grouping.context_lens[segment.first_seq + q]} + offsets[1] -
        offsets[0];
    const int32_t entry = grouping.entries[segment.first_seq + q];
    tables.parts.push_back(caches[entry]->ids(layer).subspan(
        0, store.NumEntries(layer, mixer, num_tokens)));
    tables.num_ids += static_cast<int64_t>(tables.parts.back().size());
  }
  begins.push_back(static_cast<int32_t>(tables.num_ids));
  slices.begins = buffer.Append(absl::MakeConstSpan(begins));
  return slices;
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
  for (size_t layer = 0; layer < caches_.size(); ++layer) {
    LayerPlan plan;
    plan.grouping = plan_->layers[layer].grouping;
    for (size_t s = 0; s < caches_[layer].size(); ++s) {
      const CacheSlices& slices = caches_[layer][s];
      MixerRun run;
      run.mixer = plan_->layers[layer].mixers[s];
      if (slices.begins.size > 0) {
        run.cache_ids = buffer.device(tables_);
        run.table_begins = buffer.device(slices.begins);
        run.host_table_begins = buffer.host(slices.begins);
      } else {
        run.cache_ids = buffer.device(slices.slots);
      }
      plan.runs.push_back(run);
    }
    batch.layers.push_back(std::move(plan));
  }
  return batch;
}

}  // namespace switchyard
