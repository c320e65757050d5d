#include "kernels/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/philox.h"
#include "tests/kernels/device_fixture.h"

namespace switchyard {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// Known answers of Random123 (kat_vectors, philox4x32 10).
TEST(PhiloxTest, KnownAnswers) {
  const auto words = [](internal::PhiloxBlock counter, uint64_t key) {
    const internal::PhiloxBlock b = internal::Philox4x32(counter, key);
    return std::vector<uint32_t>(b.word, b.word + 4);
  };
  EXPECT_EQ(
      words({{0, 0, 0, 0}}, 0),
      (std::vector<uint32_t>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(
      words({{~0u, ~0u, ~0u, ~0u}}, ~uint64_t{0}),
      (std::vector<uint32_t>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(
      words({{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
            0x299f31d0a4093822),
      (std::vector<uint32_t>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

// What the contract says, step by step, with full sorts and in double.
int32_t Expected(std::vector<double> l, const SamplingRow& row,
                 const std::vector<std::pair<int32_t, float>>& bias,
                 const std::vector<uint16_t>& counts) {
  const int32_t vocab = static_cast<int32_t>(l.size());
  for (const auto& [id, value] : bias) l[id] += value;
  if (row.counts_row >= 0) {
    for (int32_t t = 0; t < vocab; ++t) {
      const uint16_t count = counts[row.counts_row * vocab + t];
      const int generated = count & 0x7fff;
      if (count != 0) {
        l[t] = l[t] > 0 ? l[t] / row.repetition_penalty
                        : l[t] * row.repetition_penalty;
      }
      l[t] -= double{row.frequency_penalty} * generated +
              row.presence_penalty * (generated > 0);
    }
  }
  std::vector<int32_t> order(vocab);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return l[a] > l[b]; });
  if (row.temperature == 0) return order[0];
  const double max = l[order[0]];
  for (double& v : l) v = (v - max) / row.temperature;
  if (row.top_k > 0 && row.top_k < vocab) order.resize(row.top_k);
  double total = 0, reached = 0;
  for (int32_t t : order) total += std::exp(l[t]);
  size_t kept = 0;
  while (kept < order.size() && (kept == 0 || reached < row.top_p * total)) {
    reached += std::exp(l[order[kept++]]);
  }
  if (row.top_p < 1) order.resize(kept);
  int32_t best = -1;
  double best_score = 0;
  std::sort(order.begin(), order.end());
  for (int32_t t : order) {
    if (std::exp(l[t]) < row.min_p) continue;
    const internal::PhiloxBlock block =
        internal::SamplingWords(row.seed, row.draw, t / 4);
    const double u = (block.word[t % 4] + 0.5) * 0x1p-32;
    const double score = l[t] - std::log(-std::log(u));
    if (best < 0 || score > best_score) {
      best = t;
      best_score = score;
    }
  }
  return best;
}

class SamplingTest : public OpTest {
 protected:
  std::vector<int32_t> Run(const HostMatrix& logits,
                           std::vector<SamplingRow> rows,
                           uint16_t* counts = nullptr,
                           const std::vector<int32_t>& bias_ids = {},
                           const std::vector<float>& bias_values = {}) {
    SamplingArgs args;
    args.logits = Upload(logits, logits.cols + 3);
    args.rows = UploadArray(rows);
    args.host_rows = rows.data();
    args.counts = counts;
    args.bias_ids = UploadArray(bias_ids);
    args.bias_values = UploadArray(bias_values);
    args.token_ids = UploadArray(std::vector<int32_t>(rows.size(), -1));
    SY_EXPECT_OK(Sample(context(), args));
    return DownloadArray(args.token_ids, rows.size());
  }
};

TEST_P(SamplingTest, EveryParameterAlone) {
  for (int32_t vocab : {5, 320, 2048, 33001}) {
    const int64_t num_rows = vocab > 10000 || FewRows() ? 12 : 60;
    HostMatrix logits = RandomMatrix(num_rows, vocab, DType::kF32, 2);
    std::vector<SamplingRow> rows(num_rows);
    for (int64_t r = 0; r < num_rows; ++r) {
      SamplingRow& row = rows[r];
      row.seed = random()();
      row.draw = static_cast<uint32_t>(r * 1000003);
      switch (r % 12) {
        case 1:
          row.temperature = 0;
          break;
        case 2:
          row.temperature = 0.3f;
          break;
        case 3:
          row.temperature = 2.5f;
          break;
        case 4:
          row.top_k = 1;
          break;
        case 5:
          row.top_k = 40;
          break;
        case 6:
          row.top_p = 0.9f;
          break;
        case 7:
          row.top_p = 0.1f;
          break;
        case 8:
          row.min_p = 0.05f;
          break;
        case 9:
          row.top_k = 50;
          row.top_p = 0.8f;
          row.min_p = 0.01f;
          break;
        case 10:
          row.top_p = 0.999f;
          row.temperature = 1.5f;
          break;
        case 11:
          row.temperature = 1e-30f;
          break;
      }
    }
    const std::vector<int32_t> tokens = Run(logits, rows);
    for (int64_t r = 0; r < num_rows; ++r) {
      const std::vector<double> l(logits.values.begin() + r * vocab,
                                  logits.values.begin() + (r + 1) * vocab);
      EXPECT_EQ(tokens[r], Expected(l, rows[r], {}, {}))
          << "vocabulary " << vocab << ", row " << r;
    }
  }
}

TEST_P(SamplingTest, BiasAndPenalties) {
  constexpr int32_t kVocab = 500;
  constexpr int64_t kRows = 40;
  const HostMatrix logits = RandomMatrix(kRows, kVocab, DType::kF32, 2);
  std::vector<uint16_t> counts(kRows * kVocab);
  std::vector<SamplingRow> rows(kRows);
  std::vector<int32_t> bias_ids;
  std::vector<float> bias_values;
  for (int64_t r = 0; r < kRows; ++r) {
    for (int i = 0; i < 100; ++i) {
      uint16_t& count = counts[r * kVocab + RandomInt(0, kVocab - 1)];
      count = static_cast<uint16_t>(RandomInt(0, 4)) |
              (RandomInt(0, 1) == 1 ? kCountsPromptBit : 0);
    }
    SamplingRow& row = rows[r];
    row.temperature = r % 2 == 0 ? 0 : 1;
    row.seed = random()();
    row.counts_row = r % 5 == 4 ? -1 : static_cast<int32_t>(kRows - 1 - r);
    row.frequency_penalty = 0.3f * (r % 3);
    row.presence_penalty = 0.5f * (r % 4);
    row.repetition_penalty = r % 7 == 0 ? 1.0f : 1.7f;
    row.bias_begin = static_cast<int32_t>(bias_ids.size());
    for (int i = 0; i < r % 4; ++i) {
      bias_ids.push_back(RandomInt(0, kVocab - 1));
      bias_values.push_back(i == 0 ? -kInf : 3.0f);
    }
    row.bias_end = static_cast<int32_t>(bias_ids.size());
  }
  uint16_t* device_counts = UploadArray(counts);
  const std::vector<int32_t> tokens =
      Run(logits, rows, device_counts, bias_ids, bias_values);
  std::vector<uint16_t> expected_counts = counts;
  for (int64_t r = 0; r < kRows; ++r) {
    const std::vector<double> l(logits.values.begin() + r * kVocab,
                                logits.values.begin() + (r + 1) * kVocab);
    std::vector<std::pair<int32_t, float>> bias;
    for (int32_t i = rows[r].bias_begin; i < rows[r].bias_end; ++i) {
      bias.emplace_back(bias_ids[i], bias_values[i]);
    }
    EXPECT_EQ(tokens[r], Expected(l, rows[r], bias, counts)) << "row " << r;
    if (rows[r].counts_row >= 0) {
      ++expected_counts[rows[r].counts_row * kVocab + tokens[r]];
    }
  }
  EXPECT_EQ(DownloadArray(device_counts, kRows * kVocab), expected_counts);
}

TEST_P(SamplingTest, CountsSaturate) {
  const HostMatrix logits{2, 2, DType::kF32, {5, 0, 5, 0}};
  uint16_t* counts = UploadArray(std::vector<uint16_t>{0x7fff, 0, 0xffff, 0});
  SamplingRow row;
  row.temperature = 0;
  row.counts_row = 0;
  std::vector<SamplingRow> rows = {row, row};
  rows[1].counts_row = 1;
  Run(logits, rows, counts);
  EXPECT_EQ(DownloadArray(counts, 4),
            (std::vector<uint16_t>{0x7fff, 0, 0xffff, 0}));
}

TEST_P(SamplingTest, TiesGoToTheLowerId) {
  constexpr int32_t kVocab = 100;
  const auto equal_logits = [](int64_t num_rows) {
    return HostMatrix{num_rows, kVocab, DType::kF32,
                      std::vector<float>(num_rows * kVocab, 1.25f)};
  };
  SamplingRow greedy, top_k, top_p;
  greedy.temperature = 0;
  top_k.top_k = 1;
  top_p.top_p = 0.009f;  // one of a hundred suffices
  EXPECT_EQ(Run(equal_logits(3), {greedy, top_k, top_p}),
            (std::vector<int32_t>{0, 0, 0}));
  // The two zeros are equal, too.
  HostMatrix zeros{3, kVocab, DType::kF32,
                   std::vector<float>(3 * kVocab, -1.0f)};
  for (int64_t row = 0; row < 3; ++row) {
    zeros.at(row, 30) = -0.0f;
    zeros.at(row, 50) = 0.0f;
  }
  EXPECT_EQ(Run(zeros, {greedy, top_k, top_p}),
            (std::vector<int32_t>{30, 30, 30}));
  // Exactly three of a hundred equals.
  top_k.top_k = 3;
  top_p.top_p = 0.0299f;
  std::vector<SamplingRow> rows;
  const uint32_t num_draws = FewRows() ? 2 : 8;
  for (uint32_t draw = 0; draw < num_draws; ++draw) {
    top_k.draw = top_p.draw = draw;
    rows.insert(rows.end(), {top_k, top_p});
  }
  std::vector<bool> seen(kVocab);
  for (int32_t token : Run(equal_logits(rows.size()), rows)) {
    ASSERT_LT(token, 3);
    seen[token] = true;
  }
  if (FewRows()) return;
  EXPECT_EQ(std::count(seen.begin(), seen.end(), true), 3);
}

TEST_P(SamplingTest, ForbiddenTokensAreNeverDrawn) {
  SamplingRow all, top_k, top_p, min_p;
  top_k.top_k = 30;
  top_p.top_p = 0.9999f;
  min_p.min_p = 1e-6f;
  std::vector<SamplingRow> rows;
  const uint32_t num_draws = FewRows() ? 2 : 8;
  for (uint32_t draw = 0; draw < num_draws; ++draw) {
    for (SamplingRow* row : {&all, &top_k, &top_p, &min_p}) {
      row->draw = draw;
      row->temperature = 5;
      rows.push_back(*row);
    }
  }
  HostMatrix logits = RandomMatrix(rows.size(), 64, DType::kF32);
  for (int64_t row = 0; row < logits.rows; ++row) {
    for (int32_t t = 0; t < 64; ++t) {
      if (t != 17 && t != 40) logits.at(row, t) = t % 2 == 0 ? -kInf : NAN;
    }
  }
  for (int32_t token : Run(logits, rows)) {
    EXPECT_TRUE(token == 17 || token == 40) << token;
  }
}

// NaN, infinite either way, and made so by what is applied to them: whatever
// the parameters, there is no token, nothing is counted, and the rows beside
// them draw as ever.
TEST_P(SamplingTest, ARowWithoutAFiniteLargestLogitHasNoToken) {
  for (int32_t vocab : {5, 777}) {
    SamplingRow greedy, all, top_k, top_p, min_p;
    greedy.temperature = 0;
    top_k.top_k = 3;
    top_p.top_p = 0.9f;
    min_p.min_p = 0.1f;
    std::vector<SamplingRow> rows;
    for (SamplingRow row : {greedy, all, top_k, top_p, min_p}) {
      row.seed = 5;
      row.bias_end = 0;
      rows.insert(rows.end(), 8, row);
    }
    const int64_t num_rows = rows.size();
    HostMatrix logits = RandomMatrix(num_rows, vocab, DType::kF32);
    std::vector<int32_t> bias_ids(vocab);
    std::iota(bias_ids.begin(), bias_ids.end(), 0);
    const std::vector<float> bias_values(vocab, -kInf);
    std::vector<uint16_t> counts(num_rows * vocab, 1);
    std::vector<bool> has_token(num_rows);
    for (int64_t r = 0; r < num_rows; ++r) {
      rows[r].counts_row = static_cast<int32_t>(r);
      switch (r % 8) {
        case 0:
          for (int32_t t = 0; t < vocab; ++t) logits.at(r, t) = NAN;
          break;
        case 1:
          for (int32_t t = 0; t < vocab; ++t) logits.at(r, t) = -kInf;
          break;
        case 2:
          for (int32_t t = 0; t < vocab; ++t)
            logits.at(r, t) = t % 2 == 0 ? NAN : -kInf;
          break;
        case 3:
          logits.at(r, vocab - 1) = kInf;
          break;
        case 4:
          rows[r].bias_end = vocab;
          break;
        case 5:
          logits.at(r, 1) = 1e30f;
          rows[r].repetition_penalty = 1e-30f;
          break;
        default:  // one that is finite is enough
          for (int32_t t = 0; t < vocab; ++t)
            if (t != 3) logits.at(r, t) = r % 8 == 6 ? NAN : -kInf;
          has_token[r] = true;
      }
    }
    uint16_t* device_counts = UploadArray(counts);
    const std::vector<int32_t> tokens =
        Run(logits, rows, device_counts, bias_ids, bias_values);
    for (int64_t r = 0; r < num_rows; ++r) {
      EXPECT_EQ(tokens[r], has_token[r] ? 3 : kNoToken)
          << "vocabulary " << vocab << ", row " << r;
      if (has_token[r]) ++counts[r * vocab + 3];
    }
    EXPECT_EQ(DownloadArray(device_counts, num_rows * vocab), counts);
  }
}

// Each row alone draws what it draws in the batch.
TEST_P(SamplingTest, TheBatchAroundDoesNotMatter) {
  const int num_rows = FewRows() ? 4 : 12;
  const HostMatrix logits = RandomMatrix(num_rows, 777, DType::kF32, 2);
  std::vector<SamplingRow> rows(num_rows);
  for (int r = 0; r < num_rows; ++r) {
    rows[r].seed = 42;
    rows[r].draw = r;
    rows[r].top_p = r % 3 == 0 ? 0.7f : 1;
    rows[r].top_k = r % 4 == 0 ? 20 : 0;
  }
  const std::vector<int32_t> together = Run(logits, rows);
  for (int r = 0; r < num_rows; ++r) {
    const HostMatrix row{1,
                         777,
                         DType::kF32,
                         {logits.values.begin() + r * 777,
                          logits.values.begin() + (r + 1) * 777}};
    EXPECT_EQ(Run(row, {rows[r]})[0], together[r]);
  }
}

// 20,000 draws against the probabilities: chi-square, over draws of one seed
// and over seeds of one draw.
TEST_P(SamplingTest, DrawsFollowTheDistribution) {
  constexpr int32_t kVocab = 24;
  constexpr int32_t kDraws = 20000;
  const HostMatrix one = RandomMatrix(1, kVocab, DType::kF32, 1.5f);
  for (int mode = 0; mode < 5; ++mode) {
    SamplingRow row;
    row.seed = 7;
    if (mode == 2) row.temperature = 0.7f;
    if (mode == 3) row.top_k = 9;
    if (mode == 4) row.top_p = 0.85f;
    HostMatrix logits{kDraws, kVocab, DType::kF32, {}};
    std::vector<SamplingRow> rows(kDraws, row);
    for (int32_t i = 0; i < kDraws; ++i) {
      logits.values.insert(logits.values.end(), one.values.begin(),
                           one.values.end());
      rows[i].draw = mode == 1 ? 3 : i;
      rows[i].seed = mode == 1 ? 1000 + i : 7;
    }
    std::vector<double> histogram(kVocab);
    for (int32_t token : Run(logits, rows)) ++histogram[token];

    std::vector<int32_t> order(kVocab);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return one.values[a] > one.values[b];
    });
    double total = 0;
    for (float l : one.values) total += std::exp(l / row.temperature);
    if (mode == 3) order.resize(9);
    if (mode == 4) {
      double reached = 0;
      size_t kept = 0;
      while (reached < 0.85 * total) {
        reached += std::exp(one.values[order[kept++]]);
      }
      order.resize(kept);
    }
    double kept_total = 0;
    for (int32_t t : order)
      kept_total += std::exp(one.values[t] / row.temperature);
    double chi_square = 0, drawn = 0;
    for (int32_t t : order) {
      const double expected =
          kDraws * std::exp(one.values[t] / row.temperature) / kept_total;
      chi_square +=
          (histogram[t] - expected) * (histogram[t] - expected) / expected;
      drawn += histogram[t];
    }
    EXPECT_EQ(drawn, kDraws) << "mode " << mode;
    // The 99.9th percentile is about n + 3.3 sqrt(2 n) for these n.
    const double n = static_cast<double>(order.size()) - 1;
    EXPECT_LT(chi_square, n + 3.3 * std::sqrt(2 * n) + 4) << "mode " << mode;
  }
}

TEST_P(SamplingTest, RejectsBadArguments) {
  const HostMatrix logits = RandomMatrix(1, 8, DType::kF32);
  const auto message = [&](const SamplingRow& row) {
    SamplingArgs args;
    args.logits = Upload(logits);
    args.rows = UploadArray(std::vector<SamplingRow>{row});
    args.host_rows = &row;
    args.token_ids = UploadArray(std::vector<int32_t>{0});
    const absl::Status status = Sample(context(), args);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    return std::string(status.message());
  };
  SamplingRow row;
  row.temperature = -1;
  EXPECT_EQ(message(row),
            "Sample: row 0 has temperature -1, should be at least 0");
  row = {};
  row.top_p = 0;
  EXPECT_EQ(message(row), "Sample: row 0 has top_p 0, should be in (0, 1]");
  row = {};
  row.counts_row = 0;
  EXPECT_EQ(message(row),
            "Sample: row 0 has penalties, but there are no counts");
}

SY_INSTANTIATE_LOGITS_OP_TEST(SamplingTest);

}  // namespace
}  // namespace switchyard
