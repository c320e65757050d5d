#include "coordinator/tokenizer_bpe.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/types/optional.h"
#include "coordinator/utf8.h"
#include "kernels/check.h"

namespace switchyard {
namespace {

constexpr uint32_t kNoId = UINT32_MAX;

// Bytes that are printable in Latin-1 stand for themselves; the others follow
// from U+0100 on, in order.
bool StandsForItself(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) ||
         (byte >= 0xA1 && byte <= 0xFF && byte != 0xAD);
}

// UTF-8 of a code point below U+0800.
std::string Utf8(uint32_t code_point) {
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xC0 | code_point >> 6),
          static_cast<char>(0x80 | (code_point & 0x3F))};
}

struct Alphabet {
  std::array<std::string, 256> characters;
  absl::flat_hash_map<std::string, uint8_t> bytes;
};

const Alphabet& ByteLevelAlphabet() {
  static const Alphabet* const alphabet = [] {
    auto* result = new Alphabet;
    uint32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      result->characters[byte] = Utf8(StandsForItself(byte) ? byte : next++);
      result->bytes.emplace(result->characters[byte], byte);
    }
    return result;
  }();
  return *alphabet;
}

absl::optional<std::string> TryDecodeByteLevel(absl::string_view token) {
  const Alphabet& alphabet = ByteLevelAlphabet();
  std::string bytes;
  while (!token.empty()) {
    const size_t size = FirstCharacterSize(token);
    const auto found = alphabet.bytes.find(token.substr(0, size));
    if (found == alphabet.bytes.end()) return absl::nullopt;
    bytes.push_back(static_cast<char>(found->second));
    token.remove_prefix(size);
  }
  return bytes;
}

bool OccursInUtf8(int byte) {
  return byte != 0xC0 && byte != 0xC1 && byte <= 0xF4;
}

uint64_t PairKey(uint32_t left, uint32_t right) {
  return static_cast<uint64_t>(left) << 32 | right;
}

// A heap of these has the lowest rank on top, of equal ones the leftmost.
bool ComesLater(const Bpe::Scratch::Candidate& a,
                const Bpe::Scratch::Candidate& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
}

}  // namespace

std::string DecodeByteLevel(absl::string_view token) {
  return TryDecodeByteLevel(token).value_or(std::string(token));
}

absl::StatusOr<Bpe> Bpe::Create(const TokenizerSpec& spec) {
  Bpe bpe;
  for (int byte = 0; byte < 256; ++byte) {
    const auto found = spec.vocab.find(ByteLevelAlphabet().characters[byte]);
    if (found == spec.vocab.end() && OccursInUtf8(byte)) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "model.vocab has no token for the byte 0x%02x, spelled %s", byte,
          ByteLevelAlphabet().characters[byte]));
    }
    bpe.byte_ids_[byte] = found == spec.vocab.end() ? kNoId : found->second;
  }
  bpe.merges_.reserve(spec.merges.size());
  for (size_t i = 0; i < spec.merges.size(); ++i) {
    const auto& [left, right] = spec.merges[i];
    uint32_t ids[3];
    const std::string tokens[3] = {left, right, left + right};
    for (int k = 0; k < 3; ++k) {
      const auto found = spec.vocab.find(tokens[k]);
      if (found == spec.vocab.end()) {
        return absl::InvalidArgumentError(
            absl::StrCat("model.merges[", i, "] needs the token ", tokens[k],
                         ", which model.vocab lacks"));
      }
      ids[k] = found->second;
    }
    // As the reference does, the last of equal pairs counts.
    bpe.merges_[PairKey(ids[0], ids[1])] = {static_cast<uint32_t>(i), ids[2]};
  }
  if (spec.ignore_merges) {
    for (const auto& [token, id] : spec.vocab) {
      if (auto bytes = TryDecodeByteLevel(token); bytes.has_value())
        bpe.words_.emplace(*std::move(bytes), id);
    }
  }
  return bpe;
}

const Bpe::Merge* Bpe::FindMerge(uint32_t left, uint32_t right) const {
  const auto found = merges_.find(PairKey(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

void Bpe::Consider(int32_t position, Scratch* scratch) const {
  const auto& symbols = scratch->symbols;
  const int32_t next = symbols[position].next;
  if (next < 0) return;
  const Merge* merge = FindMerge(symbols[position].id, symbols[next].id);
  if (merge == nullptr) return;
  scratch->heap.push_back({merge->rank, position, merge->id});
  std::push_heap(scratch->heap.begin(), scratch->heap.end(), ComesLater);
}

void Bpe::Encode(absl::string_view word, Scratch* scratch,
                 std::vector<uint32_t>* ids) const {
  SY_CHECK(word.size() < INT32_MAX);
  if (word.empty()) return;
  if (!words_.empty()) {
    const auto found = words_.find(word);
    if (found != words_.end()) {
      ids->push_back(found->second);
      return;
    }
  }

  auto& symbols = scratch->symbols;
  auto& heap = scratch->heap;
  const int32_t num_symbols = static_cast<int32_t>(word.size());
  symbols.clear();
  heap.clear();
  for (int32_t i = 0; i < num_symbols; ++i) {
    const uint32_t id = byte_ids_[static_cast<uint8_t>(word[i])];
    SY_CHECK(id != kNoId);
    symbols.push_back({id, i - 1, i + 1 < num_symbols ? i + 1 : -1, false});
  }
  for (int32_t i = 0; i < num_symbols; ++i) Consider(i, scratch);

  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), ComesLater);
    const Scratch::Candidate top = heap.back();
    heap.pop_back();
    Scratch::Symbol& left = symbols[top.position];
    if (left.merged_away || left.next < 0) continue;
    Scratch::Symbol& right = symbols[left.next];
    // Either may have merged with another since; the candidate stands if the
    // pair still gives the same token.
    const Merge* merge = FindMerge(left.id, right.id);
    if (merge == nullptr || merge->id != top.id) continue;
    left.id = top.id;
    left.next = right.next;
    right.merged_away = true;
    if (right.next >= 0) symbols[right.next].previous = top.position;
    if (left.previous >= 0) Consider(left.previous, scratch);
    Consider(top.position, scratch);
  }
  for (int32_t i = 0; i >= 0; i = symbols[i].next)
    ids->push_back(symbols[i].id);
}

}  // namespace switchyard
