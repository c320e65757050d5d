#include "kernels/paged_attention.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/rope.h"
#include "tests/kernels/device_fixture.h"

namespace switchyard {
namespace {

constexpr int64_t kMaxPositions = 700;
constexpr double kTheta = 10000.0;

struct Config {
  int32_t num_heads = 4;
  int32_t num_kv_heads = 2;
  int32_t head_size = 64;
  int32_t window = 0;
  int32_t block_size = 16;
  DType kv_dtype = DType::kF32;

  std::string name() const {
    return std::to_string(num_heads) + "/" + std::to_string(num_kv_heads) +
           " heads of " + std::to_string(head_size) + ", window " +
           std::to_string(window) + ", blocks of " +
           std::to_string(block_size) + ", cache " + DTypeName(kv_dtype);
  }
  int32_t ring_blocks() const {
    return window == 0 ? 0 : (window + block_size - 1) / block_size;
  }
  int64_t block_bytes() const {
    const int64_t bytes = int64_t{2} * num_kv_heads * block_size * head_size *
                          DTypeBytes(kv_dtype);
    return (bytes + kCacheUnitBytes - 1) / kCacheUnitBytes * kCacheUnitBytes;
  }
};

// A whole sequence's projections, before RoPE.
struct Sequence {
  HostMatrix q, k, v;  // [length, cols]
  int32_t done = 0;    // positions in the cache
};

HostMatrix Concatenate(const std::vector<HostMatrix>& parts) {
  HostMatrix all{0, parts[0].cols, parts[0].dtype, {}};
  for (const HostMatrix& part : parts) {
    all.rows += part.rows;
    all.values.insert(all.values.end(), part.values.begin(), part.values.end());
  }
  return all;
}

class PagedAttentionTest : public OpTest {
 protected:
  // Room for sequences of up to kMaxPositions; ids in random order.
  void MakeCache(const Config& config, int32_t num_seqs) {
    config_ = config;
    const int32_t entries =
        config.ring_blocks() > 0
            ? config.ring_blocks()
            : static_cast<int32_t>((kMaxPositions + config.block_size - 1) /
                                   config.block_size);
    std::vector<uint32_t> ids(num_seqs * entries);
    std::iota(ids.begin(), ids.end(), 1u);  // id 0 is nobody's
    std::shuffle(ids.begin(), ids.end(), random());
    const int64_t units = config.block_bytes() / kCacheUnitBytes;
    for (uint32_t& id : ids) id *= static_cast<uint32_t>(units);
    cache_.arena = PoisonedBytes((ids.size() + 1) * config.block_bytes());
    num_entries_ = entries;
    cache_.block_size = config.block_size;
    cache_.ring_blocks = config.ring_blocks();
    host_ids_ = ids;
    rope_table_ =
        UploadArray(MakeRopeTable(kMaxPositions, config.head_size, kTheta));
  }

  Sequence MakeSequence(int32_t length) {
    const int64_t kv_cols = int64_t{config_.num_kv_heads} * config_.head_size;
    return {RandomMatrix(length, int64_t{config_.num_heads} * config_.head_size,
                         activation()),
            RandomMatrix(length, kv_cols, activation()),
            RandomMatrix(length, kv_cols, activation())};
  }

  // One step: num_new[i] more tokens of seqs[which[i]]; returns each one's
  // rows.
  std::vector<HostMatrix> Step(std::vector<Sequence>* seqs,
                               const std::vector<int>& which,
                               const std::vector<int32_t>& num_new) {
    const int64_t q_cols = int64_t{config_.num_heads} * config_.head_size;
    const int64_t kv_cols = int64_t{config_.num_kv_heads} * config_.head_size;
    std::vector<std::pair<int32_t, int32_t>> lengths;
    std::vector<uint32_t> ids;
    std::vector<int32_t> begins = {0};
    HostMatrix fused{0, q_cols + 2 * kv_cols, activation(), {}};
    for (size_t i = 0; i < which.size(); ++i) {
      Sequence& seq = (*seqs)[which[i]];
      lengths.emplace_back(seq.done, num_new[i]);
      // Only the entries that the sequence needs.
      const int32_t needed = std::min(
          num_entries_, (seq.done + num_new[i] + config_.block_size - 1) /
                            config_.block_size);
      const auto begin = host_ids_.begin() + which[i] * num_entries_;
      ids.insert(ids.end(), begin, begin + needed);
      begins.push_back(static_cast<int32_t>(ids.size()));
      for (int32_t t = seq.done; t < seq.done + num_new[i]; ++t) {
        for (const HostMatrix* part : {&seq.q, &seq.k, &seq.v}) {
          const auto row = part->values.begin() + t * part->cols;
          fused.values.insert(fused.values.end(), row, row + part->cols);
        }
        ++fused.rows;
      }
      seq.done += num_new[i];
    }
    const MatrixView qkv = Upload(fused);
    PagedAttentionArgs args;
    args.batch = MakeBatch(lengths);
    args.blocks = cache_;
    args.blocks.ids = UploadArray(ids);
    args.blocks.begins = UploadArray(begins);
    args.blocks.host_begins = begins.data();
    args.kv_dtype = config_.kv_dtype;
    args.num_heads = config_.num_heads;
    args.num_kv_heads = config_.num_kv_heads;
    args.head_size = config_.head_size;
    args.window = config_.window;
    args.scale = 1 / std::sqrt(static_cast<float>(config_.head_size));
    args.q = qkv.Columns(0, q_cols);
    args.k = qkv.Columns(q_cols, kv_cols);
    args.v = qkv.Columns(q_cols + kv_cols, kv_cols);
    args.rope_table = rope_table_;
    args.rope_positions = kMaxPositions;
    args.out = Poisoned(fused.rows, q_cols, activation());
    SY_EXPECT_OK(PagedAttention(context(), args));
    const HostMatrix out = Download(args.out);
    std::vector<HostMatrix> rows;
    auto from = out.values.begin();
    for (int32_t n : num_new) {
      rows.push_back({n, q_cols, activation(), {from, from + n * q_cols}});
      from += n * q_cols;
    }
    return rows;
  }

  // A prompt in chunks of several sizes gives the rows of the whole prompt.
  // Small chunks begin after a large one, and cross blocks and ring ends.
  void ExpectChunkingDoesNotMatter(const Config& config) {
    constexpr int32_t kLength = 300;
    MakeCache(config, 1);
    std::vector<Sequence> seqs = {MakeSequence(kLength)};
    const HostMatrix whole = Step(&seqs, {0}, {kLength})[0];
    for (const auto& [first, most] :
         {std::pair(240, 1), std::pair(187, 5), std::pair(1, 17),
          std::pair(3, 64), std::pair(1, 150)}) {
      MakeCache(config, 1);
      seqs[0].done = 0;
      std::vector<HostMatrix> parts;
      while (seqs[0].done < kLength) {
        const int32_t n = seqs[0].done == 0 ? first
                                            : std::min(RandomInt(1, most),
                                                       kLength - seqs[0].done);
        parts.push_back(Step(&seqs, {0}, {n})[0]);
      }
      ExpectSame(Concatenate(parts), whole,
                 config.name() + ", chunks of up to " + std::to_string(most),
                 Tolerance());
    }
  }

  // The definition, in double.
  std::vector<double> Expected(const Sequence& seq, int32_t length) {
    const int32_t d = config_.head_size, half = d / 2;
    const auto rotated = [&](const HostMatrix& m, int32_t t, int32_t head) {
      std::vector<double> x(d);
      for (int32_t i = 0; i < half; ++i) {
        const double angle = t * std::pow(kTheta, -2.0 * i / d);
        const double a = m.at(t, head * d + i),
                     b = m.at(t, head * d + half + i);
        x[i] = a * std::cos(angle) - b * std::sin(angle);
        x[half + i] = b * std::cos(angle) + a * std::sin(angle);
      }
      return x;
    };
    const int32_t group = config_.num_heads / config_.num_kv_heads;
    std::vector<double> out(length * int64_t{config_.num_heads} * d);
    for (int32_t h = 0; h < config_.num_heads; ++h) {
      std::vector<std::vector<double>> keys;
      for (int32_t t = 0; t < length; ++t) {
        keys.push_back(rotated(seq.k, t, h / group));
      }
      for (int32_t t = 0; t < length; ++t) {
        const std::vector<double> q = rotated(seq.q, t, h);
        const int32_t first =
            config_.window == 0 ? 0 : std::max(0, t - config_.window + 1);
        std::vector<double> weights;
        double max = -HUGE_VAL, sum = 0;
        for (int32_t j = first; j <= t; ++j) {
          double score = 0;
          for (int32_t i = 0; i < d; ++i) score += q[i] * keys[j][i];
          weights.push_back(score / std::sqrt(static_cast<double>(d)));
          max = std::max(max, weights.back());
        }
        for (double& w : weights) sum += w = std::exp(w - max);
        double* row = &out[(int64_t{t} * config_.num_heads + h) * d];
        for (int32_t j = first; j <= t; ++j) {
          for (int32_t i = 0; i < d; ++i) {
            row[i] += weights[j - first] / sum * seq.v.at(j, h / group * d + i);
          }
        }
      }
    }
    return out;
  }

  // What rounding of keys and values to bf16 may do.
  double Tolerance() const {
    return config_.kv_dtype == DType::kF32 && activation() == DType::kF32
               ? 2e-5
               : 2e-2;
  }

  Config config_;
  BlockTables cache_;
  std::vector<uint32_t> host_ids_;  // [sequences, num_entries_]
  int32_t num_entries_ = 0;
  const float* rope_table_ = nullptr;
};

TEST_P(PagedAttentionTest, PrefillThenDecodeMatchesTheDefinition) {
  for (const Config& config : {
           Config{4, 2, 64},
           Config{8, 4, 16},
           Config{6, 6, 16, 8},
           Config{4, 2, 64, 64},
           Config{8, 4, 16, 16},
           Config{4, 1, 128, 24},
           Config{2, 2, 256},
           Config{4, 2, 64, 20, 8},
           Config{4, 2, 64, 0, 32},
           Config{4, 2, 64, 0, 16, DType::kBF16},
           Config{4, 2, 64, 33, 16, DType::kBF16},
       }) {
    MakeCache(config, 1);
    constexpr int32_t kPrompt = 131, kLength = 135;
    std::vector<Sequence> seqs = {MakeSequence(kLength)};
    std::vector<HostMatrix> parts = {Step(&seqs, {0}, {kPrompt})[0]};
    while (seqs[0].done < kLength) parts.push_back(Step(&seqs, {0}, {1})[0]);
    ExpectNear(Concatenate(parts), Expected(seqs[0], kLength), Tolerance(),
               config.name());
  }
}

// Any way of cutting a prompt into chunks gives the same bits: within a tile,
// across tiles and blocks, in a ring that wraps within one chunk.
TEST_P(PagedAttentionTest, ChunkingDoesNotMatter) {
  for (const Config& config : {
           Config{4, 2, 64},
           Config{6, 6, 16, 8},
           Config{2, 1, 64, 0, 16, DType::kBF16},
       }) {
    ExpectChunkingDoesNotMatter(config);
  }
}

TEST_P(PagedAttentionTest, ChunkingDoesNotMatterInAWindow) {
  for (const Config& config : {
           Config{4, 2, 64, 64},
           Config{4, 2, 32, 70},
           Config{2, 1, 64, 64, 16, DType::kBF16},
       }) {
    ExpectChunkingDoesNotMatter(config);
  }
}

// Decodes and chunks of several sequences in one step: each is what it is
// alone.
TEST_P(PagedAttentionTest, TheBatchAroundDoesNotMatter) {
  for (int32_t window : {0, 40}) {
    const Config config{4, 2, 64, window};
    MakeCache(config, 5);
    std::vector<Sequence> seqs;
    for (int32_t length : {90, 33, 200, 1, 64}) {
      seqs.push_back(MakeSequence(length));
    }
    std::vector<std::vector<HostMatrix>> parts(seqs.size());
    const auto step = [&](std::vector<int> which, std::vector<int32_t> counts) {
      std::vector<HostMatrix> rows = Step(&seqs, which, counts);
      for (size_t i = 0; i < which.size(); ++i) {
        parts[which[i]].push_back(rows[i]);
      }
    };
    step({0, 1, 2}, {88, 32, 50});
    step({0, 1, 3, 2, 4}, {1, 1, 1, 100, 63});
    step({0, 4, 2}, {1, 1, 50});
    for (size_t s = 0; s < seqs.size(); ++s) {
      const int32_t length = static_cast<int32_t>(seqs[s].q.rows);
      ASSERT_EQ(seqs[s].done, length);
      ExpectNear(Concatenate(parts[s]), Expected(seqs[s], length), Tolerance(),
                 "sequence " + std::to_string(s));
    }
    // Alone, in one chunk, on blocks that hold nothing.
    std::vector<std::vector<HostMatrix>> together = parts;
    MakeCache(config, 5);
    for (size_t s = 0; s < seqs.size(); ++s) {
      seqs[s].done = 0;
      const HostMatrix alone = Step(&seqs, {static_cast<int>(s)},
                                    {static_cast<int32_t>(seqs[s].q.rows)})[0];
      ExpectSame(Concatenate(together[s]), alone,
                 "sequence " + std::to_string(s), Tolerance());
    }
  }
}

TEST_P(PagedAttentionTest, RejectsBadArguments) {
  MakeCache(Config{4, 2, 64, 40}, 1);
  PagedAttentionArgs args;
  args.batch = MakeBatch({{0, 2}});
  args.blocks = cache_;
  args.blocks.ids = UploadArray(host_ids_);
  const std::vector<int32_t> begins = {0, 1};
  args.blocks.begins = UploadArray(begins);
  args.blocks.host_begins = begins.data();
  args.num_heads = 4;
  args.num_kv_heads = 2;
  args.head_size = 64;
  args.window = 40;
  args.scale = 0.125f;
  args.q = Poisoned(2, 256, activation());
  args.k = args.v = Poisoned(2, 128, activation());
  args.out = Poisoned(2, 256, activation());
  args.rope_table = rope_table_;
  args.rope_positions = kMaxPositions;
  const auto expect_invalid = [&](const PagedAttentionArgs& bad,
                                  const std::string& what) {
    const absl::Status status = PagedAttention(context(), bad);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_NE(std::string(status.message()).find(what), std::string::npos)
        << status;
  };
  PagedAttentionArgs bad = args;
  bad.num_kv_heads = 3;
  expect_invalid(bad, "num_kv_heads 3 does not divide num_heads 4");
  bad = args;
  bad.window = 100;
  expect_invalid(bad, "does not hold a window of 100");
  bad = args;
  bad.blocks.block_size = 12;
  expect_invalid(bad, "power of two");
  bad = args;
  bad.rope_positions = 1;
  expect_invalid(bad, "reaches 2 positions, the rope table has 1");
  bad = args;
  bad.batch.max_total_tokens = 1;
  expect_invalid(bad, "reaches 2 positions, batch.max_total_tokens is 1");
  bad = args;
  bad.batch = MakeBatch({{15, 2}});
  expect_invalid(bad, "sequence 0 needs 2 blocks, its table has 1");
  bad = args;
  bad.blocks.begins = nullptr;
  expect_invalid(bad, "blocks.begins");
  bad = args;
  bad.kv_dtype = DType::kF16;
  expect_invalid(bad, "kv_dtype is fp16");
  bad = args;
  bad.k = Poisoned(2, 256, activation());
  expect_invalid(bad, "k is [2, 256], should be [2, 128]");
}

SY_INSTANTIATE_OP_TEST(PagedAttentionTest);

}  // namespace
}  // namespace switchyard
