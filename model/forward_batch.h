// ForwardBatch: one step's batch as the model sees it. Made by the worker's
// batch planner from a StepPlan; the model only reads it. Borrows everything;
// device arrays stay as they are until the step has run.
//
// Sequences of different placements share a step. The residual stream, the MLPs
// and the logits are in batch order. In each layer the sequences are grouped by
// mixer: a grouping is an order of the sequences in which every mixer's are
// adjacent (a segment), and two row maps between that order and batch order.
// Layers that split the batch alike share a grouping; a batch of one placement
// has a single one, which is batch order itself.
#ifndef SWITCHYARD_MODEL_FORWARD_BATCH_H_
#define SWITCHYARD_MODEL_FORWARD_BATCH_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/varlen.h"

namespace switchyard {

// The sequences of a grouping that run the same mixer. Those that decode come
// first.
struct Segment {
  VarlenBatch batch;
  int32_t first_row = 0;  // of its rows in the grouping's order
};

struct Grouping {
  std::vector<Segment> segments;  // adjacent; together all rows
  // Null for both: the grouping's order is batch order.
  const int32_t* rows = nullptr;  // [num_tokens] batch row of each row in the
                                  // grouping's order; on the device
  const int32_t* inverse = nullptr;  // [num_tokens] the other way round
};

// What a layer runs on one segment of its grouping, and the cache of its
// sequences.
struct MixerRun {
  int32_t mixer = 0;  // index in the layer's mixers
  // On the device: [num_seqs] slots, or the block tables that BlockTables
  // describes.
  const uint32_t* cache_ids = nullptr;
  const int32_t* table_begins = nullptr;  // [num_seqs + 1]; null for slots
  const int32_t* host_table_begins = nullptr;
};

struct LayerPlan {
  int32_t grouping = 0;        // index in ForwardBatch::groupings
  std::vector<MixerRun> runs;  // one per segment of the grouping
};

struct ForwardBatch {
  int32_t num_tokens = 0;              // >= 1
  const int32_t* token_ids = nullptr;  // [num_tokens] on the device
  std::vector<Grouping> groupings;
  std::vector<LayerPlan> layers;  // one per layer of the model
  std::byte* arena = nullptr;     // the rank's cache
};

}  // namespace switchyard

#endif  // SWITCHYARD_MODEL_FORWARD_BATCH_H_
