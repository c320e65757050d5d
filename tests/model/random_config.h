// Configs drawn at random from everything config.json can say, for property
// tests.
#ifndef SWITCHYARD_TESTS_MODEL_RANDOM_CONFIG_H_
#define SWITCHYARD_TESTS_MODEL_RANDOM_CONFIG_H_

#include <nlohmann/json.hpp>
#include <random>

namespace switchyard {

// A valid config.json whose heads, groups and widths all split over 4 ranks
// (KV heads and gdn's key heads by replication where they are 1 or 2).
nlohmann::ordered_json RandomConfigJson(std::mt19937& random);

}  // namespace switchyard

#endif  // SWITCHYARD_TESTS_MODEL_RANDOM_CONFIG_H_
