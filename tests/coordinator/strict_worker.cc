#include "tests/coordinator/strict_worker.h"

#include <algorithm>
#include <iterator>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/sequence.h"

namespace switchyard {
namespace {

constexpr uint64_t kEmpty = 0x9e3779b97f4a7c15;

uint64_t Absorb(uint64_t digest, uint64_t value) {
  digest ^= value + kEmpty + (digest << 6) + (digest >> 2);
  digest *= 0xbf58476d1ce4e5b9;
  return digest ^ (digest >> 31);
}

}  // namespace

StrictWorker::StrictWorker(const ModelConfig* config, CacheSpec spec,
                           int64_t arena_bytes, uint32_t vocab_size)
    : config_(config),
      spec_(std::move(spec)),
      arena_bytes_(arena_bytes),
      vocab_size_(vocab_size) {}

uint32_t StrictWorker::Next(const std::vector<uint32_t>& tokens,
                            const Placement& placement, uint32_t vocab_size) {
  uint64_t digest = kEmpty;
  for (const int32_t mixer : placement.mixers()) digest = Absorb(digest, mixer);
  for (const uint32_t token : tokens) digest = Absorb(digest, token);
  return static_cast<uint32_t>(digest % vocab_size);
}

std::vector<uint64_t> StrictWorker::sequence_ids() const {
  std::vector<uint64_t> ids;
  for (const auto& [id, state] : states_) ids.push_back(id);
  return ids;
}

size_t StrictWorker::num_spoilt_kept() const {
  size_t num = 0;
  for (const auto& [id, unit] : units_) num += unit.kept && unit.spoilt;
  return num;
}

void StrictWorker::Complain(uint64_t id, const std::string& what) {
  complaints_.push_back(
      absl::StrCat("step ", last_step_id_, ", sequence ", id, ": ", what));
}

v1::StepResult StrictWorker::Execute(const v1::StepPlan& plan) {
  if (plan.step_id() != ++last_step_id_) {
    Complain(0, absl::StrCat("plan has step id ", plan.step_id()));
  }
  for (const uint32_t unit : plan.kept()) Keep(unit);
  for (const uint64_t id : plan.finished()) Forget(id);
  for (const uint32_t unit : plan.dropped()) Drop(unit);
  for (const v1::PlacementEntry& entry : plan.placements()) {
    for (const auto& [id, state] : states_) {
      const auto known = placements_.find(entry.placement_id());
      if (known != placements_.end() && state.placement == known->second) {
        Complain(id, "its placement's id is redefined");
      }
    }
    const std::vector<int32_t> mixers(entry.mixer_ids().begin(),
                                      entry.mixer_ids().end());
    placements_.insert_or_assign(
        entry.placement_id(), Placement::FromIndices(*config_, mixers).value());
  }
  for (const v1::SequenceStart& start : plan.started()) Start(start);

  v1::StepResult result;
  result.set_step_id(plan.step_id());
  std::set<uint64_t> seen;
  // All new units exist before anything runs: kernels read whole tables.
  for (const v1::SequenceStep& step : plan.batch()) {
    const auto it = states_.find(step.sequence_id());
    if (it == states_.end() || !seen.insert(step.sequence_id()).second) {
      Complain(step.sequence_id(), "unknown, or twice in the batch");
      continue;
    }
    Take(it->first, &it->second, step);
  }
  std::set<uint32_t> targets;
  for (const v1::CacheCopy& copy : plan.copies()) {
    if (!targets.insert(copy.to_id()).second) {
      Complain(0, absl::StrCat("copies to ", copy.to_id(), " twice"));
    }
  }
  for (const v1::CacheCopy& copy : plan.copies()) {
    if (targets.count(copy.from_id()) > 0) {
      Complain(0, absl::StrCat("copies from a copy, ", copy.from_id()));
    }
    Copy(copy);
  }
  for (const v1::SequenceStep& step : plan.batch()) {
    const auto it = states_.find(step.sequence_id());
    if (it == states_.end()) continue;
    Run(it->first, &it->second, step);
    if (!step.sample()) continue;
    State& state = it->second;
    v1::SampledToken* token = result.add_tokens();
    token->set_sequence_id(it->first);
    token->set_token_id(state.spoilt
                            ? kNoTokenId
                            : Next(state.tokens, state.placement, vocab_size_));
    state.tokens.push_back(token->token_id());
  }
  return result;
}

void StrictWorker::Forget(uint64_t id) {
  const auto it = states_.find(id);
  if (it == states_.end()) {
    Complain(id, "forgotten, but was not known");
    return;
  }
  for (const Layer& layer : it->second.layers) {
    for (const uint32_t id : layer.table) {
      const auto unit = units_.find(id);
      if (--unit->second.num_holders == 0 && !unit->second.kept) {
        units_.erase(unit);
      }
    }
  }
  states_.erase(it);
}

void StrictWorker::Keep(uint32_t id) {
  const auto unit = units_.find(id);
  if (unit == units_.end() || unit->second.kept) {
    Complain(0, absl::StrCat("keeps ", id, ", which is kept or not there"));
    return;
  }
  unit->second.kept = true;
}

void StrictWorker::Drop(uint32_t id) {
  const auto unit = units_.find(id);
  if (unit == units_.end() || !unit->second.kept) {
    Complain(0, absl::StrCat("drops ", id, ", which is not kept"));
    return;
  }
  unit->second.kept = false;
  if (unit->second.num_holders == 0) units_.erase(unit);
}

void StrictWorker::Copy(const v1::CacheCopy& copy) {
  const auto from = units_.find(copy.from_id());
  if (from == units_.end()) {
    Complain(0,
             absl::StrCat("copies ", copy.from_id(), ", which is not there"));
    return;
  }
  if (copy.keep()) {
    Add(0, copy.to_id(),
        {from->second.num_bytes, from->second.content, 0, true,
         from->second.spoilt});
    return;
  }
  const auto to = units_.find(copy.to_id());
  if (to == units_.end() || to->second.kept ||
      to->second.num_bytes != from->second.num_bytes) {
    Complain(0, absl::StrCat("copies to ", copy.to_id(),
                             ", which is kept, of another size or not there"));
    return;
  }
  to->second.content = from->second.content;
  to->second.spoilt = from->second.spoilt;
}

bool StrictWorker::Add(uint64_t id, uint32_t cache_id, Unit unit) {
  const int64_t offset = int64_t{cache_id} * kCacheUnitBytes;
  const auto next = units_.lower_bound(cache_id);
  bool clear = offset + unit.num_bytes <= arena_bytes_;
  if (next != units_.end()) {
    clear = clear &&
            offset + unit.num_bytes <= int64_t{next->first} * kCacheUnitBytes;
  }
  if (next != units_.begin()) {
    const auto previous = std::prev(next);
    clear = clear && int64_t{previous->first} * kCacheUnitBytes +
                             previous->second.num_bytes <=
                         offset;
  }
  if (!clear) {
    Complain(id, absl::StrCat("unit ", cache_id,
                              " overlaps another or leaves the arena"));
    return false;
  }
  units_.emplace(cache_id, std::move(unit));
  return true;
}

void StrictWorker::Start(const v1::SequenceStart& start) {
  const uint64_t id = start.sequence_id();
  const auto placement = placements_.find(start.placement_id());
  if (placement == placements_.end()) {
    Complain(id, "its placement is unknown");
    return;
  }
  State state;
  state.placement = placement->second;
  state.tokens.assign(start.token_ids().begin(), start.token_ids().end());
  state.layers.resize(spec_.num_layers());
  if (start.num_prompt_tokens() == 0 ||
      start.num_prompt_tokens() > state.tokens.size()) {
    Complain(id, "wrong number of prompt tokens");
  }
  state.num_cached = start.num_cached();
  for (int i = 0; i < start.shared_ids_size(); ++i) {
    const auto unit = units_.find(start.shared_ids(i));
    const auto layer = static_cast<int32_t>(start.shared_layers(i));
    const MixerCacheSpec& mixer = spec_.At(layer, state.placement[layer]);
    if (unit == units_.end() || !unit->second.kept ||
        unit->second.num_bytes != mixer.unit_bytes || mixer.ring_blocks > 0 ||
        mixer.kind != CacheKind::kBlocks) {
      Complain(id, absl::StrCat("shares ", start.shared_ids(i), " in layer ",
                                layer, ", which is not such a kept block"));
      continue;
    }
    ++unit->second.num_holders;
    state.layers[layer].table.push_back(start.shared_ids(i));
  }
  if (!states_.emplace(id, std::move(state)).second) {
    Complain(id, "started, but is still known");
  }
}

void StrictWorker::Take(uint64_t id, State* state,
                        const v1::SequenceStep& step) {
  if (step.cache_layers_size() != step.cache_ids_size()) {
    Complain(id, "cache layers and ids differ in number");
    return;
  }
  for (int i = 0; i < step.cache_ids_size(); ++i) {
    const auto layer = static_cast<int32_t>(step.cache_layers(i));
    const uint32_t cache_id = step.cache_ids(i);
    const MixerCacheSpec& mixer = spec_.At(layer, state->placement[layer]);
    Unit unit{mixer.unit_bytes, {kEmpty}, 1};
    if (mixer.kind == CacheKind::kBlocks) {
      unit.content.assign(spec_.block_size(), 0);
    }
    if (!Add(id, cache_id, std::move(unit))) continue;
    state->layers[layer].table.push_back(cache_id);
  }
}

void StrictWorker::Run(uint64_t id, State* state,
                       const v1::SequenceStep& step) {
  const int64_t start = step.start();
  const int64_t end = start + step.num_tokens();
  const auto num_tokens = static_cast<int64_t>(state->tokens.size());
  if (start != state->num_cached || end <= start || end > num_tokens ||
      step.sample() != (end == num_tokens)) {
    Complain(id, absl::StrCat("positions ", start, " to ", end, " with ",
                              state->num_cached, " cached and ", num_tokens,
                              " known, sample ", step.sample()));
    return;
  }
  std::vector<uint64_t> digests;  // of the tokens up to each position
  uint64_t digest = kEmpty;
  for (const int32_t mixer : state->placement.mixers()) {
    digest = Absorb(digest, mixer);
  }
  for (const uint32_t token : state->tokens) {
    digests.push_back(digest = Absorb(digest, token));
  }

  if (const auto from = spoilt_from_.find(id); from != spoilt_from_.end()) {
    state->spoilt = state->spoilt || end > from->second;
  }

  const int64_t block_size = spec_.block_size();
  for (int32_t layer = 0; layer < spec_.num_layers(); ++layer) {
    const int32_t mixer_index = state->placement[layer];
    const MixerCacheSpec& mixer = spec_.At(layer, mixer_index);
    const std::vector<uint32_t>& table = state->layers[layer].table;
    if (static_cast<int64_t>(table.size()) !=
        spec_.NumUnits(layer, mixer_index, end)) {
      Complain(id, absl::StrCat("layer ", layer, " has ", table.size(),
                                " units for ", end, " positions"));
      return;
    }
    if (mixer.kind == CacheKind::kSlot) {
      Unit& unit = units_.at(table[0]);
      uint64_t& content = unit.content[0];
      if (content != (start == 0 ? kEmpty : digests[start - 1])) {
        Complain(id, absl::StrCat("stale slot in layer ", layer));
      }
      content = digests[end - 1];
      unit.spoilt = state->spoilt = state->spoilt || unit.spoilt;
      continue;
    }
    const auto unit_of = [&](int64_t position) -> Unit& {
      int64_t block = position / block_size;
      if (mixer.ring_blocks > 0) block %= mixer.ring_blocks;
      return units_.at(table[block]);
    };
    const auto entry = [&](int64_t position) -> uint64_t& {
      return unit_of(position).content[position % block_size];
    };
    const int64_t first_visible =
        mixer.window > 0 ? std::max<int64_t>(0, start - mixer.window + 1) : 0;
    for (int64_t p = first_visible; p < start; ++p) {
      state->spoilt = state->spoilt || unit_of(p).spoilt;
      if (entry(p) == digests[p]) continue;
      Complain(id, absl::StrCat("stale block in layer ", layer));
      break;
    }
    for (int64_t p = start; p < end; ++p) {
      if (unit_of(p).kept) {
        Complain(id, absl::StrCat("writes to a kept block in layer ", layer));
      }
      entry(p) = digests[p];
      unit_of(p).spoilt = unit_of(p).spoilt || state->spoilt;
    }
  }
  state->num_cached = end;
}

}  // namespace switchyard
