// Reads Prometheus' text format, for tests.
#ifndef SWITCHYARD_TESTS_COORDINATOR_SCRAPE_H_
#define SWITCHYARD_TESTS_COORDINATOR_SCRAPE_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace switchyard {

// The value of the one series `switchyard_NAME` with all these labels
// (`key="value"`); nothing if there is none or several.
inline std::optional<double> ScrapedValue(
    const std::string& scrape, const std::string& name,
    const std::vector<std::string>& labels = {}) {
  std::optional<double> found;
  for (const absl::string_view line : absl::StrSplit(scrape, '\n')) {
    if (!absl::StartsWith(line, absl::StrCat("switchyard_", name, "{")))
      continue;
    bool matches = true;
    for (const std::string& label : labels) {
      matches = matches && absl::StrContains(line, label);
    }
    if (!matches) continue;
    if (found.has_value()) return std::nullopt;
    double value;
    if (!absl::SimpleAtod(line.substr(line.rfind(' ') + 1), &value)) {
      return std::nullopt;
    }
    found = value;
  }
  return found;
}

}  // namespace switchyard

#endif  // SWITCHYARD_TESTS_COORDINATOR_SCRAPE_H_
