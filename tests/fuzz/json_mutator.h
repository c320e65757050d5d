// Mutation of JSON that stays JSON, for readers whose first line of defence is
// a JSON parser.
#ifndef SWITCHYARD_TESTS_FUZZ_JSON_MUTATOR_H_
#define SWITCHYARD_TESTS_FUZZ_JSON_MUTATOR_H_

#include <random>
#include <string>

namespace switchyard {

// `text` with one or two of its values replaced, removed, doubled or moved.
// Empty when `text` is not JSON.
std::string MutateJson(const std::string& text, std::minstd_rand& random);

}  // namespace switchyard

#endif  // SWITCHYARD_TESTS_FUZZ_JSON_MUTATOR_H_
