#include "coordinator/metrics.h"

#include <gtest/gtest.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>

#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "tests/coordinator/scrape.h"

namespace switchyard {
namespace {

MetricsOptions Options(int num_ranks) {
  MetricsOptions options;
  options.model_name = "made-up";
  options.max_context_tokens = 4096;
  options.num_ranks = num_ranks;
  return options;
}

TEST(MetricsTest, EverySeriesCarriesTheModelAndEveryFamilyIsDescribed) {
  Metrics metrics(Options(2));
  metrics.OfPlacement("all-gdn");
  metrics.SetDefaultPlacement("all-gdn");
  std::set<std::string> described;
  int num_series = 0;
  const std::string scrape = metrics.Scrape();
  for (const absl::string_view line : absl::StrSplit(scrape, '\n')) {
    if (absl::StartsWith(line, "# HELP ")) {
      const std::vector<std::string> words = absl::StrSplit(line, ' ');
      ASSERT_GT(words.size(), 3) << line;
      EXPECT_TRUE(described.insert(words[2]).second) << words[2] << " twice";
      continue;
    }
    if (!absl::StartsWith(line, "switchyard_")) continue;
    ++num_series;
    EXPECT_TRUE(absl::StrContains(line, "model_name=\"made-up\"")) << line;
    std::string family(line.substr(0, line.find('{')));
    for (const char* suffix : {"_bucket", "_sum", "_count"}) {
      if (described.count(family)) break;
      if (absl::EndsWith(family, suffix)) {
        family.resize(family.size() - std::string(suffix).size());
      }
    }
    EXPECT_TRUE(described.count(family)) << line;
  }
  EXPECT_GT(num_series, 100);
}

TEST(MetricsTest, HasOneSeriesPerRank) {
  Metrics metrics(Options(3));
  ASSERT_EQ(metrics.ranks().size(), 3);
  metrics.ranks()[2].cache_bytes->Set(5);
  const std::string scrape = metrics.Scrape();
  EXPECT_EQ(ScrapedValue(scrape, "rank_memory_bytes",
                         {"rank=\"2\"", "kind=\"cache\""}),
            5);
  EXPECT_EQ(ScrapedValue(scrape, "rank_memory_bytes",
                         {"rank=\"1\"", "kind=\"cache\""}),
            0);
}

TEST(MetricsTest, PlacementNamesThatPileUpShareASeries) {
  Metrics metrics(Options(1));
  std::set<PlacementMetrics*> distinct;
  for (int i = 0; i < 10 * Metrics::kMaxPlacements; ++i) {
    PlacementMetrics* series = metrics.OfPlacement(absl::StrCat("preset-", i));
    series->generation_tokens->Increment();
    distinct.insert(series);
  }
  EXPECT_EQ(distinct.size(), Metrics::kMaxPlacements + 1);
  EXPECT_EQ(ScrapedValue(metrics.Scrape(), "generation_tokens_total",
                         {"placement=\"other\""}),
            9 * Metrics::kMaxPlacements);
  // The same name, the same series.
  EXPECT_EQ(metrics.OfPlacement("preset-1"), metrics.OfPlacement("preset-1"));
}

TEST(MetricsTest, ThereIsOneDefaultPlacement) {
  Metrics metrics(Options(1));
  metrics.SetDefaultPlacement("fast");
  metrics.SetDefaultPlacement("quality");
  metrics.SetDefaultPlacement("quality");
  const std::string scrape = metrics.Scrape();
  EXPECT_EQ(ScrapedValue(scrape, "default_placement_info"), 1);
  EXPECT_EQ(
      ScrapedValue(scrape, "default_placement_info", {"placement=\"quality\""}),
      1);
}

TEST(MetricsTest, DescribesItsProcess) {
  const std::string scrape = Metrics(Options(1)).Scrape();
  for (const char* name :
       {"process_cpu_seconds_total", "process_resident_memory_bytes",
        "process_start_time_seconds", "process_open_fds"}) {
    const size_t line = scrape.find(absl::StrCat("\n", name, " "));
    ASSERT_NE(line, std::string::npos) << name;
    const std::string text = scrape.substr(
        line + 2 + std::string(name).size(),
        scrape.find('\n', line + 1) - line - 2 - std::string(name).size());
    double value = 0;
    ASSERT_TRUE(absl::SimpleAtod(text, &value)) << text;
    EXPECT_GT(value, 0) << name;
  }
}

}  // namespace
}  // namespace switchyard
