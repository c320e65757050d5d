// Mixer: one token mixer of one layer, this rank's share of it.
//
// Owns its weights on the device; immutable after loading. One thread runs it.
// Its heads are this rank's; the output is a partial sum, which the caller adds
// up over the ranks.
#ifndef SWITCHYARD_MODEL_MIXERS_MIXER_H_
#define SWITCHYARD_MODEL_MIXERS_MIXER_H_

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "kernels/op_context.h"
#include "kernels/tensor.h"
#include "kernels/varlen.h"
#include "model/rope_tables.h"

namespace switchyard {

// The sequences to run, their new rows and their cache in this layer.
struct MixerInput {
  VarlenBatch batch;
  MatrixView x;  // [num_tokens, hidden] activation type
  std::byte* arena = nullptr;
  // See MixerRun.
  const uint32_t* cache_ids = nullptr;
  const int32_t* table_begins = nullptr;
  const int32_t* host_table_begins = nullptr;
};

class Mixer {
 public:
  virtual ~Mixer() = default;

  // out [num_tokens, hidden] = this rank's part of the mixer's output for each
  // new row; the sequences' cache advances by their new rows. Scratch comes
  // from the workspace and is given back.
  virtual absl::Status Forward(const OpContext& context,
                               const MixerInput& input,
                               const MatrixView& out) const = 0;

  // Workspace that Forward takes for this many rows, scratch of ops apart.
  virtual int64_t ScratchBytes(int64_t num_tokens) const = 0;
};

// What every mixer is loaded with.
struct MixerContext {
  int32_t world_size = 1;
  int32_t block_size = 0;
  DType activation = DType::kF32;
  DType kv_dtype = DType::kF32;
  RopeTables* rope_tables = nullptr;  // outlives the mixer
};

}  // namespace switchyard

#endif  // SWITCHYARD_MODEL_MIXERS_MIXER_H_
