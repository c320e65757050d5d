// Depthwise causal convolution along a sequence, with the last inputs carried
// in a state.
#ifndef SWITCHYARD_KERNELS_CAUSAL_CONV_H_
#define SWITCHYARD_KERNELS_CAUSAL_CONV_H_

#include "absl/status/status.h"
#include "kernels/op_context.h"
#include "kernels/tensor.h"
#include "kernels/varlen.h"

namespace switchyard {

struct CausalConvArgs {
  VarlenBatch batch;
  SlotTable state;  // [num_channels, kernel_size - 1] fp32 per sequence, oldest
                    // input first; read and updated
  MatrixView x;     // [num_tokens, num_channels] activation type
  const float* weight = nullptr;  // [num_channels, kernel_size]; the last tap
                                  // meets the current input
  const float* bias = nullptr;    // [num_channels] or null
  int32_t kernel_size = 0;
  bool silu = true;  // silu on the result
  MatrixView out;    // [num_tokens, num_channels] activation type; may be x
};

// out[t][c] = silu(bias[c] + sum_j weight[c][j] * input[t - kernel_size + 1 +
// j][c]), where inputs before the first new row come from the state (zeros in a
// fresh slot); afterwards the state holds the last kernel_size - 1 inputs.
absl::Status CausalConv(const OpContext& context, const CausalConvArgs& args);

}  // namespace switchyard

#endif  // SWITCHYARD_KERNELS_CAUSAL_CONV_H_
