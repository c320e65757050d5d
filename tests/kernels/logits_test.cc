#include "kernels/logits.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "kernels/sampling.h"
#include "tests/kernels/device_fixture.h"

namespace switchyard {
namespace {

// Logits are fp32 whatever the activations.
class LogitsTest : public OpTest {
 protected:
  struct Result {
    std::vector<float> targets;
    std::vector<int32_t> top_ids;
    std::vector<float> top;
  };

  Result Run(const HostMatrix& logits, const std::vector<int32_t>& targets,
             int32_t num_top) {
    LogprobsArgs args;
    args.logits = Upload(logits, logits.cols + 5);
    args.targets = UploadArray(targets);
    args.num_top = num_top;
    float* out =
        static_cast<float*>(Poisoned(1, logits.rows, DType::kF32).data);
    float* top =
        static_cast<float*>(Poisoned(logits.rows, 20, DType::kF32).data);
    int32_t* ids = UploadArray(std::vector<int32_t>(logits.rows * 20, -1));
    args.target_logprobs = out;
    if (num_top > 0) {
      args.top_ids = ids;
      args.top_logprobs = top;
    }
    SY_EXPECT_OK(Logprobs(context(), args));
    const std::vector<float> after = Download(args.logits).values;
    EXPECT_EQ(std::memcmp(after.data(), logits.values.data(),
                          after.size() * sizeof(float)),
              0)
        << "changed";
    return {DownloadArray(out, logits.rows),
            DownloadArray(ids, logits.rows * num_top),
            DownloadArray(top, logits.rows * num_top)};
  }
};

TEST_P(LogitsTest, LogprobsMatchTheDefinition) {
  for (int64_t vocab : {1, 20, 320, 2048, 50257}) {
    const int64_t rows = vocab > 10000 ? 2 : 7;
    const HostMatrix logits = RandomMatrix(rows, vocab, DType::kF32, 6);
    std::vector<int32_t> targets(rows);
    for (int32_t& t : targets)
      t = RandomInt(0, static_cast<int32_t>(vocab) - 1);
    for (int32_t num_top : {0, 1, 5, 20}) {
      if (num_top > vocab) continue;
      const Result result = Run(logits, targets, num_top);
      for (int64_t r = 0; r < rows; ++r) {
        double max = -HUGE_VAL, sum = 0;
        for (int64_t c = 0; c < vocab; ++c) {
          max = std::max<double>(max, logits.at(r, c));
        }
        for (int64_t c = 0; c < vocab; ++c) {
          sum += std::exp(logits.at(r, c) - max);
        }
        const double log_sum = max + std::log(sum);
        EXPECT_NEAR(result.targets[r], logits.at(r, targets[r]) - log_sum,
                    1e-5);
        std::vector<int32_t> order(vocab);
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
          return logits.at(r, a) > logits.at(r, b);
        });
        for (int32_t i = 0; i < num_top; ++i) {
          EXPECT_EQ(result.top_ids[r * num_top + i], order[i]);
          EXPECT_NEAR(result.top[r * num_top + i],
                      logits.at(r, order[i]) - log_sum, 1e-5);
        }
      }
    }
  }
}

TEST_P(LogitsTest, EqualLogitsGoByIdAndForbiddenOnesComeLast) {
  const float inf = std::numeric_limits<float>::infinity();
  const HostMatrix logits{2,
                          6,
                          DType::kF32,
                          {1, 3, 3, 1, 3, -inf,  //
                           -inf, -inf, 500, -inf, -500, -inf}};
  const Result result = Run(logits, {4, 0}, 6);
  EXPECT_EQ(result.top_ids, (std::vector<int32_t>{1, 2, 4, 0, 3, 5,  //
                                                  2, 4, 0, 1, 3, 5}));
  EXPECT_NEAR(result.targets[0], -std::log(3 + 2 * std::exp(-2.0)), 1e-6);
  EXPECT_EQ(result.targets[1], -inf);
  EXPECT_EQ(result.top[6], 0);
  EXPECT_EQ(result.top[7], -1000);
}

TEST_P(LogitsTest, ARowWithoutATokenIsNoError) {
  const float inf = std::numeric_limits<float>::infinity();
  const HostMatrix logits{5,
                          3,
                          DType::kF32,
                          {NAN, NAN, NAN,     //
                           -inf, -inf, -inf,  //
                           1, inf, 2,         //
                           1, 2, 3,           //
                           1, NAN, 2}};
  // Whatever is written for such a row, it is of tokens, and stays its own.
  const Result result =
      Run(logits, {kNoToken, kNoToken, kNoToken, 2, kNoToken}, 2);
  for (int32_t id : result.top_ids) {
    EXPECT_GE(id, 0);
    EXPECT_LT(id, 3);
  }
  for (int row : {0, 1, 2, 4}) EXPECT_TRUE(std::isnan(result.targets[row]));
  EXPECT_NEAR(result.targets[3], -std::log(1 + std::exp(-1.0) + std::exp(-2.0)),
              1e-6);
  EXPECT_EQ(result.top_ids[6], 2);
  EXPECT_EQ(result.top_ids[7], 1);
}

TEST_P(LogitsTest, JoinsShards) {
  for (const auto& [world_size, rows, shard_cols, cols] :
       {std::tuple{1, 3, 7, 7}, std::tuple{2, 5, 160, 320},
        std::tuple{4, 2, 33, 130}, std::tuple{4, 2, 3, 5}}) {
    const std::vector<float> shards =
        RandomVector(int64_t{world_size} * rows * shard_cols);
    JoinShardsArgs args;
    args.shards = UploadArray(shards);
    args.world_size = world_size;
    args.shard_cols = shard_cols;
    args.out = Poisoned(rows, cols, DType::kF32, cols + 3);
    SY_ASSERT_OK(JoinShards(context(), args));
    const HostMatrix out = Download(args.out);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        EXPECT_EQ(
            out.at(r, c),
            shards[(c / shard_cols * rows + r) * shard_cols + c % shard_cols]);
      }
    }
  }
}

TEST_P(LogitsTest, RejectsBadArguments) {
  LogprobsArgs args;
  args.logits = Poisoned(1, 8, DType::kF32);
  args.targets = UploadArray(std::vector<int32_t>{0});
  args.target_logprobs = UploadArray(std::vector<float>(1));
  args.num_top = 9;
  EXPECT_TRUE(absl::IsInvalidArgument(Logprobs(context(), args)));
  if (!cuda()) {
    args.num_top = 0;
    args.targets = UploadArray(std::vector<int32_t>{8});
    EXPECT_EQ(Logprobs(context(), args).message(),
              "Logprobs: the target of row 0 is 8, the vocabulary has 8");
  }
}

SY_INSTANTIATE_LOGITS_OP_TEST(LogitsTest);

}  // namespace
}  // namespace switchyard
