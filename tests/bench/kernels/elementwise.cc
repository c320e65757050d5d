// Embedding, norms, rotation, activation.
#include <cmath>
#include <numeric>

#include "kernels/backends.h"
#include "tests/bench/kernels/harness.h"
#include "tests/bench/kernels/reference_activation.h"

namespace switchyard::bench {
namespace {

// Tolerances of results stored as bf16 and as fp32.
constexpr double kBf16 = 4e-3, kFp32 = 2e-6;

double ToleranceOf(DType dtype) { return dtype == DType::kF32 ? kFp32 : kBf16; }

void CheckEmbedding(Harness* h, int64_t hidden, DType dtype) {
  const Tensor table = h->Random(50, hidden, dtype);
  const std::vector<int32_t> ids = {10, 9, 59, 60, 33};
  const DeviceBuffer device_ids = h->Upload(ids);
  Tensor out = h->Poisoned(ids.size(), hidden, DType::kF32);
  EmbeddingArgs args;
  args.token_ids = reinterpret_cast<const int32_t*>(device_ids.get());
  args.table = table.view;
  args.vocab_begin = 10;
  args.out = out.view;
  Ok(internal::EmbeddingCuda(h->context(), args));
  std::vector<double> reference;
  for (const int32_t id : ids) {
    for (int64_t c = 0; c < hidden; ++c)
      reference.push_back(id >= 10 && id < 60 ? table.at(id - 10, c) : 0);
  }
  h->Check(absl::StrCat("embedding ", DTypeName(dtype), " hidden ", hidden),
           h->Download(out.view), reference, 1e-9);
}

void CheckAddRmsNorm(Harness* h, int64_t hidden, DType dtype, bool mapped) {
  const int64_t num_rows = 7, num_out = mapped ? 4 : num_rows;
  const Tensor residual = h->Random(num_rows, hidden, DType::kF32);
  const Tensor delta = h->Random(num_rows, hidden, dtype);
  const Tensor weight = h->Random(1, hidden, DType::kF32);
  Tensor out = h->Poisoned(num_out, hidden, dtype);
  const std::vector<int32_t> rows = {6, 0, 3, 2}, delta_rows = {1, 5, 0, 4};
  const DeviceBuffer device_rows = h->Upload(rows);
  const DeviceBuffer device_delta_rows = h->Upload(delta_rows);
  AddRmsNormArgs args;
  args.residual = residual.view;
  args.delta = delta.view;
  args.weight = static_cast<const float*>(weight.view.data);
  args.epsilon = 1e-5f;
  args.out = out.view;
  if (mapped) {
    args.rows = reinterpret_cast<const int32_t*>(device_rows.get());
    args.delta_rows = reinterpret_cast<const int32_t*>(device_delta_rows.get());
  }
  Ok(internal::AddRmsNormCuda(h->context(), args));
  std::vector<double> reference,
      sums(residual.host.begin(), residual.host.end());
  for (int64_t i = 0; i < num_out; ++i) {
    const int64_t r = mapped ? rows[i] : i, d = mapped ? delta_rows[i] : i;
    double square = 0;
    for (int64_t c = 0; c < hidden; ++c) {
      sums[r * hidden + c] += delta.at(d, c);
      square += sums[r * hidden + c] * sums[r * hidden + c];
    }
    for (int64_t c = 0; c < hidden; ++c)
      reference.push_back(sums[r * hidden + c] * weight.at(0, c) /
                          std::sqrt(square / hidden + 1e-5));
  }
  const std::string name =
      absl::StrCat("add_rms_norm ", DTypeName(dtype), " hidden ", hidden,
                   mapped ? " mapped" : "");
  h->Check(name, h->Download(out.view), reference, ToleranceOf(dtype));
  h->Check(name + ", residual", h->Download(residual.view), sums, kFp32);
}

void CheckGatedRmsNorm(Harness* h, int32_t head_dim, DType dtype,
                       GateActivation activation) {
  const int64_t tokens = 5, cols = 3 * head_dim;
  const Tensor x = h->Random(tokens, cols, DType::kF32);
  const Tensor gate = h->Random(tokens, 2 * cols, dtype);
  const Tensor weight = h->Random(1, head_dim, DType::kF32);
  Tensor out = h->Poisoned(tokens, cols, dtype);
  GatedRmsNormArgs args;
  args.x = x.view;
  args.gate = gate.view.Columns(cols, cols);
  args.weight = static_cast<const float*>(weight.view.data);
  args.epsilon = 1e-5f;
  args.activation = activation;
  args.head_dim = head_dim;
  args.out = out.view;
  Ok(internal::GatedRmsNormCuda(h->context(), args));
  std::vector<double> reference;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t c = 0; c < cols; ++c) {
      double square = 0;
      for (int32_t i = 0; i < head_dim; ++i) {
        const double y = x.at(t, c / head_dim * head_dim + i);
        square += y * y;
      }
      const double g = gate.at(t, cols + c), sigmoid = 1 / (1 + std::exp(-g));
      reference.push_back(
          x.at(t, c) * weight.at(0, c % head_dim) /
          std::sqrt(square / head_dim + 1e-5) *
          (activation == GateActivation::kSilu ? g * sigmoid : sigmoid));
    }
  }
  h->Check(
      absl::StrCat("gated_rms_norm ", DTypeName(dtype), " head ", head_dim),
      h->Download(out.view), reference, ToleranceOf(dtype));
}

void CheckRope(Harness* h, int32_t head_size, DType dtype) {
  const int64_t tokens = 4, cols = 3 * head_size, half = head_size / 2;
  const Tensor x = h->Random(tokens, cols, dtype);
  const std::vector<int32_t> positions = {0, 5, 99, 42};
  const DeviceBuffer device_positions = h->Upload(positions);
  std::vector<float> table(100 * head_size);
  for (int64_t p = 0; p < 100; ++p) {
    for (int64_t i = 0; i < half; ++i) {
      const double angle = p * std::pow(1e4, -2.0 * i / head_size);
      table[p * head_size + i] = static_cast<float>(std::cos(angle));
      table[p * head_size + half + i] = static_cast<float>(std::sin(angle));
    }
  }
  const DeviceBuffer device_table = h->Upload(table);
  RopeArgs args;
  args.x = x.view;
  args.head_size = head_size;
  args.positions = reinterpret_cast<const int32_t*>(device_positions.get());
  args.table = reinterpret_cast<const float*>(device_table.get());
  args.num_positions = 100;
  Ok(internal::RopeCuda(h->context(), args));
  std::vector<double> reference;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t c = 0; c < cols; ++c) {
      const int64_t i = c % head_size;
      const double cosine = table[positions[t] * head_size + i % half];
      const double sine = table[positions[t] * head_size + half + i % half];
      const double other = x.at(t, i < half ? c + half : c - half);
      reference.push_back(x.at(t, c) * cosine +
                          (i < half ? -other : other) * sine);
    }
  }
  h->Check(absl::StrCat("rope ", DTypeName(dtype), " head ", head_size),
           h->Download(args.x), reference, ToleranceOf(dtype));
}

void CheckActivation(Harness* h, ActivationKind kind, bool gated, int64_t width,
                     DType dtype) {
  const int64_t tokens = 3;
  const Tensor x = h->Random(tokens, gated ? 2 * width : width, dtype);
  Tensor out = h->Poisoned(tokens, width, dtype);
  ActivationArgs args;
  args.kind = kind;
  args.x = x.view;
  args.gated = gated;
  args.out = out.view;
  Ok(internal::ActivationCuda(h->context(), args));
  std::vector<double> reference;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t c = 0; c < width; ++c)
      reference.push_back(ReferenceActivation(kind, x.at(t, c)) *
                          (gated ? x.at(t, width + c) : 1.0));
  }
  h->Check(
      absl::StrCat("activation ", static_cast<int>(kind), " ", DTypeName(dtype),
                   gated ? " gated" : "", " width ", width),
      h->Download(out.view), reference, ToleranceOf(dtype));
}

void TimeAll(Harness* h) {
  for (const int64_t tokens : {1, 16, 64, 8192}) {
    const int sets = tokens > 1000 ? 3 : 8;
    std::vector<Tensor> residual, delta, out, gate_up, act;
    const Tensor weight = h->Large(1, 5120, DType::kF32);
    for (int s = 0; s < sets; ++s) {
      residual.push_back(h->Large(tokens, 5120, DType::kF32));
      delta.push_back(h->Large(tokens, 5120, DType::kBF16));
      out.push_back(h->Large(tokens, 5120, DType::kBF16));
      gate_up.push_back(h->Large(tokens, 28672, DType::kBF16));
      act.push_back(h->Large(tokens, 14336, DType::kBF16));
    }
    h->Time(absl::StrCat("add_rms_norm ", tokens, " x 5120"), sets,
            tokens * 5120.0 * 12, Roof::kCopy, [&](int s) {
              AddRmsNormArgs args;
              args.residual = residual[s].view;
              args.delta = delta[s].view;
              args.weight = static_cast<const float*>(weight.view.data);
              args.epsilon = 1e-5f;
              args.out = out[s].view;
              Ok(internal::AddRmsNormCuda(h->context(), args));
            });
    h->Time(absl::StrCat("silu-multiply ", tokens, " x 14336"), sets,
            tokens * 14336.0 * 6, Roof::kCopy, [&](int s) {
              ActivationArgs args;
              args.x = gate_up[s].view;
              args.gated = true;
              args.out = act[s].view;
              Ok(internal::ActivationCuda(h->context(), args));
            });
  }
}

}  // namespace

void BenchElementwise(Harness* h) {
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    for (const int64_t hidden : {5120, 256, 50}) {
      CheckEmbedding(h, hidden, dtype);
      CheckAddRmsNorm(h, hidden, dtype, false);
      CheckAddRmsNorm(h, hidden, dtype, true);
    }
    CheckAddRmsNorm(h, 12288, dtype, false);
    for (const int32_t head : {16, 30, 64, 128, 256}) {
      CheckGatedRmsNorm(h, head, dtype, GateActivation::kSilu);
      CheckRope(h, head, dtype);
    }
    CheckGatedRmsNorm(h, 128, dtype, GateActivation::kSigmoid);
    for (int kind = 0; kind <= 5; ++kind) {
      CheckActivation(h, static_cast<ActivationKind>(kind), kind % 2 == 0,
                      14336, dtype);
      CheckActivation(h, static_cast<ActivationKind>(kind), kind % 2 != 0, 50,
                      dtype);
    }
  }
  if (h->times_wanted()) TimeAll(h);
}

}  // namespace switchyard::bench
