// Rotary position embedding, rotate-half form over the whole head (Su et al.
// 2021, as in the HF Llama implementation).
#ifndef SWITCHYARD_KERNELS_ROPE_H_
#define SWITCHYARD_KERNELS_ROPE_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "kernels/op_context.h"
#include "kernels/tensor.h"

namespace switchyard {

// [num_positions, head_size] fp32 on the host: cos of head_size/2 angles, then
// their sin; angle = position * theta^(-2i/head_size), computed in double. The
// frequencies theta^(-2i/head_size) are rounded to bf16 first if asked for.
std::vector<float> MakeRopeTable(int64_t num_positions, int32_t head_size,
                                 double theta, bool bf16_frequencies = false);

struct RopeArgs {
  MatrixView x;  // [num_tokens, num_heads * head_size], rotated in place
  int32_t head_size = 0;               // even
  const int32_t* positions = nullptr;  // [num_tokens]
  const float* table = nullptr;        // MakeRopeTable on the device
  int64_t num_positions = 0;           // rows of the table
};

// With (x1, x2) the halves of a head:
//   out = (x1 cos - x2 sin, x2 cos + x1 sin)
absl::Status Rope(const OpContext& context, const RopeArgs& args);

}  // namespace switchyard

#endif  // SWITCHYARD_KERNELS_ROPE_H_
