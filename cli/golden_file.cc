#include "cli/golden_file.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace switchyard {
namespace {

using Json = nlohmann::json;

// `json` as a T, or an exception that LoadGoldenFile turns into a Status.
template <typename T>
T Field(const Json& json, const char* name) {
  return json.at(name).get<T>();
}

std::vector<std::string> PlacementOf(const Json& json) {
  const Json& placement = json.at("placement");
  return placement.is_null() ? std::vector<std::string>()
                             : placement.get<std::vector<std::string>>();
}

std::vector<double> LogSoftmax(std::vector<double> logits) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (double logit : logits) sum += std::exp(logit - max);
  for (double& logit : logits) logit -= max + std::log(sum);
  return logits;
}

GoldenCase ParseCase(const Json& json) {
  GoldenCase golden;
  golden.placement = PlacementOf(json);
  golden.prompt_ids = Field<std::vector<uint32_t>>(json, "prompt_ids");
  for (const Json& value : json.at("prompt_logprobs")) {
    golden.prompt_logprobs.push_back(value.is_null() ? 0.0
                                                     : value.get<double>());
  }
  golden.greedy_ids = Field<std::vector<uint32_t>>(json, "greedy_ids");
  golden.greedy_logprobs = Field<std::vector<double>>(json, "greedy_logprobs");
  golden.margins.assign(golden.greedy_ids.size(),
                        Field<double>(json, "min_margin"));
  if (json.contains("top5")) {
    for (size_t i = 0; i < golden.margins.size(); ++i) {
      const Json& top = json.at("top5").at(i);
      golden.margins[i] =
          top.at(0).at(1).get<double>() - top.at(1).at(1).get<double>();
    }
  }
  if (json.contains("last_logits")) {
    golden.last_logprobs =
        LogSoftmax(Field<std::vector<double>>(json, "last_logits"));
  }
  return golden;
}

std::vector<GoldenCase> ParseRuns(const Json& json) {
  const auto prompts =
      Field<std::vector<std::vector<uint32_t>>>(json, "prompt_ids");
  std::vector<GoldenCase> cases;
  for (const Json& run : json.at("runs")) {
    for (size_t i = 0; i < prompts.size(); ++i) {
      GoldenCase golden;
      golden.index = static_cast<int32_t>(i);
      golden.placement = PlacementOf(run);
      golden.prompt_ids = prompts[i];
      golden.greedy_ids = run.at("tokens").at(i).get<std::vector<uint32_t>>();
      golden.greedy_logprobs =
          run.at("logprobs").at(i).get<std::vector<double>>();
      golden.margins = run.at("margins").at(i).get<std::vector<double>>();
      cases.push_back(std::move(golden));
    }
  }
  return cases;
}

}  // namespace

absl::StatusOr<std::vector<GoldenCase>> LoadGoldenFile(
    const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  std::vector<GoldenCase> cases;
  try {
    const Json json = Json::parse(file);
    if (json.contains("runs")) {
      cases = ParseRuns(json);
    } else {
      for (const Json& golden : json.at("cases")) {
        cases.push_back(ParseCase(golden));
        cases.back().index = static_cast<int32_t>(cases.size()) - 1;
      }
    }
  } catch (const Json::exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": case ", cases.size(),
                     " is not as a golden file has it: ", error.what()));
  }
  for (const GoldenCase& golden : cases) {
    const size_t length = golden.greedy_ids.size();
    if (golden.prompt_ids.empty() || length == 0 ||
        golden.greedy_logprobs.size() != length ||
        golden.margins.size() != length ||
        (!golden.prompt_logprobs.empty() &&
         golden.prompt_logprobs.size() != golden.prompt_ids.size())) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": the lists of case ", golden.index,
                       " are empty or of different lengths"));
    }
  }
  if (cases.empty())
    return absl::InvalidArgumentError(absl::StrCat(path, ": has no cases"));
  return cases;
}

}  // namespace switchyard
