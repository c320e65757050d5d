// What the tests of the config share: the configs of tests/testdata, as read by
// the parser and as JSON to edit.
#ifndef SWITCHYARD_TESTS_MODEL_CONFIG_JSON_H_
#define SWITCHYARD_TESTS_MODEL_CONFIG_JSON_H_

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "model/config.h"

namespace switchyard {

using Json = nlohmann::ordered_json;
using Pointer = Json::json_pointer;

inline ModelConfig Load(const std::string& name) {
  absl::StatusOr<ModelConfig> config =
      LoadModelConfig("tests/testdata/" + name);
  EXPECT_TRUE(config.ok()) << config.status();
  return config.ok() ? *std::move(config) : ModelConfig();
}

inline Json ReadJson(const std::string& path) {
  return Json::parse(std::ifstream("tests/testdata/" + path));
}

inline absl::StatusOr<ModelConfig> Parse(const Json& json,
                                         const std::string& generation = "") {
  return ParseModelConfig(json.dump(), generation);
}

}  // namespace switchyard

#endif  // SWITCHYARD_TESTS_MODEL_CONFIG_JSON_H_
