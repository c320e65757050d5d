// MatrixView: what every op reads and writes. A batch of tokens is always
// [rows, cols]; heads are folded into cols, and a slice of a fused projection
// is a view with the projection's row stride. Borrows its memory; trivially
// copyable.
#ifndef SWITCHYARD_KERNELS_TENSOR_H_
#define SWITCHYARD_KERNELS_TENSOR_H_

#include <cstddef>
#include <cstdint>

#include "kernels/dtype.h"

namespace switchyard {

struct MatrixView {
  void* data = nullptr;  // on the op's device
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_stride = 0;  // elements from one row to the next, >= cols

  bool empty() const { return data == nullptr || rows == 0 || cols == 0; }
  bool contiguous() const { return row_stride == cols; }

  template <typename T>
  T* Row(int64_t row) const {
    return static_cast<T*>(data) + row * row_stride;
  }
  // Columns [begin, begin + num) of every row.
  MatrixView Columns(int64_t begin, int64_t num) const {
    MatrixView view = *this;
    view.data = static_cast<std::byte*>(data) + begin * DTypeBytes(dtype);
    view.cols = num;
    return view;
  }
  // Rows [begin, begin + num).
  MatrixView Rows(int64_t begin, int64_t num) const {
    MatrixView view = *this;
    view.data =
        static_cast<std::byte*>(data) + begin * row_stride * DTypeBytes(dtype);
    view.rows = num;
    return view;
  }
};

// A contiguous [rows, cols] matrix at `data`.
inline MatrixView MakeMatrix(void* data, DType dtype, int64_t rows,
                             int64_t cols) {
  return MatrixView{data, dtype, rows, cols, cols};
}

}  // namespace switchyard

#endif  // SWITCHYARD_KERNELS_TENSOR_H_
