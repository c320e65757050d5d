// The statistics of a comparison with a golden file: how often the engine's
// tokens are the reference's, and how far its log-probabilities are. Pure.
#ifndef SWITCHYARD_CLI_ALIGN_REPORT_H_
#define SWITCHYARD_CLI_ALIGN_REPORT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace switchyard {

// One token of one case, ours against the reference's.
struct TokenComparison {
  int32_t case_index = 0;
  int32_t position = 0;  // among the generated tokens of the case
  uint32_t expected = 0;
  uint32_t actual = 0;
  // The reference's gap between its first and second choice: below the noise of
  // the arithmetic, either is right.
  double margin = 0;
};

struct AlignLimits {
  double min_margin = 0;  // mismatches at smaller margins are no failures
  std::optional<double> max_logprob_difference;
  std::optional<double> max_mean_logprob_difference;
  std::optional<double> min_forced_match;  // share of positions, 0..1
};

// What one placement did.
class AlignReport {
 public:
  explicit AlignReport(std::string placement)
      : placement_(std::move(placement)) {}

  // Decoding freely: compared up to and with the first difference of a case.
  void AddFree(const TokenComparison& comparison);
  // The first choice after the reference's own tokens.
  void AddForced(const TokenComparison& comparison);
  // |ours - reference|, natural log units. NaN counts as infinitely far.
  void AddLogprobDifference(double difference);

  const std::string& placement() const { return placement_; }
  double FreeMatch() const;
  double ForcedMatch() const;
  double MeanDifference() const;
  // p in [0, 1]; nearest rank. 0 when there is nothing.
  double DifferencePercentile(double p) const;
  int64_t NumOutliers() const;  // differences above 1.0
  // Share of cases still equal to the reference after each position.
  std::vector<double> MatchByPosition() const;
  const std::optional<TokenComparison>& first_mismatch() const {
    return first_mismatch_;
  }

  // One sentence per limit that does not hold.
  std::vector<std::string> Violations(const AlignLimits& limits) const;

  void Merge(const AlignReport& other);

 private:
  struct PositionCount {
    int64_t matched = 0;
    int64_t total = 0;
  };

  std::string placement_;
  std::vector<PositionCount> free_by_position_;
  int64_t forced_matched_ = 0;
  int64_t forced_total_ = 0;
  std::vector<TokenComparison> mismatches_;  // free and forced
  std::optional<TokenComparison> first_mismatch_;
  std::vector<double> differences_;
};

// Aligned columns, a line per report, with a heading.
std::string FormatAlignTable(const std::vector<AlignReport>& reports);

}  // namespace switchyard

#endif  // SWITCHYARD_CLI_ALIGN_REPORT_H_
