// The selective scan of Mamba (Gu & Dao 2023), with grouped B as in the
// Mamba-in-Llama variant.
#ifndef SWITCHYARD_KERNELS_SELECTIVE_SCAN_H_
#define SWITCHYARD_KERNELS_SELECTIVE_SCAN_H_

#include "absl/status/status.h"
#include "kernels/op_context.h"
#include "kernels/tensor.h"
#include "kernels/varlen.h"

namespace switchyard {

struct SelectiveScanArgs {
  VarlenBatch batch;
  SlotTable state;  // [d_inner, state_size] fp32 per sequence, read and updated
  int32_t state_size = 0;
  // Groups of C: d_inner / state_size; channel c belongs to head c / (d_inner /
  // num_heads).
  int32_t num_heads = 0;
  // Divides num_heads; head h uses B head h / (num_heads / num_b_heads).
  int32_t num_b_heads = 0;
  // num_heads, or num_b_heads where x still has to be repeated like B.
  int32_t num_x_heads = 0;

  // [num_tokens, num_x_heads * (d_inner / num_heads)] after the convolution,
  // activation type.
  MatrixView x;
  // [num_tokens, d_inner] after dt_proj (with its bias), before softplus; fp32
  // or activation type.
  MatrixView dt;
  MatrixView b;                  // [num_tokens, num_b_heads * state_size]
  MatrixView c;                  // [num_tokens, num_heads * state_size]
  MatrixView z;                  // [num_tokens, d_inner] gate
  const float* a_log = nullptr;  // [d_inner, state_size]
  const float* d = nullptr;      // [d_inner] skip
  MatrixView out;                // [num_tokens, d_inner] activation type
};

// Per channel i of head h, with D = softplus(dt) and A = -exp(a_log):
//   s <- exp(D A) s + D B x;  y = <s, C> + d x;  out = y * silu(z)
absl::Status SelectiveScan(const OpContext& context,
                           const SelectiveScanArgs& args);

}  // namespace switchyard

#endif  // SWITCHYARD_KERNELS_SELECTIVE_SCAN_H_
