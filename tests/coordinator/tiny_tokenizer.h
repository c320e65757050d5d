// A tokenizer.json small enough to read, for tests to take apart.
#ifndef SWITCHYARD_TESTS_COORDINATOR_TINY_TOKENIZER_H_
#define SWITCHYARD_TESTS_COORDINATOR_TINY_TOKENIZER_H_

#include <nlohmann/json.hpp>

namespace switchyard {

// Ids 0..255 are the bytes, then come the merges `th`, `the`, ` the`, `he`,
// `in`, `an`, then the added tokens `<s>` (BOS, put before every text by the
// template), `</s>` and `<|tool|>` (not special). The pre-tokenizer is
// ByteLevel with its own pattern.
nlohmann::json TinyTokenizerJson();

inline constexpr int kTinyTh = 256;
inline constexpr int kTinyThe = 257;
inline constexpr int kTinySpaceThe = 258;
inline constexpr int kTinyHe = 259;
inline constexpr int kTinyIn = 260;
inline constexpr int kTinyAn = 261;
inline constexpr int kTinyBos = 262;
inline constexpr int kTinyEos = 263;
inline constexpr int kTinyTool = 264;
inline constexpr int kTinyVocabSize = 265;

}  // namespace switchyard

#endif  // SWITCHYARD_TESTS_COORDINATOR_TINY_TOKENIZER_H_
