#include "cli/align_report.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace switchyard {
namespace {

constexpr double kOutlier = 1.0;

double Share(int64_t part, int64_t total) {
  return total == 0 ? 1.0
                    : static_cast<double>(part) / static_cast<double>(total);
}

}  // namespace

void AlignReport::AddFree(const TokenComparison& comparison) {
  const size_t position = static_cast<size_t>(comparison.position);
  if (free_by_position_.size() <= position)
    free_by_position_.resize(position + 1);
  ++free_by_position_[position].total;
  if (comparison.expected == comparison.actual) {
    ++free_by_position_[position].matched;
    return;
  }
  mismatches_.push_back(comparison);
  if (!first_mismatch_.has_value()) first_mismatch_ = comparison;
}

void AlignReport::AddForced(const TokenComparison& comparison) {
  ++forced_total_;
  if (comparison.expected == comparison.actual) {
    ++forced_matched_;
  } else {
    mismatches_.push_back(comparison);
  }
}

void AlignReport::AddLogprobDifference(double difference) {
  differences_.push_back(std::isnan(difference)
                             ? std::numeric_limits<double>::infinity()
                             : difference);
}

double AlignReport::FreeMatch() const {
  // Every position counts for every case that began: what follows a difference
  // is different.
  if (free_by_position_.empty()) return 1.0;
  int64_t matched = 0;
  for (const PositionCount& count : free_by_position_) matched += count.matched;
  return Share(matched, free_by_position_[0].total *
                            static_cast<int64_t>(free_by_position_.size()));
}

double AlignReport::ForcedMatch() const {
  return Share(forced_matched_, forced_total_);
}

double AlignReport::MeanDifference() const {
  if (differences_.empty()) return 0;
  double sum = 0;
  for (double difference : differences_) sum += difference;
  return sum / static_cast<double>(differences_.size());
}

double AlignReport::DifferencePercentile(double p) const {
  if (differences_.empty()) return 0;
  std::vector<double> sorted = differences_;
  const double rank = std::ceil(p * static_cast<double>(sorted.size())) - 1;
  const size_t index = static_cast<size_t>(
      std::clamp(rank, 0.0, static_cast<double>(sorted.size() - 1)));
  std::nth_element(sorted.begin(), sorted.begin() + index, sorted.end());
  return sorted[index];
}

int64_t AlignReport::NumOutliers() const {
  return std::count_if(
      differences_.begin(), differences_.end(),
      [](double difference) { return !(difference <= kOutlier); });
}

std::vector<double> AlignReport::MatchByPosition() const {
  std::vector<double> shares;
  for (const PositionCount& count : free_by_position_) {
    shares.push_back(Share(count.matched, free_by_position_[0].total));
  }
  return shares;
}

std::vector<std::string> AlignReport::Violations(
    const AlignLimits& limits) const {
  std::vector<std::string> violations;
  for (const TokenComparison& mismatch : mismatches_) {
    // An explicit share of matches takes the place of the margin rule.
    if (limits.min_forced_match.has_value() ||
        mismatch.margin <= limits.min_margin)
      continue;
    violations.push_back(
        absl::StrFormat("%s: case %d, generated token %d is %d, the "
                        "reference's is %d by a margin of %.5f",
                        placement_, mismatch.case_index, mismatch.position,
                        mismatch.actual, mismatch.expected, mismatch.margin));
  }
  const double max = DifferencePercentile(1);
  if (limits.max_logprob_difference.has_value() &&
      !(max <= *limits.max_logprob_difference)) {
    violations.push_back(
        absl::StrFormat("%s: a log-probability is %.6f off, more than %.6f",
                        placement_, max, *limits.max_logprob_difference));
  }
  if (limits.max_mean_logprob_difference.has_value() &&
      !(MeanDifference() <= *limits.max_mean_logprob_difference)) {
    violations.push_back(absl::StrFormat(
        "%s: log-probabilities are %.6f off on average, more than %.6f",
        placement_, MeanDifference(), *limits.max_mean_logprob_difference));
  }
  if (limits.min_forced_match.has_value() &&
      ForcedMatch() < *limits.min_forced_match) {
    violations.push_back(absl::StrFormat(
        "%s: %.2f%% of the first choices are the reference's, less than %.2f%%",
        placement_, 100 * ForcedMatch(), 100 * *limits.min_forced_match));
  }
  return violations;
}

void AlignReport::Merge(const AlignReport& other) {
  if (free_by_position_.size() < other.free_by_position_.size()) {
    free_by_position_.resize(other.free_by_position_.size());
  }
  for (size_t i = 0; i < other.free_by_position_.size(); ++i) {
    free_by_position_[i].matched += other.free_by_position_[i].matched;
    free_by_position_[i].total += other.free_by_position_[i].total;
  }
  forced_matched_ += other.forced_matched_;
  forced_total_ += other.forced_total_;
  mismatches_.insert(mismatches_.end(), other.mismatches_.begin(),
                     other.mismatches_.end());
  if (!first_mismatch_.has_value()) first_mismatch_ = other.first_mismatch_;
  differences_.insert(differences_.end(), other.differences_.begin(),
                      other.differences_.end());
}

std::string FormatAlignTable(const std::vector<AlignReport>& reports) {
  size_t width = sizeof("placement") - 1;
  for (const AlignReport& report : reports)
    width = std::max(width, report.placement().size());
  std::string out = absl::StrFormat(
      "%-*s  %8s %8s  %9s %9s %9s %9s %9s %9s %9s  %s\n",
      static_cast<int>(width), "placement", "free", "forced", "|dlogp|", "p50",
      "p90", "p95", "p99", "max", "outliers", "first mismatch");
  for (const AlignReport& report : reports) {
    std::string mismatch = "none";
    if (report.first_mismatch().has_value()) {
      const TokenComparison& first = *report.first_mismatch();
      mismatch = absl::StrFormat("case %d token %d: %d for %d, margin %.5f",
                                 first.case_index, first.position, first.actual,
                                 first.expected, first.margin);
    }
    absl::StrAppendFormat(
        &out,
        "%-*s  %7.2f%% %7.2f%%  %9.6f %9.6f %9.6f %9.6f %9.6f %9.6f %9d  %s\n",
        static_cast<int>(width), report.placement(), 100 * report.FreeMatch(),
        100 * report.ForcedMatch(), report.MeanDifference(),
        report.DifferencePercentile(0.5), report.DifferencePercentile(0.9),
        report.DifferencePercentile(0.95), report.DifferencePercentile(0.99),
        report.DifferencePercentile(1), report.NumOutliers(), mismatch);
  }
  return out;
}

}  // namespace switchyard
