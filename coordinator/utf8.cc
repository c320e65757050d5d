#include "coordinator/utf8.h"

#include <cstdint>

namespace switchyard {
namespace {

constexpr absl::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

enum class Kind { kCharacter, kInvalid, kIncomplete };

struct Sequence {
  Kind kind;
  size_t size;
};

// Classifies what `bytes` begins with (Unicode 15, table 3-7: only the second
// byte's range depends on the first).
// REQUIRES: bytes is not empty.
Sequence Classify(absl::string_view bytes) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {Kind::kCharacter, 1};
  if (lead < 0xC2 || lead > 0xF4) return {Kind::kInvalid, 1};
  const size_t size = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  uint8_t low = 0x80, high = 0xBF;
  if (lead == 0xE0) low = 0xA0;   // shorter forms
  if (lead == 0xED) high = 0x9F;  // surrogates
  if (lead == 0xF0) low = 0x90;   // shorter forms
  if (lead == 0xF4) high = 0x8F;  // beyond U+10FFFF
  for (size_t i = 1; i < size; ++i, low = 0x80, high = 0xBF) {
    if (i == bytes.size()) return {Kind::kIncomplete, i};
    if (byte(i) < low || byte(i) > high) return {Kind::kInvalid, i};
  }
  return {Kind::kCharacter, size};
}

bool IsContinuation(char byte) {
  return (static_cast<uint8_t>(byte) & 0xC0) == 0x80;
}

}  // namespace

size_t FindInvalidUtf8(absl::string_view bytes) {
  size_t at = 0;
  while (at < bytes.size()) {
    const Sequence next = Classify(bytes.substr(at));
    if (next.kind != Kind::kCharacter) return at;
    at += next.size;
  }
  return at;
}

size_t AppendUtf8Lossy(absl::string_view bytes, bool at_end,
                       std::string* text) {
  size_t at = 0;
  while (at < bytes.size()) {
    const Sequence next = Classify(bytes.substr(at));
    if (next.kind == Kind::kIncomplete && !at_end) break;
    const absl::string_view piece = next.kind == Kind::kCharacter
                                        ? bytes.substr(at, next.size)
                                        : kReplacementCharacter;
    text->append(piece.data(), piece.size());
    at += next.size;
  }
  return at;
}

size_t LastCharacter(absl::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && IsContinuation(text[at])) --at;
  return at;
}

size_t FirstCharacterSize(absl::string_view text) {
  size_t size = 1;
  while (size < text.size() && IsContinuation(text[size])) ++size;
  return size;
}

}  // namespace switchyard
