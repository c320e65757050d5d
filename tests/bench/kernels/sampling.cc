// Sampling, log-probabilities, joining shards.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kernels/backends.h"
#include "kernels/philox.h"
#include "tests/bench/kernels/harness.h"

namespace switchyard::bench {
namespace {

// The contract of sampling.h in double, by sorting. `margin` is how far the
// winner is ahead.
int32_t Reference(const SamplingRow& row, std::vector<double> l,
                  double* margin) {
  const int64_t vocab = l.size();
  std::vector<int32_t> order(vocab);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return l[a] > l[b]; });
  *margin = l[order[0]] - l[order[1]];
  if (row.temperature == 0) return order[0];
  const double top = l[order[0]];
  int64_t kept = row.top_k > 0 ? std::min<int64_t>(row.top_k, vocab) : vocab;
  double total = 0;
  for (double& x : l) x = (x - top) / row.temperature;
  for (int64_t i = 0; i < kept; ++i) total += std::exp(l[order[i]]);
  double reached = 0;
  for (int64_t i = 0; i < kept && row.top_p < 1; ++i) {
    reached += std::exp(l[order[i]]);
    if (reached >= row.top_p * total) kept = i + 1;
  }
  double best = -INFINITY, second = -INFINITY;
  int32_t winner = -1;
  for (int64_t i = 0; i < kept; ++i) {
    const int32_t t = order[i];
    if (l[t] < std::log(row.min_p)) continue;
    const uint32_t word =
        internal::SamplingWords(row.seed, row.draw, t / 4).word[t % 4];
    const double score = l[t] - std::log(-std::log((word + 0.5) * 0x1p-32));
    if (score > best) {
      second = best;
      best = score;
      winner = t;
    } else {
      second = std::max(second, score);
    }
  }
  *margin = best - second;
  return winner;
}

constexpr int kFilters = 5;  // top_k, top_p, min_p, penalties, bias

// Every combination of filters, at a low and a high temperature, then greedy
// rows. No two rows share a row of counts: a draw changes it.
std::vector<SamplingRow> MakeRows(Harness* h, int64_t vocab) {
  constexpr int kCombinations = 1 << kFilters;
  std::vector<SamplingRow> rows(2 * kCombinations + 4);
  for (size_t i = 0; i < rows.size(); ++i) {
    SamplingRow& row = rows[i];
    row.seed = h->random()();
    row.draw = static_cast<uint32_t>(i * 7);
    const bool greedy = i >= 2 * kCombinations;
    row.temperature = greedy ? 0.0f : i < kCombinations ? 0.4f : 1.1f;
    if (i & 1) row.top_k = static_cast<int32_t>(1 + h->random()() % vocab);
    if ((i & 1) && i % 3 != 0) row.top_k = 1 + row.top_k % 50;
    if (i & 2) row.top_p = 0.05f + 0.09f * (i % 11);
    if (i & 4) row.min_p = 0.05f;
    if (i & 8) {
      row.counts_row = static_cast<int32_t>(i);
      row.repetition_penalty = 1.2f;
      row.frequency_penalty = 0.1f;
      row.presence_penalty = 0.3f;
    }
    if (i & 16) {
      row.bias_begin = 0;
      row.bias_end = 3;
    }
    if (greedy && i % 2 == 1) {
      row.counts_row = static_cast<int32_t>(i);
      row.repetition_penalty = 1.5f;
      row.bias_end = 3;
    }
  }
  return rows;
}

// REQUIRES: vocab > 8.
void CheckSample(Harness* h, int64_t vocab) {
  const std::vector<SamplingRow> rows = MakeRows(h, vocab);
  const int64_t num_rows = rows.size();
  const Tensor logits = h->Random(num_rows, vocab, DType::kF32, 2);
  std::vector<uint16_t> counts(num_rows * vocab, 0);
  for (uint16_t& count : counts) {
    const uint64_t bits = h->random()();
    if (bits % 10 == 0) count = bits >> 8 & 3;
    if (bits % 17 == 0) count |= kCountsPromptBit;
  }
  const std::vector<int32_t> bias_ids = {3, static_cast<int32_t>(vocab - 1), 7};
  const std::vector<float> bias_values = {2.5f, 9.0f, -INFINITY};
  const DeviceBuffer device_rows = h->Upload(rows);
  const DeviceBuffer device_counts = h->Upload(counts);
  const DeviceBuffer device_ids = h->Upload(bias_ids);
  const DeviceBuffer device_values = h->Upload(bias_values);
  const DeviceBuffer tokens = h->Upload(std::vector<int32_t>(num_rows, -1));
  SamplingArgs args;
  args.logits = logits.view;
  args.rows = reinterpret_cast<const SamplingRow*>(device_rows.get());
  args.bias_ids = reinterpret_cast<const int32_t*>(device_ids.get());
  args.bias_values = reinterpret_cast<const float*>(device_values.get());
  args.counts = reinterpret_cast<uint16_t*>(device_counts.get());
  args.token_ids = reinterpret_cast<int32_t*>(tokens.get());
  Ok(internal::SampleCuda(h->context(), args));
  const auto drawn = h->Download<int32_t>(tokens.get(), num_rows);
  int wrong = 0, close = 0;
  for (int64_t r = 0; r < num_rows; ++r) {
    const SamplingRow& row = rows[r];
    std::vector<double> l(logits.host.begin() + r * vocab,
                          logits.host.begin() + (r + 1) * vocab);
    for (int32_t i = row.bias_begin; i < row.bias_end; ++i)
      l[bias_ids[i]] += bias_values[i];
    for (int64_t t = 0; row.counts_row >= 0 && t < vocab; ++t) {
      const uint16_t count = counts[row.counts_row * vocab + t];
      if (count == 0) continue;
      const int generated = count & ~kCountsPromptBit;
      l[t] = l[t] > 0 ? l[t] / row.repetition_penalty
                      : l[t] * row.repetition_penalty;
      l[t] -= row.frequency_penalty * generated +
              row.presence_penalty * (generated > 0);
    }
    double margin = 0;
    const int32_t wanted = Reference(row, l, &margin);
    if (drawn[r] == wanted) continue;
    if (margin < 1e-4)
      ++close;
    else
      ++wrong;
    std::printf("      row %ld drew %d, should be %d, margin %g\n",
                static_cast<long>(r), drawn[r], wanted, margin);
  }
  h->Expect(absl::StrCat("sample vocabulary ", vocab, ": ", wrong, " wrong, ",
                         close, " too close to tell"),
            wrong == 0);
  for (int64_t r = 0; r < num_rows; ++r) {
    if (rows[r].counts_row >= 0 && drawn[r] >= 0 && drawn[r] < vocab)
      ++counts[rows[r].counts_row * vocab + drawn[r]];
  }
  h->Expect(
      absl::StrCat("sample vocabulary ", vocab, ": counts"),
      h->Download<uint16_t>(device_counts.get(), counts.size()) == counts);
}

void CheckLogprobs(Harness* h, int64_t vocab, int32_t num_top) {
  const int64_t rows = 6;
  const Tensor logits = h->Random(rows, vocab, DType::kF32, 3);
  std::vector<int32_t> targets(rows);
  for (int32_t& target : targets) target = h->random()() % vocab;
  const DeviceBuffer device_targets = h->Upload(targets);
  Tensor target_out = h->Poisoned(rows, 1, DType::kF32);
  Tensor top_out = h->Poisoned(rows, std::max(num_top, 1), DType::kF32);
  Tensor ids_out = h->Poisoned(rows, std::max(num_top, 1), DType::kF32);
  LogprobsArgs args;
  args.logits = logits.view;
  args.targets = reinterpret_cast<const int32_t*>(device_targets.get());
  args.num_top = num_top;
  args.target_logprobs = static_cast<float*>(target_out.view.data);
  args.top_ids = static_cast<int32_t*>(ids_out.view.data);
  args.top_logprobs = static_cast<float*>(top_out.view.data);
  Ok(internal::LogprobsCuda(h->context(), args));
  std::vector<double> target_ref, top_ref;
  std::vector<int32_t> ids_ref;
  for (int64_t r = 0; r < rows; ++r) {
    std::vector<int32_t> order(vocab);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return logits.at(r, a) > logits.at(r, b);
    });
    double sum = 0;
    for (int64_t t = 0; t < vocab; ++t) sum += std::exp(logits.at(r, t));
    target_ref.push_back(logits.at(r, targets[r]) - std::log(sum));
    for (int32_t i = 0; i < num_top; ++i) {
      ids_ref.push_back(order[i]);
      top_ref.push_back(logits.at(r, order[i]) - std::log(sum));
    }
  }
  const std::string name =
      absl::StrCat("logprobs vocabulary ", vocab, " top ", num_top);
  h->Check(name, h->Download(target_out.view), target_ref, 1e-5);
  if (num_top == 0) return;
  h->Check(name + ", best", h->Download(top_out.view), top_ref, 1e-5);
  h->Expect(name + ", ids",
            h->Download<int32_t>(ids_out.view.data, rows * num_top) == ids_ref);
}

void CheckJoin(Harness* h, int64_t shard_cols, int64_t cols) {
  const int64_t world = 3, rows = 4;
  const Tensor shards = h->Random(world * rows, shard_cols, DType::kF32);
  Tensor out = h->Poisoned(rows, cols, DType::kF32);
  JoinShardsArgs args;
  args.shards = static_cast<const float*>(shards.view.data);
  args.world_size = world;
  args.shard_cols = shard_cols;
  args.out = out.view;
  Ok(internal::JoinShardsCuda(h->context(), args));
  std::vector<double> reference;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c)
      reference.push_back(shards.at(c / shard_cols * rows + r, c % shard_cols));
  }
  h->Check(absl::StrCat("join_shards ", shard_cols, " to ", cols),
           h->Download(out.view), reference, 0);
}

void TimeSample(Harness* h, int64_t num_rows, const char* what,
                const SamplingRow& row) {
  const int64_t vocab = 131072;
  const int sets = num_rows >= 64 ? 4 : 32;
  std::vector<Tensor> logits;
  for (int s = 0; s < sets; ++s)
    logits.push_back(h->Large(num_rows, vocab, DType::kF32, 3));
  const DeviceBuffer rows = h->Upload(std::vector<SamplingRow>(num_rows, row));
  const DeviceBuffer tokens = h->Upload(std::vector<int32_t>(num_rows, 0));
  h->Time(absl::StrCat("sample ", num_rows, " x 131072 ", what), sets,
          4.0 * num_rows * vocab, Roof::kRead, [&](int s) {
            SamplingArgs args;
            args.logits = logits[s].view;
            args.rows = reinterpret_cast<const SamplingRow*>(rows.get());
            args.token_ids = reinterpret_cast<int32_t*>(tokens.get());
            Ok(internal::SampleCuda(h->context(), args));
          });
}

}  // namespace

void BenchSampling(Harness* h) {
  // Slices of a row that are full and not, whole and broken vectors, empty
  // blocks.
  for (const int64_t vocab : {131072, 128256, 50257, 32000, 32001, 32003, 31999,
                              16388, 4096, 1000, 333, 323, 64, 33, 9})
    CheckSample(h, vocab);
  for (const int32_t num_top : {0, 1, 20}) CheckLogprobs(h, 131072, num_top);
  CheckLogprobs(h, 323, 5);
  CheckJoin(h, 400, 1200);
  CheckJoin(h, 109, 323);
  if (!h->times_wanted()) return;
  SamplingRow greedy, plain, top_p;
  greedy.temperature = 0;
  top_p.top_p = 0.9f;
  top_p.top_k = 50;
  for (const int64_t rows : {1, 64}) {
    TimeSample(h, rows, "greedy", greedy);
    TimeSample(h, rows, "temperature 1", plain);
    TimeSample(h, rows, "top_k 50, top_p 0.9", top_p);
  }
}

}  // namespace switchyard::bench
