#include "model/safetensors.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "model/safetensors_writer.h"

namespace switchyard {
namespace {

using Json = nlohmann::ordered_json;

absl::Span<const std::byte> Bytes(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

// A file of this header and so many bytes of data.
std::string File(const std::string& header, size_t data_size) {
  std::string file;
  for (int i = 0; i < 8; ++i) {
    file.push_back(static_cast<char>(uint64_t{header.size()} >> (8 * i)));
  }
  return file + header + std::string(data_size, 'x');
}

Json Record(const std::string& dtype, Json shape, Json offsets) {
  return {{"dtype", dtype}, {"shape", shape}, {"data_offsets", offsets}};
}

// Two tensors: "a" BF16 [2, 3] and "b" F32 [2], 20 bytes.
Json Good() {
  Json header;
  header["__metadata__"] = {{"format", "pt"}};
  header["a"] = Record("BF16", {2, 3}, {0, 12});
  header["b"] = Record("F32", Json::array({2}), {12, 20});
  return header;
}

std::string Error(const std::string& file) {
  const absl::Status status =
      ParseSafetensors(Bytes(file), "f.safetensors").status();
  EXPECT_TRUE(status.ok() ||
              status.code() == absl::StatusCode::kInvalidArgument);
  return std::string(status.message());
}

std::string ErrorOf(const Json& header, size_t data_size = 20) {
  return Error(File(header.dump(), data_size));
}

TEST(SafetensorsTest, ReadsAGoodFile) {
  const std::string file = File(Good().dump(), 20);
  const auto tensors = ParseSafetensors(Bytes(file), "f");
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 2);
  const TensorView& a = tensors->at("a");
  EXPECT_EQ(a.dtype, DType::kBF16);
  EXPECT_EQ(a.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(a.bytes.size(), 12);
  EXPECT_EQ(reinterpret_cast<const char*>(tensors->at("b").bytes.data()),
            file.data() + file.size() - 8);
}

TEST(SafetensorsTest, AcceptsScalarsEmptyTensorsAndForeignTypes) {
  Json header;
  header["scalar"] = Record("F16", Json::array(), {0, 2});
  header["empty"] = Record("F32", {0, 5}, {2, 2});
  header["wide"] = Record("I64", Json::array({1}), {2, 10});
  const std::string file = File(header.dump(), 10);
  const auto tensors = ParseSafetensors(Bytes(file), "f");
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  EXPECT_FALSE(tensors->at("wide").dtype.has_value());
  EXPECT_EQ(tensors->at("wide").dtype_name, "I64");
}

TEST(SafetensorsTest, AnEmptyHeaderIsAnEmptyFile) {
  EXPECT_EQ(Error(File("{}", 0)), "");
}

TEST(SafetensorsTest, RefusesALyingLength) {
  EXPECT_EQ(Error("short"),
            "f.safetensors: has 5 bytes, too few for a safetensors file");
  std::string file = File(Good().dump(), 20);
  const std::string truncated = file.substr(0, 40);
  EXPECT_TRUE(
      absl::StrContains(Error(truncated), "does not fit its size of 40"));
  for (int i = 0; i < 8; ++i) file[i] = '\xff';
  EXPECT_TRUE(absl::StrContains(Error(file), "18446744073709551615"));
}

TEST(SafetensorsTest, RefusesABrokenHeader) {
  EXPECT_TRUE(absl::StartsWith(Error(File("{\"a\":", 0)),
                               "f.safetensors (header): not valid JSON"));
  EXPECT_EQ(Error(File("[]", 0)),
            "f.safetensors (header): must be a JSON object, is array");
  EXPECT_EQ(Error(File(R"({"a": {}, "a": {}})", 0)),
            "f.safetensors (header): has the key \"a\" twice in one object");
  Json header = Good();
  header["__metadata__"]["n"] = 3;
  EXPECT_EQ(ErrorOf(header),
            "f.safetensors: __metadata__ must map strings to strings");
}

TEST(SafetensorsTest, RefusesATruncatedFile) {
  EXPECT_EQ(ErrorOf(Good(), 19),
            "f.safetensors: tensor b: its data_offsets [12, 20] reach past the "
            "end of the data, which has 19 bytes; is the file truncated?");
}

TEST(SafetensorsTest, RefusesTrailingData) {
  EXPECT_EQ(ErrorOf(Good(), 25),
            "f.safetensors: the last 5 of 25 data bytes belong to no tensor");
}

TEST(SafetensorsTest, RefusesBadRecords) {
  const std::pair<Json, const char*> cases[] = {
      {3, "its record must be an object"},
      {Record("BF15", {2, 3}, {0, 12}), "unknown dtype \"BF15\""},
      {Record("BF16", "wide", {0, 12}), "its shape must be a list"},
      {Record("BF16", {2, -3}, {0, 12}),
       "its shape must be a list of non-negative integers"},
      {Record("BF16", {2, 3.0}, {0, 12}),
       "its shape must be a list of non-negative integers"},
      {Record("BF16", {1, 1, 1, 1, 1, 1, 1, 2, 3}, {0, 12}),
       "its shape has 9 dimensions, more than 8"},
      {Record("BF16", {4294967296, 4294967296, 6}, {0, 12}),
       "its shape is too large"},
      {Record("F64", {int64_t{1} << 60, 6}, {0, 12}), "its shape is too large"},
      {Record("BF16", {2, 4}, {0, 12}),
       "its shape and dtype need 16 bytes, its data_offsets span 12"},
      {Record("F4", Json::array({3}), {0, 12}),
       "its elements do not fill whole bytes"},
      {Record("BF16", {2, 3}, Json::array({0})),
       "its data_offsets must be two non-negative integers"},
      {Record("BF16", {2, 3}, {-1, 12}),
       "its data_offsets must be two non-negative integers"},
      {Record("BF16", {2, 3}, {12, 0}),
       "its data_offsets [12, 0] run backwards"},
      {Json{{"dtype", "BF16"}, {"shape", {2, 3}}},
       "its data_offsets must be two non-negative integers"},
      {Json{{"dtype", "BF16"}, {"data_offsets", {0, 12}}},
       "its shape must be a list"},
      {Json{{"shape", {2, 3}}, {"data_offsets", {0, 12}}},
       "its dtype must be a string"},
      {Json{{"strides", 1}}, "unknown field \"strides\" in its record"}};
  for (const auto& [record, message] : cases) {
    Json header = Good();
    header["a"] = record;
    EXPECT_EQ(ErrorOf(header),
              absl::StrCat("f.safetensors: tensor a: ", message));
  }
}

TEST(SafetensorsTest, RefusesOverlapsAndGaps) {
  Json header = Good();
  header["b"]["data_offsets"] = {11, 19};
  EXPECT_EQ(ErrorOf(header, 19),
            "f.safetensors: tensor b at [11, 19] overlaps tensor a, which ends "
            "at 12");
  header["b"]["data_offsets"] = {14, 22};
  EXPECT_EQ(ErrorOf(header, 22),
            "f.safetensors: 2 bytes before tensor b belong to no tensor");
}

TEST(SafetensorsTest, ChecksTheIndex) {
  const auto parse = [](const std::string& text) {
    return ParseSafetensorsIndex(text, "i.json");
  };
  EXPECT_EQ(parse(R"({"weight_map": {"a": "s1"}, "metadata": {}})")->at("a"),
            "s1");
  EXPECT_EQ(parse("{}").status().message(),
            "i.json: weight_map must be an object of tensor and file names");
  for (const char* name : {"\"../x\"", "\"\"", "7"}) {
    const absl::Status status =
        parse(absl::StrCat("{\"weight_map\": {\"a\": ", name, "}}")).status();
    EXPECT_TRUE(absl::StartsWith(status.message(),
                                 "i.json: weight_map of tensor a must be the "
                                 "name of a file beside the index"))
        << status;
  }
}

// A directory of shards, written as needed.
class ShardTest : public testing::Test {
 protected:
  ShardTest() {
    std::string pattern = absl::StrCat(testing::TempDir(), "/shardsXXXXXX");
    dir_ = mkdtemp(&pattern[0]);
  }

  void Shard(const std::string& name, const std::vector<std::string>& tensors) {
    static const float value = 1;
    TensorMap map;
    for (const std::string& tensor : tensors) {
      TensorView view;
      view.dtype_name = "F32";
      view.shape = {1};
      view.bytes = {reinterpret_cast<const std::byte*>(&value), sizeof(value)};
      map.emplace(tensor, view);
    }
    const absl::Status status =
        WriteSafetensors(absl::StrCat(dir_, "/", name), map);
    ASSERT_TRUE(status.ok()) << status;
  }

  void Index(const Json& weight_map) {
    std::ofstream(dir_ + "/model.safetensors.index.json")
        << Json{{"weight_map", weight_map}};
  }

  std::string OpenError() {
    std::string message(SafetensorsModel::Open(dir_).status().message());
    const size_t at = message.find(dir_ + "/");
    if (at == 0) message.erase(0, dir_.size() + 1);
    return message;
  }

  std::string dir_;
};

TEST_F(ShardTest, ReadsShards) {
  Shard("s1", {"a", "b"});
  Shard("s2", {"c"});
  Index({{"a", "s1"}, {"b", "s1"}, {"c", "s2"}});
  const auto model = SafetensorsModel::Open(dir_);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->tensors().size(), 3);
  EXPECT_EQ(model->paths()[model->Find("c")->file], dir_ + "/s2");
  EXPECT_EQ(model->Find("d"), nullptr);
}

TEST_F(ShardTest, SaysWhatIsNotThere) {
  EXPECT_EQ(SafetensorsModel::Open(dir_).status().message(),
            dir_ +
                ": has neither model.safetensors nor "
                "model.safetensors.index.json");
  Index({{"a", "s1"}});
  const absl::Status status = SafetensorsModel::Open(dir_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(status.message(), absl::StrCat("cannot open ", dir_,
                                           "/s1: No such file or directory"));
}

TEST_F(ShardTest, IndexAndShardsMustAgree) {
  Shard("s1", {"a"});
  Shard("s2", {"b"});
  Index({{"a", "s1"}, {"b", "s1"}, {"c", "s2"}});
  EXPECT_TRUE(absl::StartsWith(OpenError(), "s1: lacks the tensor b, which"));
  Index({{"a", "s1"}});
  Shard("s1", {"a", "x"});
  EXPECT_TRUE(absl::StartsWith(OpenError(), "s1: tensor x is not listed in"));
  Shard("s2", {"a"});
  Index({{"a", "s1"}, {"x", "s2"}});
  EXPECT_TRUE(absl::StartsWith(OpenError(), "s2: tensor a is also in "));
}

TEST_F(ShardTest, RefusesADirectoryInPlaceOfAFile) {
  Index({{"a", "."}});
  EXPECT_EQ(SafetensorsModel::Open(dir_).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(ShardTest, AnEmptyFileIsAnError) {
  std::ofstream(dir_ + "/model.safetensors").flush();
  EXPECT_EQ(OpenError(),
            "model.safetensors: has 0 bytes, too few for a safetensors file");
}

TEST(SafetensorsTest, ReadsTheTestCheckpoints) {
  for (const char* name : {"apriel2-tiny", "zoo-stochastic5", "zoo-pattern"}) {
    const auto model =
        SafetensorsModel::Open(absl::StrCat("tests/testdata/", name));
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_NE(model->Find("model.embed_tokens.weight"), nullptr);
  }
}

// Cutting a real file anywhere, or flipping any byte of its header, is noticed
// or harmless.
TEST(SafetensorsTest, DamageIsNoticed) {
  std::ifstream in("tests/testdata/zoo-pattern/model.safetensors",
                   std::ios::binary);
  const std::string good((std::istreambuf_iterator<char>(in)), {});
  ASSERT_EQ(Error(good), "");
  std::mt19937_64 random(3);
  for (int i = 0; i < 300; ++i) {
    EXPECT_NE(Error(good.substr(0, random() % good.size())), "");
    std::string flipped = good;
    flipped[random() % 10000] ^= 1 << random() % 8;
    Error(flipped);
  }
}

}  // namespace
}  // namespace switchyard
