// BatchPlan: how one step's sequences are laid out for the model. Pure: from
// what runs to groupings, orders, offsets and positions; no device, no I/O.
#ifndef SWITCHYARD_WORKER_BATCH_PLANNER_H_
#define SWITCHYARD_WORKER_BATCH_PLANNER_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "model/placement.h"

namespace switchyard {

// One sequence's part in a step. Borrows for the call.
struct BatchEntry {
  const Placement* placement = nullptr;
  absl::Span<const int32_t> token_ids;  // of the new positions
  int32_t start = 0;                    // the first of them
  // Not negative: one more new position, whose token lies on the device in this
  // slot.
  int32_t token_slot = -1;

  // At least one.
  int32_t num_tokens() const {
    return static_cast<int32_t>(token_ids.size()) + (token_slot >= 0 ? 1 : 0);
  }
};

// Sequences [first_seq, first_seq + num_seqs) of a grouping's order, which run
// the same mixer in the layers of the grouping; see VarlenBatch.
struct PlannedSegment {
  int32_t first_seq = 0;
  int32_t first_row = 0;
  int32_t first_offset = 0;  // of its num_seqs + 1 token offsets
  int32_t num_seqs = 0;
  int32_t num_decodes = 0;
  int32_t num_tokens = 0;
  int32_t max_new_tokens = 0;
  int32_t max_total_tokens = 0;
};

// One way of splitting the batch by mixer.
struct PlannedGrouping {
  std::vector<PlannedSegment> segments;
  std::vector<int32_t> entries;  // [num_seqs] entry of each sequence in order
  std::vector<int32_t> context_lens;   // [num_seqs]
  std::vector<int32_t> token_offsets;  // per segment num_seqs + 1, from 0
  std::vector<int32_t> positions;      // [num_tokens]
  // Batch row of each row in the grouping's order, and the inverse; empty where
  // the grouping's order is batch order.
  std::vector<int32_t> rows;
  std::vector<int32_t> inverse;
};

struct PlannedLayer {
  int32_t grouping = 0;
  std::vector<int32_t> mixers;  // of each segment
};

struct BatchPlan {
  int32_t num_seqs = 0;
  int32_t num_tokens = 0;
  std::vector<int32_t> token_ids;  // [num_tokens] in batch order
  // [num_tokens] the slot whose token takes the place of token_ids', or -1.
  std::vector<int32_t> token_sources;
  std::vector<int32_t> first_rows;  // [num_seqs] batch row of each entry's
                                    // first new position, by index of the entry
  std::vector<PlannedGrouping> groupings;
  std::vector<PlannedLayer> layers;
};

// What a part of a batch has of one entry.
struct BatchPiece {
  int32_t index = 0;  // of the entry
  BatchEntry entry;   // the piece as an entry of its own
};
using BatchPart = std::vector<BatchPiece>;

// Cuts a batch in two if half of its rows are at least `min_tokens`, at the
// whole tile of rows in batch order that is nearest to the middle; returns it
// as one part if they are not, or if that is 0. An entry that is cut ends the
// first part and begins the second, so that the rows of the parts' plans, one
// after the other, are those of the whole one's. No piece of a cut entry has
// one token alone, like entries that decode.
std::vector<BatchPart> CutBatch(absl::Span<const BatchEntry> entries,
                                int32_t min_tokens);

// In batch order the entries with one new token come first, else entries keep
// their order; the same holds within every segment. Layers that split the batch
// alike share a grouping, whatever mixers they run. No segment's
// max_total_tokens is below `min_total_tokens`, so that batches of alike shape
// get equal plans while their contexts grow. REQUIRES: at least one entry; all
// placements of the same model.
BatchPlan PlanBatch(absl::Span<const BatchEntry> entries,
                    int32_t min_total_tokens = 0);

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_BATCH_PLANNER_H_
