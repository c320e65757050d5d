#include <cmath>
#include <memory>

#include "absl/strings/str_cat.h"
#include "kernels/backends.h"
#include "kernels/matmul_cuda.h"
#include "tests/bench/kernels/harness.h"
#include "tests/bench/kernels/reference_activation.h"

namespace switchyard::bench {
namespace {

WeightMatrix Pack(Harness* h, const Tensor& values) {
  MatrixView host = values.view;
  std::vector<float> data = values.host;
  host.data = data.data();
  host.dtype = DType::kF32;
  return WeightMatrix(
      host.rows, host.cols, values.view.dtype,
      Value(internal::PackWeightCuda(h->device(), host, values.view.dtype)));
}

std::vector<double> Product(const Tensor& x, const Tensor& w,
                            const Tensor* bias) {
  std::vector<double> product;
  const int64_t k = x.view.cols;
  for (int64_t r = 0; r < x.view.rows; ++r) {
    for (int64_t c = 0; c < w.view.rows; ++c) {
      double sum = bias == nullptr ? 0 : bias->at(0, c);
      for (int64_t i = 0; i < k; ++i)
        sum += double{x.host[r * k + i]} * w.host[c * k + i];
      product.push_back(sum);
    }
  }
  return product;
}

void CheckMatmul(Harness* h, int64_t m, int64_t n, int64_t k, DType dtype,
                 DType out_dtype, bool with_bias, bool invariant) {
  const Tensor x = h->Random(m, k, dtype);
  const Tensor w = h->Random(n, k, dtype, 0.1f);
  const Tensor bias = h->Random(1, n, DType::kF32);
  const WeightMatrix weight = Pack(h, w);
  Tensor out = h->Poisoned(m, n, out_dtype);
  MatmulArgs args;
  args.x = x.view;
  args.weight = &weight;
  args.bias = with_bias ? static_cast<const float*>(bias.view.data) : nullptr;
  args.out = out.view;
  Ok(internal::MatmulCuda(invariant ? h->invariant() : h->context(), args));
  h->Check(
      absl::StrCat("matmul ", m, " x ", k, " -> ", n, " ", DTypeName(dtype),
                   " to ", DTypeName(out_dtype), with_bias ? " bias" : "",
                   invariant ? " invariant" : ""),
      h->Download(out.view), Product(x, w, with_bias ? &bias : nullptr),
      out_dtype == DType::kF32 ? 3e-5 : 4e-3);
}

// Against float64, and bit for bit against the product and the activation as
// kernels of their own.
void CheckGatedMatmul(Harness* h, int64_t m, int64_t width, int64_t k,
                      DType dtype, ActivationKind kind, bool with_bias,
                      bool invariant) {
  const Tensor x = h->Random(m, k, dtype);
  const Tensor w = h->Random(2 * width, k, dtype, 0.1f);
  const Tensor bias = h->Random(1, 2 * width, DType::kF32);
  const WeightMatrix weight = Pack(h, w);
  const OpContext context = invariant ? h->invariant() : h->context();
  Tensor product = h->Poisoned(m, 2 * width, dtype);
  Tensor out = h->Poisoned(m, width, dtype);
  Tensor apart = h->Poisoned(m, width, dtype);
  const float* device_bias =
      with_bias ? static_cast<const float*>(bias.view.data) : nullptr;
  Ok(internal::GatedMatmulCuda(
      context, {x.view, &weight, device_bias, kind, product.view, out.view}));
  Ok(internal::MatmulCuda(context,
                          {x.view, &weight, device_bias, product.view}));
  Ok(internal::ActivationCuda(context, {kind, product.view, true, apart.view}));
  const std::vector<double> sums = Product(x, w, with_bias ? &bias : nullptr);
  std::vector<double> reference;
  for (int64_t r = 0; r < m; ++r) {
    for (int64_t c = 0; c < width; ++c)
      reference.push_back(ReferenceActivation(kind, sums[r * 2 * width + c]) *
                          sums[r * 2 * width + width + c]);
  }
  const std::string name =
      absl::StrCat("gated matmul ", m, " x ", k, " -> 2 x ", width, " ",
                   DTypeName(dtype), " activation ", static_cast<int>(kind),
                   with_bias ? " bias" : "", invariant ? " invariant" : "");
  const std::vector<float> got = h->Download(out.view);
  // In bf16 gate, up and output are rounded one after the other, by up to 2^-9
  // each, and the activation may be steeper than its argument.
  h->Check(name, got, reference, dtype == DType::kF32 ? 1e-4 : 8e-3);
  h->Expect(name + ": the bits of its parts", got == h->Download(apart.view));
}

// Each row of a large batch, alone and in groups: the same bits.
void CheckInvariance(Harness* h, int64_t n, int64_t k, DType dtype) {
  const int64_t m = 150;
  const Tensor x = h->Random(m, k, dtype);
  const WeightMatrix weight = Pack(h, h->Random(n, k, dtype));
  const auto run = [&](int64_t begin, int64_t rows) {
    Tensor out = h->Poisoned(rows, n, DType::kF32);
    MatmulArgs args;
    args.x = x.view.Rows(begin, rows);
    args.weight = &weight;
    args.out = out.view;
    Ok(internal::MatmulCuda(h->invariant(), args));
    return h->Download(out.view);
  };
  const std::vector<float> whole = run(0, m);
  bool same = true;
  for (const int64_t rows : {1, 3, 8, 13, 16, 17, 33, 64, 65, 129}) {
    for (const int64_t begin : {int64_t{0}, int64_t{7}, m - rows}) {
      const std::vector<float> part = run(begin, rows);
      same = same &&
             std::equal(part.begin(), part.end(), whole.begin() + begin * n);
    }
  }
  h->Expect(absl::StrCat("matmul ", k, " -> ", n, " ", DTypeName(dtype),
                         ": rows do not depend on their number"),
            same);
}

void TimeShape(Harness* h, int64_t n, int64_t k) {
  const int sets =
      static_cast<int>(std::max<int64_t>(2, 400'000'000 / (2 * n * k) + 1));
  std::vector<WeightMatrix> weights;
  for (int s = 0; s < sets; ++s) weights.push_back(h->LargeWeight(n, k));
  for (const int64_t m : {1, 4, 8, 16, 32, 64, 128, 8192}) {
    if (m > 128 && n > 100'000) continue;
    const Tensor x = h->Large(m, k, DType::kBF16);
    const Tensor out = h->Large(m, n, DType::kBF16);
    const auto run = [&](const OpContext& context, int s) {
      MatmulArgs args;
      args.x = x.view;
      args.weight = &weights[s];
      args.out = out.view;
      Ok(internal::MatmulCuda(context, args));
    };
    const std::string name = absl::StrCat("matmul ", m, " x ", k, " -> ", n);
    if (m > 128) {
      const double flops = 2.0 * m * n * k;
      h->Time(name, sets, flops, Roof::kGemm,
              [&](int s) { run(h->context(), s); });
      h->Time(name + " invariant", sets, flops, Roof::kGemm,
              [&](int s) { run(h->invariant(), s); });
    } else {
      h->Time(name, sets, 2.0 * n * k, Roof::kRead,
              [&](int s) { run(h->context(), s); });
      if (m == 1 || m == 64) {
        h->Time(name + " invariant", sets, 2.0 * n * k, Roof::kRead,
                [&](int s) { run(h->invariant(), s); });
      }
    }
  }
}

void TimeGated(Harness* h, int64_t width, int64_t k) {
  const int sets =
      static_cast<int>(std::max<int64_t>(2, 400'000'000 / (4 * width * k) + 1));
  std::vector<WeightMatrix> weights;
  for (int s = 0; s < sets; ++s)
    weights.push_back(h->LargeWeight(2 * width, k));
  for (const int64_t m : {1, 4, 8, 16, 32, 64, 128}) {
    const Tensor x = h->Large(m, k, DType::kBF16);
    const Tensor product = h->Large(m, 2 * width, DType::kBF16);
    const Tensor out = h->Large(m, width, DType::kBF16);
    h->Time(
        absl::StrCat("gated matmul ", m, " x ", k, " -> 2 x ", width), sets,
        4.0 * width * k, Roof::kRead, [&](int s) {
          Ok(internal::GatedMatmulCuda(
              h->context(), {x.view, &weights[s], nullptr,
                             ActivationKind::kSilu, product.view, out.view}));
        });
  }
}

}  // namespace

void BenchMatmul(Harness* h) {
  const DType bf16 = DType::kBF16, f32 = DType::kF32;
  for (const int64_t m : {1, 5, 8, 9, 16, 17, 32, 33, 64, 70, 128, 131}) {
    CheckMatmul(h, m, 200, 640, bf16, bf16, false, false);
    CheckMatmul(h, m, 1037, 200, bf16, f32, true, false);
    // Columns split over two and four blocks.
    CheckMatmul(h, m, 150, 1032, bf16, bf16, true, false);
    CheckMatmul(h, m, 203, 2120, bf16, f32, false, m % 2 == 0);
  }
  CheckMatmul(h, 27, 5120, 2048, bf16, bf16, true, false);
  CheckMatmul(h, 2, 5120, 5120, bf16, f32, false, false);
  CheckMatmul(h, 3, 36, 32, bf16, bf16, true, false);   // tiny checkpoints
  CheckMatmul(h, 40, 36, 30, bf16, bf16, true, false);  // no 16-byte rows
  CheckMatmul(h, 20, 100, 96, bf16, bf16, true, true);
  CheckMatmul(h, 200, 300, 1000, bf16, f32, true, true);
  CheckMatmul(h, 20, 100, 99, bf16, f32, true, true);
  CheckMatmul(h, 33, 130, 257, f32, f32, true, false);
  CheckMatmul(h, 33, 130, 257, f32, f32, true, true);
  for (const int64_t m : {1, 2, 5, 8, 9, 13, 16, 17, 18, 27, 40, 64, 66, 131}) {
    CheckGatedMatmul(h, m, 1 + 37 * (m % 19), 8 * (5 + 11 * (m % 19)), bf16,
                     static_cast<ActivationKind>(m % 6), m % 2 == 0,
                     m % 5 == 0);
  }
  for (int kind = 0; kind <= 5; ++kind) {
    for (const int64_t m : {3, 12})
      CheckGatedMatmul(h, m, 2500, 264, bf16, static_cast<ActivationKind>(kind),
                       true, false);
  }
  CheckGatedMatmul(h, 2, 14336, 512, bf16, ActivationKind::kSilu, false, false);
  CheckGatedMatmul(h, 5, 90, 99, bf16, ActivationKind::kSilu, true, true);
  CheckGatedMatmul(h, 5, 90, 99, f32, ActivationKind::kGelu, true, false);
  CheckInvariance(h, 100, 640, bf16);
  CheckInvariance(h, 100, 200, bf16);
  CheckInvariance(h, 600, 1032, bf16);
  CheckInvariance(h, 600, 4104, bf16);
  CheckInvariance(h, 64, 90, f32);
  if (!h->times_wanted()) return;
  TimeShape(h, 28672, 5120);
  TimeGated(h, 14336, 5120);
  TimeShape(h, 5120, 14336);
  TimeShape(h, 6144, 5120);
  TimeShape(h, 3072, 5120);  // on two GPUs
  TimeShape(h, 5120, 4096);
  TimeShape(h, 10240, 5120);
  TimeShape(h, 64, 5120);
  TimeShape(h, 131072, 5120);
}

}  // namespace switchyard::bench
