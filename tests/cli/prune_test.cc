#include "cli/prune.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "model/checkpoint.h"
#include "model/placement.h"

namespace switchyard {
namespace {

// Prunes, reads back, and compares every weight with the supernet's.
class PruneTest : public testing::Test {
 protected:
  void Run(const std::string& model, const std::string& placement) {
    const std::string from = "tests/testdata/" + model;
    out_dir_ = absl::StrCat(
        testing::TempDir(), "/pruned-",
        testing::UnitTest::GetInstance()->current_test_info()->name());
    std::ostringstream out;
    const absl::Status status = Prune({from, out_dir_, placement, ""}, out);
    ASSERT_TRUE(status.ok()) << status;

    const ModelConfig whole = LoadModelConfig(from).value();
    pruned_ = LoadModelConfig(out_dir_).value();
    const auto before = Checkpoint::Open(from, whole).value();
    const auto after = Checkpoint::Open(out_dir_, pruned_).value();
    ASSERT_EQ(pruned_.num_layers(), whole.num_layers());
    for (const TensorSpec& spec : EnumerateTensors(pruned_)) {
      std::string old_name = spec.name;
      if (spec.mixer >= 0 && whole.layers[spec.layer].stochastic) {
        old_name = absl::StrReplaceAll(
            old_name, {{".mixer.", absl::StrCat(".mixer.mixers.",
                                                kept_[spec.layer], ".")}});
      }
      const auto* old_entry = before->files().Find(old_name);
      const auto* new_entry = after->files().Find(spec.name);
      ASSERT_NE(old_entry, nullptr) << old_name;
      EXPECT_EQ(old_entry->view.dtype, new_entry->view.dtype);
      ASSERT_EQ(old_entry->view.bytes.size(), new_entry->view.bytes.size());
      EXPECT_EQ(std::memcmp(old_entry->view.bytes.data(),
                            new_entry->view.bytes.data(),
                            old_entry->view.bytes.size()),
                0)
          << spec.name;
    }
  }

  nlohmann::json Decoder() {
    return nlohmann::json::parse(
        std::ifstream(out_dir_ + "/config.json"))["decoder"];
  }

  std::vector<std::string> kept_;  // per layer
  std::string out_dir_;
  ModelConfig pruned_;
};

TEST_F(PruneTest, OneMixerEverywhereIsAFixedDecoder) {
  kept_.assign(6, "gdn");
  Run("apriel2-tiny", "all-gdn");
  EXPECT_EQ(Decoder()["type"], "fixed");
  EXPECT_EQ(pruned_.layers[0].mixers[0].type(), MixerType::kGdn);
  EXPECT_FALSE(pruned_.layers[0].stochastic);
  EXPECT_TRUE(std::filesystem::exists(out_dir_ + "/tokenizer.json"));
  EXPECT_TRUE(std::filesystem::exists(out_dir_ + "/generation_config.json"));
  EXPECT_FALSE(
      std::filesystem::exists(out_dir_ + "/model.safetensors.index.json"));
}

TEST_F(PruneTest, SeveralMixersAreAPattern) {
  kept_ = {"gdn", "swa", "mamba"};
  Run("zoo-stochastic5", absl::StrJoin(kept_, ","));
  EXPECT_EQ(Decoder()["type"], "pattern");
  EXPECT_EQ(Decoder()["pattern"].size(), 3);
  EXPECT_EQ(pruned_.layers[1].mixers[0].As<AttentionConfig>()->window_size, 16);
}

TEST_F(PruneTest, ARepeatingPlacementIsAShortPattern) {
  kept_ = {"kda", "gdn", "kda", "gdn", "kda", "gdn"};
  Run("apriel2-tiny", absl::StrJoin(kept_, ","));
  EXPECT_EQ(Decoder()["pattern"], (std::vector<std::string>{"kda", "gdn"}));
  EXPECT_EQ(Decoder()["blocks"].size(), 2);
}

TEST_F(PruneTest, AFixedModelStaysWhatItIs) {
  Run("zoo-pattern", "attention,gdn,kda,mamba,attention,attention,gdn");
  EXPECT_EQ(Fingerprint(pruned_),
            Fingerprint(LoadModelConfig("tests/testdata/zoo-pattern").value()));
}

TEST_F(PruneTest, RefusesToWriteOverSomething) {
  const std::string dir = absl::StrCat(testing::TempDir(), "/full");
  std::filesystem::create_directories(dir);
  std::ofstream(dir + "/precious") << "x";
  std::ostringstream out;
  const absl::Status status =
      Prune({"tests/testdata/apriel2-tiny", dir, "all-kda", ""}, out);
  EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(status.message(), dir + " must be empty or not exist");
}

TEST_F(PruneTest, RefusesAPlacementThatDoesNotFit) {
  const std::string dir = absl::StrCat(testing::TempDir(), "/never");
  std::ostringstream out;
  EXPECT_EQ(
      Prune({"tests/testdata/apriel2-tiny", dir, "gdn,kda", ""}, out).code(),
      absl::StatusCode::kFailedPrecondition);
  EXPECT_FALSE(std::filesystem::exists(dir));
}

}  // namespace
}  // namespace switchyard
