#include "kernels/embedding.h"

#include "kernels/sampling.h"
#include "tests/kernels/device_fixture.h"

namespace switchyard {
namespace {

class EmbeddingTest : public OpTest {};

TEST_P(EmbeddingTest, ShardsSumToTheTable) {
  constexpr int32_t kVocab = 100;
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (int64_t hidden : {8, 50, 256}) {
      const HostMatrix table = RandomMatrix(kVocab, hidden, dtype);
      std::vector<int32_t> ids(37);
      for (int32_t& id : ids) id = RandomInt(0, kVocab - 1);
      ids[0] = 0;
      ids[1] = kVocab - 1;
      ids[2] = 49;
      ids[3] = 50;
      std::vector<double> expected;
      for (int32_t id : ids) {
        for (int64_t c = 0; c < hidden; ++c)
          expected.push_back(table.at(id, c));
      }
      const MatrixView whole = Upload(table, hidden + 2);
      HostMatrix sum{static_cast<int64_t>(ids.size()), hidden, DType::kF32, {}};
      sum.values.resize(expected.size());
      for (int32_t begin : {0, 50}) {
        EmbeddingArgs args;
        args.token_ids = UploadArray(ids);
        args.table = whole.Rows(begin, 50);
        args.vocab_begin = begin;
        args.out = Poisoned(sum.rows, hidden, DType::kF32, hidden + 4);
        SY_ASSERT_OK(Embedding(context(), args));
        const HostMatrix part = Download(args.out);
        for (size_t i = 0; i < sum.values.size(); ++i) {
          sum.values[i] += part.values[i];
        }
      }
      ExpectNear(sum, expected, 0, DTypeName(dtype));
    }
  }
}

// What a step finds where the one before it could draw no token.
TEST_P(EmbeddingTest, AnIdThatNoRankHasIsZero) {
  constexpr int64_t kHidden = 24;
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    const HostMatrix table = RandomMatrix(6, kHidden, dtype);
    const MatrixView whole = Upload(table);
    for (int32_t begin : {0, 3}) {
      EmbeddingArgs args;
      args.token_ids = UploadArray(std::vector<int32_t>{kNoToken, 6, 4});
      args.table = whole.Rows(begin, 3);
      args.vocab_begin = begin;
      args.out = Poisoned(3, kHidden, DType::kF32);
      SY_ASSERT_OK(Embedding(context(), args));
      std::vector<double> expected(3 * kHidden, 0);
      for (int64_t c = 0; begin == 3 && c < kHidden; ++c)
        expected[2 * kHidden + c] = table.at(4, c);
      ExpectNear(Download(args.out), expected, 0, DTypeName(dtype));
    }
  }
}

TEST_P(EmbeddingTest, TakesMoreTokensThanAGridIsHigh) {
  constexpr int32_t kTokens = 70000, kVocab = 50;
  const HostMatrix table = RandomMatrix(kVocab, 8, DType::kF32);
  std::vector<int32_t> ids(kTokens);
  std::vector<double> expected;
  for (int32_t& id : ids) {
    id = RandomInt(0, kVocab - 1);
    for (int64_t c = 0; c < 8; ++c) expected.push_back(table.at(id, c));
  }
  EmbeddingArgs args;
  args.token_ids = UploadArray(ids);
  args.table = Upload(table);
  args.out = Poisoned(kTokens, 8, DType::kF32);
  SY_ASSERT_OK(Embedding(context(), args));
  ExpectNear(Download(args.out), expected, 0, "70000 tokens");
}

TEST_P(EmbeddingTest, RejectsATableOfAnotherWidth) {
  EmbeddingArgs args;
  args.token_ids = UploadArray(std::vector<int32_t>{0});
  args.table = Poisoned(10, 16, DType::kF32);
  args.out = Poisoned(1, 32, DType::kF32);
  EXPECT_TRUE(absl::IsInvalidArgument(Embedding(context(), args)));
}

SY_INSTANTIATE_OP_TEST(EmbeddingTest);

}  // namespace
}  // namespace switchyard
