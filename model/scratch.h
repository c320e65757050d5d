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

// The same with rows that begin on 16 bytes, as kernels with wide loads want
// them, whatever `cols`. The padding at a row's end is nobody's.
inline MatrixView AllocatePadded(Workspace& workspace, DType dtype,
                                 int64_t rows, int64_t cols) {
  const int64_t elements = 16 / DTypeBytes(dtype);
  const int64_t stride = (cols + elements - 1) / elements * elements;
  return AllocateMatrix(workspace, dtype, rows, stride).Columns(0, cols);
}

}  // namespace switchyard

#endif  // SWITCHYARD_MODEL_SCRATCH_H_
