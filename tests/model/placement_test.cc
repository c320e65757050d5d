#include "model/placement.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/hash/hash_testing.h"

namespace switchyard {
namespace {

ModelConfig Load(const std::string& name) {
  return LoadModelConfig("tests/testdata/" + name).value();
}

using Names = std::vector<std::string>;

TEST(PlacementTest, MainMixersAreTheDefault) {
  const ModelConfig pattern = Load("zoo-pattern");
  EXPECT_EQ(Placement::Main(pattern).Names(pattern),
            (Names{"attention", "gdn", "kda", "mamba", "attention", "attention",
                   "gdn"}));
}

TEST(PlacementTest, NamesAndIndicesAreTwoSpellings) {
  const ModelConfig config = Load("zoo-stochastic5");
  const Names names = {"swa", "mamba", "gdn"};
  const auto by_name = Placement::FromNames(config, names);
  ASSERT_TRUE(by_name.ok()) << by_name.status();
  EXPECT_EQ((*by_name)[0], 4);
  EXPECT_EQ(by_name->num_layers(), 3);
  EXPECT_EQ(by_name->Names(config), names);
  EXPECT_EQ(*Placement::FromIndices(config, by_name->mixers()), *by_name);
  EXPECT_NE(*by_name, Placement::Main(config));
}

TEST(PlacementTest, ErrorsNameTheLayerAndItsOptions) {
  const ModelConfig config = Load("zoo-stochastic5");
  auto status =
      Placement::FromNames(config, Names{"gdn", "rwkv", "x"}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(status.message(),
            "layer 1 has no mixer \"rwkv\"; it has attention, gdn, kda, mamba, "
            "swa");
  status = Placement::FromNames(config, Names{"gdn"}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(status.message(),
            "a placement of this model must name 3 mixers, one per layer; it "
            "names 1");
  status =
      Placement::FromIndices(config, std::vector<int32_t>{0, 0, 5}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(status.message(),
            "layer 2 has no mixer 5; it has 5 (attention, gdn, kda, mamba, "
            "swa)");
  EXPECT_FALSE(
      Placement::FromIndices(config, std::vector<int32_t>{0, -1, 0}).ok());
}

TEST(PlacementTest, HashesByValue) {
  const ModelConfig config = Load("zoo-stochastic5");
  std::vector<Placement> all = {Placement()};
  for (int32_t a = 0; a < 5; ++a) {
    for (int32_t b = 0; b < 5; ++b) {
      all.push_back(
          *Placement::FromIndices(config, std::vector<int32_t>{a, b, 0}));
    }
  }
  EXPECT_TRUE(absl::VerifyTypeImplementsAbslHashCorrectly(all));
}

}  // namespace
}  // namespace switchyard
