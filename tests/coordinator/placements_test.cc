#include "coordinator/placements.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "tests/coordinator/supernet.h"

namespace switchyard {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

v1::Placement ByPreset(const std::string& name) {
  v1::Placement placement;
  placement.set_preset(name);
  return placement;
}

v1::Placement ByMixers(const std::vector<std::string>& names) {
  v1::Placement placement;
  placement.mutable_mixers();
  for (const std::string& name : names) {
    placement.mutable_mixers()->add_names(name);
  }
  return placement;
}

class PlacementsTest : public testing::Test {
 protected:
  PlacementTable MakeTable(Presets presets = {}, std::string text = "") {
    return PlacementTable::Create(&config_, std::move(presets), text).value();
  }
  Placement Of(const std::vector<int32_t>& mixers) const {
    return MakePlacement(config_, mixers);
  }

  ModelConfig config_ = MakeSupernet(3);
};

TEST_F(PlacementsTest, ParsesListsAndSingleNames) {
  const auto presets = ParsePresets(
      R"({"presets": {"mixed": ["attention", "gdn", "kda"], "fast": "gdn"}})",
      "p.json", config_);
  ASSERT_TRUE(presets.ok()) << presets.status();
  EXPECT_EQ(*presets, (Presets{{"mixed", Of({kAttention, kGdn, kKda})},
                               {"fast", Of({kGdn, kGdn, kGdn})}}));
  EXPECT_TRUE(ParsePresets(R"({"presets": {}})", "p.json", config_)->empty());
}

TEST_F(PlacementsTest, BadFilesSayWhatAndWhere) {
  struct Case {
    const char* json;
    absl::StatusCode code;
    const char* says;
  };
  const auto kInvalid = absl::StatusCode::kInvalidArgument;
  const auto kPrecondition = absl::StatusCode::kFailedPrecondition;
  for (const Case& c : std::vector<Case>{
           {"{", kInvalid, ""},
           {"[]", kInvalid, ""},
           {"{}", kInvalid, "\"presets\" must be an object"},
           {R"({"presets": []})", kInvalid, "\"presets\" must be an object"},
           {R"({"presets": {}, "preset": {}})", kInvalid,
            "unknown field \"preset\""},
           {R"({"presets": {"a": "gdn", "a": "kda"}})", kInvalid, "\"a\""},
           {R"({"presets": {"": "gdn"}})", kInvalid, "name must be"},
           {R"({"presets": {"a,b": "gdn"}})", kInvalid, "preset \"a,b\""},
           {R"({"presets": {"a": 3}})", kInvalid, "preset \"a\": must be"},
           {R"({"presets": {"a": ["gdn", 3, "kda"]}})", kInvalid,
            "preset \"a\": must be"},
           {R"({"presets": {"a": ["gdn"]}})", kPrecondition, "preset \"a\": "},
           {R"({"presets": {"a": "rnn"}})", kPrecondition,
            "preset \"a\": layer 0 has no mixer \"rnn\""},
       }) {
    const auto presets = ParsePresets(c.json, "p.json", config_);
    EXPECT_EQ(presets.status().code(), c.code) << c.json;
    EXPECT_THAT(std::string(presets.status().message()), HasSubstr(c.says))
        << c.json;
    EXPECT_THAT(std::string(presets.status().message()), StartsWith("p.json"))
        << c.json;
  }
}

TEST_F(PlacementsTest, LoadsFilesAndNamesMissingOnes) {
  const std::string dir = std::getenv("TEST_TMPDIR");
  const std::string path = dir + "/presets.json";
  std::ofstream(path) << R"({"presets": {"fast": "gdn"}})";
  EXPECT_EQ(LoadPresets(path, config_)->count("fast"), 1u);

  for (const std::string& bad : {dir + "/absent.json", dir}) {
    const auto missing = LoadPresets(bad, config_);
    EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound) << bad;
    EXPECT_THAT(std::string(missing.status().message()), HasSubstr(bad));
  }
}

TEST_F(PlacementsTest, EveryNameThatAllLayersOfferIsAPreset) {
  config_.layers[1].mixers.pop_back();  // no mamba there
  const PlacementTable table = MakeTable({{"all-kda", Of({kGdn, kKda, kKda})}});
  EXPECT_EQ(table.presets(), (Presets{{"all-attention", Of({0, 0, 0})},
                                      {"all-window", Of({1, 1, 1})},
                                      {"all-gdn", Of({2, 2, 2})},
                                      {"all-kda", Of({kGdn, kKda, kKda})}}));
}

TEST_F(PlacementsTest, ResolvesRequests) {
  const PlacementTable table = MakeTable();
  const auto preset = table.Resolve(ByPreset("all-gdn"));
  EXPECT_EQ(preset->placement, Of({kGdn, kGdn, kGdn}));
  EXPECT_EQ(preset->preset, "all-gdn");
  const auto listed = table.Resolve(ByMixers({"gdn", "mamba", "window"}));
  EXPECT_EQ(listed->placement, Of({kGdn, kMamba, kWindow}));
  EXPECT_EQ(listed->preset, "");

  const auto unknown = table.Resolve(ByPreset("slow"));
  EXPECT_EQ(unknown.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(unknown.status().message()),
              HasSubstr("placement.preset: no preset \"slow\"; there are "
                        "all-attention, all-gdn"));
  for (const auto& names : std::vector<std::vector<std::string>>{
           {}, {"gdn"}, {"gdn", "gdn", "rnn"}}) {
    const auto bad = table.Resolve(ByMixers(names));
    EXPECT_EQ(bad.status().code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(bad.status().message()),
                HasSubstr("placement.mixers"));
  }
  EXPECT_EQ(table.Resolve(v1::Placement()).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(PlacementsTest, ResolvesTheCommandLinesNotation) {
  const PlacementTable table = MakeTable();
  EXPECT_EQ(table.ResolveText("all-kda")->placement, Of({3, 3, 3}));
  EXPECT_EQ(table.ResolveText("gdn,kda,mamba")->placement, Of({2, 3, 4}));
  EXPECT_EQ(table.ResolveText("gdn").status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(table.ResolveText("gdn,kda").status().code(),
            absl::StatusCode::kFailedPrecondition);

  ModelConfig one_layer = MakeSupernet(1);
  const auto small = PlacementTable::Create(&one_layer, {}, "gdn");
  ASSERT_TRUE(small.ok()) << small.status();
  EXPECT_EQ(small->default_placement(), MakePlacement(one_layer, {kGdn}));
}

TEST_F(PlacementsTest, TheDefaultStartsAsAskedInTheFirstEpoch) {
  EXPECT_EQ(MakeTable().default_placement(), Of({0, 0, 0}));
  EXPECT_EQ(MakeTable().epoch(), 1u);
  const PlacementTable table = MakeTable({}, "all-gdn");
  EXPECT_EQ(table.default_placement(), Of({2, 2, 2}));
  EXPECT_EQ(table.default_preset(), "all-gdn");
  EXPECT_EQ(table.epoch(), 1u);
  EXPECT_EQ(PlacementTable::Create(&config_, {}, "none").status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(PlacementsTest, EveryChangeIsAnEpochAndARefusalIsNone) {
  PlacementTable table = MakeTable();
  EXPECT_EQ(*table.Define("mine", Of({2, 0, 2})), 2u);
  EXPECT_EQ(table.SetDefault(*table.Resolve(ByPreset("mine"))), 3u);
  EXPECT_EQ(table.default_preset(), "mine");
  EXPECT_EQ(table.default_placement(), Of({2, 0, 2}));

  EXPECT_EQ(table.Define("", Of({2, 0, 2})).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(table.Define("a b", Of({2, 0, 2})).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(
      std::string(table.Define("a,b", v1::MixerList()).status().message()),
      HasSubstr("preset.name: "));
  EXPECT_EQ(table.Define("ab", v1::MixerList()).status(),
            absl::FailedPreconditionError(
                "preset.placement: a placement of this model must name 3 "
                "mixers, one per layer; it names 0"));
  EXPECT_EQ(table.Delete("none").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(table.epoch(), 3u);

  EXPECT_EQ(*table.Delete("mine"), 4u);
  EXPECT_EQ(table.default_preset(), "");
  EXPECT_EQ(table.default_placement(), Of({2, 0, 2}));
}

TEST_F(PlacementsTest, TheDefaultKeepsItsNameWhileItMeansTheSame) {
  PlacementTable table = MakeTable({}, "all-gdn");
  ASSERT_TRUE(table.Define("all-gdn", Of({2, 2, 2})).ok());
  EXPECT_EQ(table.default_preset(), "all-gdn");
  ASSERT_TRUE(table.Define("all-gdn", Of({2, 2, 3})).ok());
  EXPECT_EQ(table.default_preset(), "");
  EXPECT_EQ(table.default_placement(), Of({2, 2, 2}));
}

TEST_F(PlacementsTest, ToProtoNamesEveryLayer) {
  const v1::MixerList list = MakeTable().ToProto(Of({0, 4, 1}));
  EXPECT_EQ(std::vector<std::string>(list.names().begin(), list.names().end()),
            (std::vector<std::string>{"attention", "mamba", "window"}));
}

TEST_F(PlacementsTest, ANewFileReplacesWhatTheFileSaid) {
  PlacementTable table = MakeTable(
      {{"a", Of({2, 2, 2})}, {"b", Of({3, 3, 3})}, {"all-kda", Of({2, 3, 3})}});
  const Presets before = table.presets();
  const auto change =
      table.ReplaceFilePresets({{"a", Of({2, 2, 3})}, {"c", Of({0, 0, 0})}});
  ASSERT_TRUE(change.ok()) << change.status();
  EXPECT_THAT(change->added, testing::ElementsAre("c"));
  // Without the file's own, all-kda is what it says.
  EXPECT_THAT(change->changed, testing::UnorderedElementsAre("a", "all-kda"));
  EXPECT_THAT(change->removed, testing::ElementsAre("b"));
  EXPECT_EQ(table.epoch(), 2u);
  Presets after = before;
  after.erase("b");
  after.at("a") = Of({2, 2, 3});
  after.at("all-kda") = Of({3, 3, 3});
  after.emplace("c", Of({0, 0, 0}));
  EXPECT_EQ(table.presets(), after);

  EXPECT_FALSE(
      table.ReplaceFilePresets({{"a", Of({2, 2, 3})}, {"c", Of({0, 0, 0})}})
          ->any());
  EXPECT_EQ(table.epoch(), 2u) << "nothing changed";
}

TEST_F(PlacementsTest, DefinedPresetsOutliveTheFile) {
  PlacementTable table = MakeTable({{"a", Of({2, 2, 2})}});
  ASSERT_TRUE(table.Define("mine", Of({0, 1, 2})).ok());
  ASSERT_TRUE(table.Define("a", Of({4, 4, 4})).ok());
  auto change = table.ReplaceFilePresets({{"mine", Of({3, 3, 3})}});
  ASSERT_TRUE(change.ok()) << change.status();
  EXPECT_FALSE(change->any());
  EXPECT_THAT(change->overridden, testing::ElementsAre("mine"));
  EXPECT_EQ(table.presets().at("mine"), Of({0, 1, 2}));
  EXPECT_EQ(table.presets().at("a"), Of({4, 4, 4}));

  // Deleted, the name is the file's again when the file is read next.
  ASSERT_TRUE(table.Delete("mine").ok());
  change = table.ReplaceFilePresets({{"mine", Of({3, 3, 3})}});
  EXPECT_THAT(change->added, testing::ElementsAre("mine"));
  EXPECT_EQ(table.presets().at("mine"), Of({3, 3, 3}));
}

TEST_F(PlacementsTest, TheDefaultsPresetDoesNotVanish) {
  PlacementTable table =
      MakeTable({{"prod", Of({2, 2, 2})}, {"other", Of({0, 0, 0})}}, "prod");
  const Presets before = table.presets();
  const auto refused =
      table.ReplaceFilePresets({{"new", Of({0, 0, 1})}}).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("\"prod\""));
  EXPECT_EQ(table.presets(), before);
  EXPECT_EQ(table.epoch(), 1u);

  // Another meaning of the name does not move the default.
  const auto change = table.ReplaceFilePresets({{"prod", Of({3, 3, 3})}});
  ASSERT_TRUE(change.ok()) << change.status();
  EXPECT_EQ(change->former_default, "prod");
  EXPECT_EQ(table.default_placement(), Of({2, 2, 2}));
  EXPECT_EQ(table.default_preset(), "");
  // Now nothing hangs on it.
  EXPECT_TRUE(table.ReplaceFilePresets({}).ok());
}

}  // namespace
}  // namespace switchyard
