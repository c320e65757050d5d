#include "coordinator/presets_watcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "tests/coordinator/supernet.h"

namespace switchyard {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::StartsWith;

class PresetsWatcherTest : public testing::Test {
 protected:
  static std::string MakeDir() {
    std::string pattern = std::string(std::getenv("TEST_TMPDIR")) + "/XXXXXX";
    return mkdtemp(pattern.data());
  }
  static void Write(const std::string& path, const std::string& text) {
    std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
  }
  // A file of one preset.
  static std::string One(const std::string& name, const std::string& mixer) {
    return "{\"presets\": {\"" + name + "\": \"" + mixer + "\"}}";
  }
  void LookTwice() {
    watcher_.Look();
    watcher_.Look();
  }
  std::vector<std::string> TakeReports() { return std::exchange(reports_, {}); }
  bool Has(const std::string& name) { return table_.presets().count(name) > 0; }

  ModelConfig config_ = MakeSupernet(3);
  PlacementTable table_ =
      PlacementTable::Create(
          &config_, {{"first", MakePlacement(config_, {kGdn, kGdn, kGdn})}}, "")
          .value();
  const std::string dir_ = MakeDir();
  const std::string path_ = dir_ + "/presets.json";
  std::vector<std::string> reports_;
  int num_applied_ = 0;
  PresetsWatcher watcher_{
      path_, &config_,
      [this](Presets presets) {
        ++num_applied_;
        return table_.ReplaceFilePresets(std::move(presets));
      },
      [this](LogLevel level, absl::string_view line) {
        reports_.push_back(
            absl::StrCat(level == LogLevel::kWarning ? "warning: " : "", line));
      }};
};

TEST_F(PresetsWatcherTest, AnEditedFileTakesEffect) {
  Write(path_, One("first", "gdn"));
  LookTwice();
  EXPECT_THAT(TakeReports(), IsEmpty()) << "it says what it said at the start";
  EXPECT_EQ(table_.epoch(), 1u);

  Write(path_, One("second", "kda"));
  LookTwice();
  EXPECT_TRUE(Has("second"));
  EXPECT_FALSE(Has("first"));
  EXPECT_EQ(table_.epoch(), 2u);
  EXPECT_THAT(TakeReports(),
              ElementsAre(AllOf(HasSubstr(path_), HasSubstr("added second"),
                                HasSubstr("removed first"))));
  LookTwice();
  EXPECT_EQ(num_applied_, 2) << "once for each content";
}

TEST_F(PresetsWatcherTest, AFileBeingWrittenIsLeftAlone) {
  const std::string whole = One("second", "kda");
  Write(path_, whole.substr(0, 10));
  watcher_.Look();
  Write(path_, whole);
  watcher_.Look();
  EXPECT_FALSE(Has("second")) << "seen once";
  watcher_.Look();
  EXPECT_TRUE(Has("second"));
  EXPECT_EQ(TakeReports().size(), 1u);
}

// As the kubelet does it: presets.json -> ..data/presets.json, ..data -> a
// folder of the version, replaced by renaming a new link over it.
TEST_F(PresetsWatcherTest, ASwappedConfigMapTakesEffect) {
  const auto publish = [this](const std::string& version,
                              const std::string& text) {
    const std::string folder = dir_ + "/" + version;
    ASSERT_EQ(mkdir(folder.c_str(), 0755), 0);
    Write(folder + "/presets.json", text);
    ASSERT_EQ(symlink(version.c_str(), (dir_ + "/..tmp").c_str()), 0);
    ASSERT_EQ(
        std::rename((dir_ + "/..tmp").c_str(), (dir_ + "/..data").c_str()), 0);
  };
  publish("..1", One("first", "gdn"));
  ASSERT_EQ(symlink("..data/presets.json", path_.c_str()), 0);
  LookTwice();
  EXPECT_THAT(TakeReports(), IsEmpty());
  publish("..2", One("second", "kda"));
  LookTwice();
  EXPECT_TRUE(Has("second"));
  EXPECT_EQ(TakeReports().size(), 1u);
}

TEST_F(PresetsWatcherTest, ABadFileChangesNothingAndIsReportedOnce) {
  const Presets before = table_.presets();
  struct Case {
    std::string text;
    const char* says;
  };
  for (const Case& c : std::vector<Case>{
           {"{", "presets.json"},
           {"", "presets.json"},
           {"{\"preset\": {}}", "unknown field \"preset\""},
           {One("bad", "rnn"), "preset \"bad\": layer 0 has no mixer \"rnn\""},
       }) {
    Write(path_, c.text);
    LookTwice();
    LookTwice();
    EXPECT_EQ(table_.presets(), before) << c.text;
    EXPECT_THAT(
        TakeReports(),
        ElementsAre(AllOf(StartsWith("warning: the presets stay as they were"),
                          HasSubstr(c.says))))
        << c.text;
  }
  ASSERT_EQ(unlink(path_.c_str()), 0);
  LookTwice();
  LookTwice();
  EXPECT_THAT(TakeReports(), ElementsAre(HasSubstr("No such file")));
  EXPECT_EQ(table_.presets(), before);
  EXPECT_EQ(num_applied_, 0);

  Write(path_, One("good", "kda"));
  LookTwice();
  EXPECT_TRUE(Has("good")) << "and it goes on looking";
}

TEST_F(PresetsWatcherTest, RefusalsAndLosersAreReported) {
  ASSERT_TRUE(table_.Define("mine", MakePlacement(config_, {0, 1, 2})).ok());
  Write(path_, R"({"presets": {"first": "gdn", "mine": "kda"}})");
  LookTwice();
  EXPECT_THAT(TakeReports(), ElementsAre(AllOf(StartsWith("warning: "),
                                               HasSubstr("stands for mine"))));

  table_.SetDefault(*table_.ResolveText("first"));
  Write(path_, R"({"presets": {}})");
  LookTwice();
  EXPECT_TRUE(Has("first"));
  EXPECT_THAT(TakeReports(),
              ElementsAre(AllOf(HasSubstr("the presets stay as they were"),
                                HasSubstr("\"first\" is gone"))));
  Write(path_, One("first", "kda"));
  LookTwice();
  EXPECT_THAT(TakeReports(), ElementsAre(HasSubstr("changed first"),
                                         HasSubstr("the default stays")));
}

TEST_F(PresetsWatcherTest, AFileTakesEffectOnceTheDefaultAllowsIt) {
  table_.SetDefault(*table_.ResolveText("first"));
  Write(path_, One("second", "kda"));
  LookTwice();
  LookTwice();
  EXPECT_FALSE(Has("second"));
  EXPECT_THAT(TakeReports(), ElementsAre(HasSubstr("\"first\" is gone")));
  table_.SetDefault(*table_.ResolveText("all-gdn"));
  watcher_.Look();
  EXPECT_TRUE(Has("second"));
  EXPECT_THAT(TakeReports(), ElementsAre(HasSubstr("added second")));
  const int num_applied = num_applied_;
  LookTwice();
  EXPECT_EQ(num_applied_, num_applied) << "and that was it";
}

TEST_F(PresetsWatcherTest, LooksByItself) {
  Write(path_, One("second", "kda"));
  absl::Notification applied;
  PresetsWatcher watcher(
      path_, &config_,
      [&](Presets presets) {
        applied.Notify();
        return table_.ReplaceFilePresets(std::move(presets));
      },
      [](LogLevel, absl::string_view) {});
  watcher.Start(absl::Milliseconds(1));
  applied.WaitForNotification();
  watcher.Stop();
  EXPECT_TRUE(Has("second"));
}

}  // namespace
}  // namespace switchyard
