#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "kernels/matmul_cpu.h"

namespace switchyard::internal {
namespace {

using dnnl::memory;

// Rows go through in runs of these sizes, so that few primitives serve every
// number of rows: each distinct one costs oneDNN a kernel to generate. From 8
// rows on the kernels run at full speed (see the numbers in the history of this
// file), so runs cost nothing.
constexpr int64_t kRunRows[] = {256, 64, 16};
constexpr int64_t kMaxTailRows = 15;

int64_t NextRun(int64_t rows_left) {
  for (int64_t run : kRunRows) {
    if (rows_left >= run) return run;
  }
  return std::min(rows_left, kMaxTailRows);
}

bool IsBatchReduce(const dnnl::matmul::primitive_desc& desc) {
  return std::strncmp(desc.impl_info_str(), "brg", 3) == 0;
}

class DnnlWeight final : public CpuWeight {
 public:
  DnnlWeight(const float* weight, int64_t out_features, int64_t in_features)
      : out_features_(out_features),
        in_features_(in_features),
        engine_(dnnl::engine::kind::cpu, 0),
        stream_(engine_) {
    const memory::desc any({in_features_, out_features_},
                           memory::data_type::f32, memory::format_tag::any);
    const auto chosen = Describe({kRunRows[0], /*with bias=*/false}, any);
    batch_invariant_ = IsBatchReduce(chosen);
    if (!batch_invariant_) return;
    packed_desc_ = chosen.weights_desc();
    packed_ = memory(packed_desc_, engine_);
    // oneDNN's weights are [in, out]; ours, seen column-major, are the same.
    memory plain({{in_features_, out_features_},
                  memory::data_type::f32,
                  memory::format_tag::ba},
                 engine_, const_cast<float*>(weight));
    dnnl::reorder(plain, packed_).execute(stream_, plain, packed_);
    stream_.wait();
  }

  bool batch_invariant() const { return batch_invariant_; }

  absl::Status Multiply(const MatrixView& x, const float* bias,
                        const MatrixView& out) const override try {
    for (int64_t row = 0; row < x.rows;) {
      const int64_t rows = NextRun(x.rows - row);
      MultiplyRun(x.Rows(row, rows), bias, out.Rows(row, rows));
      row += rows;
    }
    return absl::OkStatus();
  } catch (const dnnl::error& error) {
    return absl::InternalError(absl::StrCat("Matmul: oneDNN: ", error.what()));
  }

 private:
  using Shape = std::pair<int64_t, bool>;  // rows, with bias
  struct Primitive {
    dnnl::matmul matmul;
    std::unordered_map<int, memory> args;
  };

  void MultiplyRun(const MatrixView& x, const float* bias,
                   const MatrixView& out) const {
    auto [entry, is_new] = primitives_.try_emplace({x.rows, bias != nullptr});
    Primitive& primitive = entry->second;
    if (is_new) primitive = Make(entry->first);
    // The batch-reduce kernels want dense rows.
    const float* dense_x = x.Row<const float>(0);
    if (x.rows > 1 && !x.contiguous()) {
      x_scratch_.resize(x.rows * x.cols);
      CopyRows(x, MakeMatrix(x_scratch_.data(), x.dtype, x.rows, x.cols));
      dense_x = x_scratch_.data();
    }
    float* dense_out = out.Row<float>(0);
    const bool scatter = out.rows > 1 && !out.contiguous();
    if (scatter) {
      out_scratch_.resize(out.rows * out.cols);
      dense_out = out_scratch_.data();
    }
    primitive.args.at(DNNL_ARG_SRC)
        .set_data_handle(const_cast<float*>(dense_x));
    primitive.args.at(DNNL_ARG_DST).set_data_handle(dense_out);
    if (bias != nullptr) {
      primitive.args.at(DNNL_ARG_BIAS)
          .set_data_handle(const_cast<float*>(bias));
    }
    primitive.matmul.execute(stream_, primitive.args);
    stream_.wait();
    if (scatter) {
      CopyRows(MakeMatrix(dense_out, out.dtype, out.rows, out.cols), out);
    }
  }

  static void CopyRows(const MatrixView& from, const MatrixView& to) {
    for (int64_t row = 0; row < from.rows; ++row) {
      std::memcpy(to.Row<float>(row), from.Row<const float>(row),
                  from.cols * sizeof(float));
    }
  }

  dnnl::matmul::primitive_desc Describe(const Shape& shape,
                                        const memory::desc& weights) const {
    const auto f32 = memory::data_type::f32;
    const auto ab = memory::format_tag::ab;
    const memory::desc x({shape.first, in_features_}, f32, ab);
    const memory::desc out({shape.first, out_features_}, f32, ab);
    const memory::desc bias({1, out_features_}, f32, ab);
    return dnnl::matmul::primitive_desc(
        shape.second ? dnnl::matmul::desc(x, weights, bias, out)
                     : dnnl::matmul::desc(x, weights, out),
        engine_);
  }

  Primitive Make(const Shape& shape) const {
    const auto desc = Describe(shape, packed_desc_);
    SY_CHECK(IsBatchReduce(desc));
    Primitive primitive{dnnl::matmul(desc), {}};
    primitive.args.emplace(DNNL_ARG_SRC,
                           memory(desc.src_desc(), engine_, nullptr));
    primitive.args.emplace(DNNL_ARG_WEIGHTS, packed_);
    primitive.args.emplace(DNNL_ARG_DST,
                           memory(desc.dst_desc(), engine_, nullptr));
    if (shape.second) {
      primitive.args.emplace(DNNL_ARG_BIAS,
                             memory(desc.bias_desc(), engine_, nullptr));
    }
    return primitive;
  }

  const int64_t out_features_;
  const int64_t in_features_;
  const dnnl::engine engine_;
  // oneDNN's handles are shared and its calls not const; a device's one thread
  // is the only caller.
  mutable dnnl::stream stream_;
  bool batch_invariant_ = false;
  memory::desc packed_desc_;
  memory packed_;
  // Bounded: one per size of run, with and without bias.
  mutable std::map<Shape, Primitive> primitives_;
  mutable std::vector<float> x_scratch_, out_scratch_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<CpuWeight>> PackForDnnl(const float* weight,
                                                       int64_t out_features,
                                                       int64_t in_features) {
  try {
    auto packed =
        std::make_unique<DnnlWeight>(weight, out_features, in_features);
    if (!packed->batch_invariant()) return nullptr;
    return packed;
  } catch (const dnnl::error& error) {
    const std::string message =
        absl::StrCat("cannot pack a weight [", out_features, ", ", in_features,
                     "]: oneDNN: ", error.what());
    if (error.status == dnnl_out_of_memory) {
      return absl::ResourceExhaustedError(message);
    }
    return absl::InternalError(message);
  }
}

}  // namespace switchyard::internal
