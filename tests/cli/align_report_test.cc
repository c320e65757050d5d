#include "cli/align_report.h"

#include <cmath>
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace switchyard {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

AlignReport TwoCases() {
  AlignReport report("p");
  report.AddFree({0, 0, 5, 5, 1.0});
  report.AddFree({0, 1, 6, 6, 1.0});
  report.AddFree({1, 0, 5, 5, 1.0});
  report.AddFree({1, 1, 6, 7, 0.01});
  return report;
}

TEST(AlignReportTest, MatchByPositionCountsCasesThatEndedAsDifferent) {
  AlignReport report("p");
  report.AddFree(
      {0, 0, 5, 4, 1.0});  // differs at once: nothing more is compared
  report.AddFree({1, 0, 5, 5, 1.0});
  report.AddFree({1, 1, 6, 6, 1.0});
  EXPECT_THAT(report.MatchByPosition(), ElementsAre(0.5, 0.5));
  EXPECT_DOUBLE_EQ(report.FreeMatch(), 0.5);
}

TEST(AlignReportTest, FirstMismatchIsKept) {
  const AlignReport report = TwoCases();
  ASSERT_TRUE(report.first_mismatch().has_value());
  EXPECT_EQ(report.first_mismatch()->case_index, 1);
  EXPECT_EQ(report.first_mismatch()->position, 1);
}

TEST(AlignReportTest, MismatchesBelowTheMarginAreNoViolations) {
  EXPECT_THAT(TwoCases().Violations({/*min_margin=*/0.02}), IsEmpty());
  EXPECT_THAT(TwoCases().Violations({/*min_margin=*/0.005}), SizeIs(1));
}

TEST(AlignReportTest, ForcedMismatchesAboveTheMarginAreViolations) {
  AlignReport report("p");
  report.AddForced({3, 2, 8, 9, 0.5});
  EXPECT_THAT(report.Violations({/*min_margin=*/1e-3}),
              ElementsAre(HasSubstr("case 3, generated token 2")));
}

TEST(AlignReportTest, PercentilesAreNearestRank) {
  AlignReport report("p");
  for (int i = 100; i >= 1; --i) report.AddLogprobDifference(i);
  EXPECT_EQ(report.DifferencePercentile(0.5), 50);
  EXPECT_EQ(report.DifferencePercentile(0.99), 99);
  EXPECT_EQ(report.DifferencePercentile(1), 100);
  EXPECT_EQ(report.DifferencePercentile(0), 1);
  EXPECT_EQ(report.NumOutliers(), 99);
}

TEST(AlignReportTest, NotANumberViolatesEveryLimit) {
  AlignReport report("p");
  report.AddLogprobDifference(std::numeric_limits<double>::quiet_NaN());
  AlignLimits limits;
  limits.max_logprob_difference = 1;
  limits.max_mean_logprob_difference = 1;
  EXPECT_THAT(report.Violations(limits), SizeIs(2));
  EXPECT_EQ(report.NumOutliers(), 1);
}

TEST(AlignReportTest, MergeAddsUp) {
  AlignReport all("all");
  all.Merge(TwoCases());
  all.Merge(TwoCases());
  EXPECT_THAT(all.MatchByPosition(), ElementsAre(1.0, 0.5));
  EXPECT_THAT(all.Violations({/*min_margin=*/0}), SizeIs(2));
}

TEST(AlignReportTest, TableLinesUp) {
  const std::string table =
      FormatAlignTable({TwoCases(), AlignReport("a longer placement")});
  EXPECT_THAT(table, HasSubstr("case 1 token 1: 7 for 6"));
  EXPECT_THAT(table, HasSubstr("none"));
}

}  // namespace
}  // namespace switchyard
