// Scratch matrices of the forward pass.
#ifndef SWITCHYARD_MODEL_SCRATCH_H_
#define SWITCHYARD_MODEL_SCRATCH_H_

#include <cstdint>

#include "kernels/op_context.h"
#include "kernels/tensor.h"

namespace switchyard {

// A contiguous [rows, cols] matrix from the workspace.
inline MatrixView AllocateMatrix(Workspace& workspace, DType dtype,
                                 int64_t rows, int64_t cols) {
  return MakeMatrix(workspace.Allocate(rows * cols * DTypeBytes(dtype)), dtype,
                    rows, cols);
}

}  // namespace switchyard

#endif  // SWITCHYARD_MODEL_SCRATCH_H_
