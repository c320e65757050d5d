#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/cpu_math.h"
#include "kernels/delta_rule_cpu.h"

namespace switchyard::internal {
namespace {

// Tokens whose gates are computed together, before the state is walked.
constexpr int64_t kRun = 16;

template <typename T>
T Load(const float* p) {
  T value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

// One token on kCount vectors T of adjacent state columns, which evolve
// independently of all others:
//   u = S^T (decay k);  delta = beta (v - u);  S = decay S + k delta^T;
//   out = S^T q.
template <typename T, int kCount>
void Step(int64_t key_dim, int64_t row_stride, const float* q, const float* k,
          const float* decay, float beta, const float* v, float* s,
          float* out) {
  constexpr int64_t kWidth = sizeof(T) / sizeof(float);
  T u[kCount] = {};
  for (int64_t c = 0; c < key_dim; ++c) {
    const float weight = k[c] * decay[c];
    const float* row = s + c * row_stride;
    for (int i = 0; i < kCount; ++i) u[i] += weight * Load<T>(row + i * kWidth);
  }
  T delta[kCount];
  for (int i = 0; i < kCount; ++i) {
    delta[i] = beta * (Load<T>(v + i * kWidth) - u[i]);
  }
  T o[kCount] = {};
  for (int64_t c = 0; c < key_dim; ++c) {
    float* row = s + c * row_stride;
    for (int i = 0; i < kCount; ++i) {
      const T added = k[c] * delta[i];
      const T value = decay[c] * Load<T>(row + i * kWidth) + added;
      std::memcpy(row + i * kWidth, &value, sizeof(value));
      o[i] += q[c] * value;
    }
  }
  std::memcpy(out, o, sizeof(o));
}

}  // namespace

void RunRecurrent(const DeltaHead& head) {
  const int64_t key_dim = head.key_dim(), value_dim = head.value_dim();
  float* state = head.state();
  std::vector<float> q(kRun * key_dim), k(kRun * key_dim),
      decay(kRun * key_dim);
  float beta[kRun];
  for (int32_t begin = head.begin(); begin < head.end(); begin += kRun) {
    const int64_t count = std::min<int64_t>(kRun, head.end() - begin);
    for (int64_t t = 0; t < count; ++t) {
      head.ReadQuery(begin + t, &q[t * key_dim]);
      head.ReadKey(begin + t, &k[t * key_dim]);
      head.ReadLogDecay(begin + t, &decay[t * key_dim]);
      beta[t] = head.Beta(begin + t);
    }
#pragma omp simd
    for (int64_t i = 0; i < count * key_dim; ++i) decay[i] = Exp(decay[i]);

    // A strip of columns stays in the nearest cache for the whole run.
    const auto run_strip = [&](auto step, int64_t column) {
      for (int64_t t = 0; t < count; ++t) {
        step(key_dim, value_dim, &q[t * key_dim], &k[t * key_dim],
             &decay[t * key_dim], beta[t], head.Value(begin + t) + column,
             state + column, head.Out(begin + t) + column);
      }
    };
    int64_t column = 0;
    for (; column + 4 * kLanes <= value_dim; column += 4 * kLanes) {
      run_strip(Step<F8, 4>, column);
    }
    for (; column + kLanes <= value_dim; column += kLanes) {
      run_strip(Step<F8, 1>, column);
    }
    for (; column < value_dim; ++column) run_strip(Step<float, 1>, column);
  }
}

}  // namespace switchyard::internal
