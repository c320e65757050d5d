// BatchPacker: a BatchPlan's arrays and its sequences' cache tables in the step
// buffer, and the ForwardBatch that points to them.
#ifndef SWITCHYARD_WORKER_BATCH_PACKER_H_
#define SWITCHYARD_WORKER_BATCH_PACKER_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "model/forward_batch.h"
#include "worker/batch_planner.h"
#include "worker/cache_store.h"
#include "worker/step_buffer.h"
#include "worker/step_device.h"

namespace switchyard {

// For one step. Borrows the plan.
class BatchPacker {
 public:
  explicit BatchPacker(const BatchPlan* plan) : plan_(plan) {}

  // Appends everything to the buffer, the block tables last: where all else
  // lies, and where the tables begin, depends on what was appended before and
  // on the plan's counts, never on the lengths of sequences. `caches`: of each
  // entry of the plan; they cover the entries' positions.
  void Pack(absl::Span<const SequenceCache* const> caches,
            const CacheStore& store, StepBuffer& buffer);

  // REQUIRES: Pack, then buffer.Upload(). Valid until the buffer is cleared.
  ForwardBatch Resolve(const CacheStore& store, const StepBuffer& buffer) const;
  // How the tokens that lie on the device get into the batch.
  FetchTokensArgs Fetch(const int32_t* last_tokens, StepBuffer& buffer) const;
  // Where the block tables lie in the buffer. REQUIRES: Pack.
  int64_t tables_offset() const { return tables_.offset; }

 private:
  struct GroupingSlices {
    StepBuffer::Slice<int32_t> context_lens;
    StepBuffer::Slice<int32_t> token_offsets;
    StepBuffer::Slice<int32_t> positions;
    StepBuffer::Slice<int32_t> rows;
    StepBuffer::Slice<int32_t> inverse;
  };
  struct CacheSlices {                  // of one segment in one layer
    StepBuffer::Slice<uint32_t> slots;  // [num_seqs], or empty
    StepBuffer::Slice<int32_t> begins;  // [num_seqs + 1] in tables_, or empty
  };

  // Block tables, one after another.
  struct Tables {
    std::vector<absl::Span<const uint32_t>> parts;
    int64_t num_ids = 0;
  };

  // Appends the segment's slots, or the begins of its tables, which it lists.
  CacheSlices PackSegment(int32_t layer, size_t segment,
                          absl::Span<const SequenceCache* const> caches,
                          const CacheStore& store, StepBuffer& buffer,
                          Tables& tables) const;

  const BatchPlan* const plan_;
  StepBuffer::Slice<int32_t> token_ids_;
  StepBuffer::Slice<int32_t> token_sources_;
  std::vector<GroupingSlices> groupings_;
  std::vector<std::vector<CacheSlices>> caches_;  // [layer][segment]
  // The block tables of all layers, segments and sequences, in this order.
  StepBuffer::Slice<uint32_t> tables_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_WORKER_BATCH_PACKER_H_
