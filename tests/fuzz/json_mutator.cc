#include "tests/fuzz/json_mutator.h"

#include <cstdint>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

namespace switchyard {
namespace {

using Json = nlohmann::ordered_json;

// Every value of `json`, itself first.
void Collect(Json& json, std::vector<Json*>* values) {
  values->push_back(&json);
  if (!json.is_structured()) return;
  for (Json& value : json) Collect(value, values);
}

Json Nonsense(std::minstd_rand& random) {
  switch (random() % 14) {
    case 0:
      return nullptr;
    case 1:
      return random() % 2 == 0;
    case 2:
      return 0;
    case 3:
      return -1;
    case 4:
      return 0.5;
    case 5:
      return UINT64_MAX;
    case 6:
      return INT64_MIN;
    case 7:
      return INT32_MAX;
    case 8:
      return uint64_t{1} << random() % 64;
    case 9:
      return "";
    case 10:
      return std::string("\0\x7f\xc3\xa4", 4);
    case 11:
      return Json::array();
    case 12:
      return Json::object();
    default:
      return static_cast<int>(random() % 300);
  }
}

void MutateOnce(Json& root, std::minstd_rand& random) {
  std::vector<Json*> values;
  Collect(root, &values);
  Json& victim = *values[random() % values.size()];
  switch (random() % 5) {
    case 0:
    case 1:
      victim = Nonsense(random);
      return;
    case 2: {
      // A copy: the other value may contain this one.
      Json other = *values[random() % values.size()];
      victim = std::move(other);
      return;
    }
    case 3:
      if (victim.is_object() && !victim.empty()) {
        auto item = victim.begin();
        std::advance(item, random() % victim.size());
        victim.erase(item);
      } else if (victim.is_array()) {
        victim.push_back(Nonsense(random));
      } else if (victim.is_number_integer()) {
        const auto bits = static_cast<uint64_t>(victim.get<int64_t>());
        victim = static_cast<int64_t>(bits + random() % 3 - 1);
      }
      return;
    default:
      if (victim.is_object()) {
        victim["x" + std::to_string(random() % 3)] = Nonsense(random);
      } else if (victim.is_number_integer()) {
        const auto bits = static_cast<uint64_t>(victim.get<int64_t>());
        victim = static_cast<int64_t>(bits * (1 + random() % 8));
      } else {
        victim = Nonsense(random);
      }
  }
}

}  // namespace

std::string MutateJson(const std::string& text, std::minstd_rand& random) {
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return "";
  MutateOnce(json, random);
  if (random() % 2 == 0) MutateOnce(json, random);
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace switchyard
