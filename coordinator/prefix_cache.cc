#include "coordinator/prefix_cache.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "kernels/status.h"

namespace switchyard {

bool PrefixCache::HasState(const Placement& placement) const {
  for (int32_t layer = 0; layer < placement.num_layers(); ++layer) {
    if (!ledger_->Shares(placement, layer)) return true;
  }
  return false;
}

int64_t PrefixCache::FirstToEnter(const Placement& placement,
                                  int64_t num_published) const {
  for (int32_t layer = 0; layer < placement.num_layers(); ++layer) {
    if (ledger_->Shares(placement, layer)) return num_published;
  }
  return 0;  // its nodes have no units, and go with their last user
}

std::vector<uint32_t> PrefixCache::BlockOf(const Sequence& sequence,
                                           int64_t block) const {
  std::vector<uint32_t> units;
  const Placement& placement = sequence.placement();
  for (int32_t layer = 0; layer < placement.num_layers(); ++layer) {
    if (!ledger_->Shares(placement, layer)) continue;
    units.push_back(ledger_->IdsOf(sequence.id(), layer)[block]);
  }
  return units;
}

std::vector<uint32_t> PrefixCache::StateOf(const Sequence& sequence,
                                           int64_t num_tokens) const {
  std::vector<uint32_t> units;
  const Placement& placement = sequence.placement();
  const int64_t block_size = ledger_->spec().block_size();
  for (int32_t layer = 0; layer < placement.num_layers(); ++layer) {
    const absl::Span<const uint32_t> ids = ledger_->IdsOf(sequence.id(), layer);
    if (!ledger_->Shares(placement, layer)) {
      const int64_t num_units =
          ledger_->spec().NumUnits(layer, placement[layer], num_tokens);
      units.insert(units.end(), ids.begin(), ids.begin() + num_units);
    } else if (num_tokens % block_size != 0) {
      units.push_back(ids[num_tokens / block_size]);
    }
  }
  return units;
}

void PrefixCache::Keep(const std::vector<uint32_t>& units) {
  for (const uint32_t id : units) {
    ledger_->Keep(id);
    // The workers may not have been told that it was dropped.
    if (to_drop_.erase(id) == 0) to_keep_.push_back(id);
  }
}

void PrefixCache::Drop(const std::vector<uint32_t>& units) {
  for (const uint32_t id : units) {
    ledger_->Drop(id);
    to_drop_.insert(id);
  }
}

PrefixCache::Hit PrefixCache::Begin(const Sequence& sequence, bool look_up) {
  State& state = states_[sequence.id()];
  Hit hit;
  if (!look_up || sequence.sampling().has_prompt_logprobs()) return hit;
  const int64_t block_size = ledger_->spec().block_size();
  const Placement& placement = sequence.placement();
  // One token at least must be computed, for its logits.
  const PrefixIndex::Tokens tokens =
      sequence.token_ids().subspan(0, sequence.num_tokens() - 1);
  const std::vector<PrefixIndex::Id> path = index_.FindPath(placement, tokens);
  const int64_t num_blocks = path.size();
  if (!HasState(placement)) {
    hit.num_tokens = num_blocks * block_size;
  } else {
    const PrefixIndex::Snapshot* snapshot =
        index_.FindSnapshot(placement, path, tokens);
    if (snapshot != nullptr) {
      hit.num_tokens = snapshot->num_tokens;
      hit.snapshot = snapshot->units;
      state.pinned = snapshot->id;
      index_.Pin(snapshot->id);
      pinning_.push_back(sequence.id());
    }
    if (num_blocks * block_size > hit.num_tokens && index_.Claim(path.back())) {
      state.claimed = path.back();
      state.branch = num_blocks * block_size;
    }
  }
  for (int64_t block = 0; block < hit.num_tokens / block_size; ++block) {
    const std::vector<uint32_t>& units = index_.UnitsOf(path[block]);
    if (index_.HasUsers(path[block])) {
      for (const uint32_t id : units) hit.held_bytes += ledger_->BytesOf(id);
    }
    hit.shared.push_back(units);
    index_.Use(path[block]);
    state.used.push_back(path[block]);
    state.node = path[block];
  }
  state.num_published = state.used.size();
  if (!path.empty()) index_.Touch(path.back());
  return hit;
}

void PrefixCache::LetGo(State* state) {
  if (state->pinned != 0) index_.Unpin(std::exchange(state->pinned, 0));
  index_.Unclaim(std::exchange(state->claimed, 0));
  while (!state->used.empty()) {  // the deepest first
    index_.Unuse(state->used.back());
    state->used.pop_back();
  }
}

void PrefixCache::Abandon(uint64_t sequence_id) {
  const auto it = states_.find(sequence_id);
  if (it == states_.end()) return;
  LetGo(&it->second);
  states_.erase(it);
}

void PrefixCache::AppendHit(const Sequence& sequence, const Hit& hit,
                            v1::SequenceStart* start,
                            v1::StepPlan* plan) const {
  if (hit.num_tokens == 0) return;
  start->set_num_cached(static_cast<uint32_t>(hit.num_tokens));
  const Placement& placement = sequence.placement();
  for (const std::vector<uint32_t>& block : hit.shared) {
    size_t next = 0;
    for (int32_t layer = 0; layer < placement.num_layers(); ++layer) {
      if (!ledger_->Shares(placement, layer)) continue;
      start->add_shared_layers(static_cast<uint32_t>(layer));
      start->add_shared_ids(block[next++]);
    }
  }
  if (hit.snapshot.empty()) return;
  const std::vector<uint32_t> to = StateOf(sequence, hit.num_tokens);
  SY_CHECK(to.size() == hit.snapshot.size());
  for (size_t i = 0; i < to.size(); ++i) {
    v1::CacheCopy* copy = plan->add_copies();
    copy->set_from_id(hit.snapshot[i]);
    copy->set_to_id(to[i]);
  }
}

int64_t PrefixCache::BranchOf(uint64_t sequence_id) const {
  const auto it = states_.find(sequence_id);
  return it == states_.end() ? 0 : it->second.branch;
}

void PrefixCache::CopyBranch(const Sequence& sequence, uint64_t step_id,
                             v1::StepPlan* plan) {
  State& state = states_.at(sequence.id());
  const int64_t num_tokens = std::exchange(state.branch, 0);
  Leaving copy;
  copy.claimed = std::exchange(state.claimed, 0);
  const std::vector<uint32_t> from = StateOf(sequence, num_tokens);
  int64_t num_bytes = 0;
  for (const uint32_t id : from) num_bytes += ledger_->BytesOf(id);
  if (num_bytes > ledger_->free_bytes() + ledger_->reusable_bytes()) {
    return index_.Unclaim(copy.claimed);
  }
  while (ledger_->free_bytes() < num_bytes && Evict()) {
  }
  for (const uint32_t id : from) {
    const std::optional<uint32_t> to = ledger_->AllocateKept(id);
    if (!to.has_value()) {
      // The workers have not heard of these.
      for (const uint32_t made : copy.state) ledger_->Drop(made);
      return index_.Unclaim(copy.claimed);
    }
    copy.state.push_back(*to);
  }
  for (size_t i = 0; i < from.size(); ++i) {
    v1::CacheCopy* entry = plan->add_copies();
    entry->set_from_id(from[i]);
    entry->set_to_id(copy.state[i]);
    entry->set_keep(true);
  }
  copy.sequence_id = sequence.id();
  copy.num_restarts = sequence.num_restarts();
  copy.placement = sequence.placement();
  const auto begin = sequence.token_ids().begin();
  copy.tokens.assign(begin, begin + num_tokens);
  copy.num_tokens = num_tokens;
  const int64_t num_blocks = num_tokens / ledger_->spec().block_size();
  copy.first_block = FirstToEnter(copy.placement, num_blocks);
  copy.blocks.resize(num_blocks - copy.first_block);
  copy.step_id = step_id;
  copy.fresh = true;
  leaving_.push_back(std::move(copy));
}

void PrefixCache::Publish(const Sequence& sequence) {
  const auto it = states_.find(sequence.id());
  if (it == states_.end()) return;
  State& state = it->second;
  const int64_t block_size = ledger_->spec().block_size();
  const int64_t num_full = sequence.num_computed() / block_size;
  if (num_full <= state.num_published) return;
  if (!index_.Has(state.node)) {
    // Evicted, and all below it: its blocks are published anew.
    while (!state.used.empty()) {
      index_.Unuse(state.used.back());
      state.used.pop_back();
    }
    state.num_published = 0;
    state.node = index_.Root(sequence.placement());
  }
  while (state.num_published < num_full) {
    const PrefixIndex::Tokens block = sequence.token_ids().subspan(
        state.num_published * block_size, block_size);
    std::vector<uint32_t> units = BlockOf(sequence, state.num_published);
    const std::optional<PrefixIndex::Id> known =
        index_.FindChild(state.node, block);
    if (!known.has_value()) {
      Keep(units);
      state.node = index_.Insert(state.node, block, std::move(units));
      index_.Use(state.node);
      state.used.push_back(state.node);
    } else {
      state.node = *known;
      if (index_.UnitsOf(*known) == units) {
        index_.Use(*known);
        state.used.push_back(*known);
      } else if (!index_.HasUsers(*known)) {
        // The same contents twice: ours are held anyway.
        Keep(units);
        Drop(index_.Replace(*known, std::move(units)));
        index_.Use(*known);
        state.used.push_back(*known);
      }
    }
    ++state.num_published;
  }
}

void PrefixCache::Vouch(uint64_t sequence_id) {
  const auto it = states_.find(sequence_id);
  if (it == states_.end()) return;
  // Above one that is sound all of it is, but for what others hold.
  const std::vector<PrefixIndex::Id>& used = it->second.used;
  for (auto node = used.rbegin();
       node != used.rend() && index_.MarkSound(*node); ++node) {
  }
}

void PrefixCache::End(const Sequence& sequence, uint64_t last_step_id) {
  const auto it = states_.find(sequence.id());
  if (it == states_.end()) return ledger_->Release(sequence.id());
  State& state = it->second;
  if (!index_.Has(state.node)) state.num_published = 0;
  Publish(sequence);

  const int64_t block_size = ledger_->spec().block_size();
  Leaving leaving;
  leaving.num_tokens = sequence.num_scheduled();
  leaving.first_block = FirstToEnter(sequence.placement(), state.num_published);
  for (int64_t block = leaving.first_block;
       block < leaving.num_tokens / block_size; ++block) {
    leaving.blocks.push_back(BlockOf(sequence, block));
    Keep(leaving.blocks.back());
  }
  if (leaving.num_tokens > 0 && HasState(sequence.placement())) {
    leaving.state = StateOf(sequence, leaving.num_tokens);
    Keep(leaving.state);
  }
  leaving.sequence_id = sequence.id();
  leaving.num_restarts = sequence.num_restarts();
  leaving.placement = sequence.placement();
  leaving.tokens.assign(sequence.token_ids().begin(),
                        sequence.token_ids().end());
  leaving.step_id = last_step_id;
  index_.Touch(state.node);
  ledger_->Release(sequence.id());
  // What is left is entered while the path is still in use.
  if (sequence.num_computed() == sequence.num_scheduled()) {
    Enter(leaving);
  } else {
    leaving_.push_back(std::move(leaving));
  }
  LetGo(&state);
  states_.erase(it);
}

void PrefixCache::Reject(const Sequence& sequence) {
  // Copies that it made; they are as its logits are.
  CommitSample(sequence.id(), sequence.num_restarts(), kNoTokenId);
  RemoveUnsound(sequence.placement(), sequence.token_ids());
  ledger_->Release(sequence.id());
  Abandon(sequence.id());
}

void PrefixCache::RemoveUnsound(const Placement& placement,
                                PrefixIndex::Tokens tokens) {
  for (const PrefixIndex::Id node : index_.FindPath(placement, tokens)) {
    if (index_.IsSound(node)) continue;
    Drop(index_.Remove(node));  // and all below it
    break;
  }
  for (;;) {
    const std::vector<PrefixIndex::Id> path =
        index_.FindPath(placement, tokens);
    const PrefixIndex::Snapshot* snapshot =
        index_.FindSnapshot(placement, path, tokens);
    if (snapshot == nullptr) return;
    Drop(index_.Remove(snapshot->id));
  }
}

void PrefixCache::GiveUp(const Leaving& leaving) {
  for (const std::vector<uint32_t>& block : leaving.blocks) Drop(block);
  Drop(leaving.state);
  index_.Unclaim(leaving.claimed);
}

void PrefixCache::Enter(const Leaving& leaving) {
  if (leaving.blocks.empty() && leaving.state.empty()) return;
  const int64_t block_size = ledger_->spec().block_size();
  const PrefixIndex::Tokens tokens = leaving.tokens;
  if (static_cast<int64_t>(tokens.size()) < leaving.num_tokens) {
    return GiveUp(leaving);
  }
  const std::vector<PrefixIndex::Id> path = index_.FindPath(
      leaving.placement, tokens.subspan(0, leaving.first_block * block_size));
  // Its beginning may have been evicted.
  if (static_cast<int64_t>(path.size()) < leaving.first_block) {
    return GiveUp(leaving);
  }
  PrefixIndex::Id node =
      path.empty() ? index_.Root(leaving.placement) : path.back();
  for (size_t i = 0; i < leaving.blocks.size(); ++i) {
    const PrefixIndex::Tokens block =
        tokens.subspan((leaving.first_block + i) * block_size, block_size);
    const std::optional<PrefixIndex::Id> known = index_.FindChild(node, block);
    if (known.has_value()) Drop(leaving.blocks[i]);
    node = known.has_value() ? *known
                             : index_.Insert(node, block, leaving.blocks[i]);
  }
  index_.Touch(node);
  index_.Unclaim(leaving.claimed);
  if (leaving.state.empty()) return;
  const int64_t num_full = leaving.num_tokens / block_size * block_size;
  if (!index_.InsertSnapshot(
          node, tokens.subspan(num_full, leaving.num_tokens - num_full),
          leaving.state)) {
    Drop(leaving.state);
  }
}

void PrefixCache::CommitSample(uint64_t sequence_id, int32_t num_restarts,
                               uint32_t token_id) {
  for (auto it = leaving_.begin(); it != leaving_.end();) {
    if (it->sequence_id != sequence_id || it->num_restarts != num_restarts) {
      ++it;
    } else if (token_id == kNoTokenId) {
      RemoveUnsound(it->placement, it->tokens);
      GiveUp(*it);
      it = leaving_.erase(it);
    } else {
      // No more than its state consumes: a copy knows all of its tokens.
      if (static_cast<int64_t>(it->tokens.size()) < it->num_tokens) {
        it->tokens.push_back(token_id);
      }
      ++it;
    }
  }
}

void PrefixCache::CommitStep(uint64_t step_id) {
  for (auto it = leaving_.begin(); it != leaving_.end();) {
    if (it->step_id > step_id) {
      ++it;
      continue;
    }
    Enter(*it);
    it = leaving_.erase(it);
  }
}

bool PrefixCache::Complete(v1::StepPlan* plan) {
  plan->mutable_kept()->Add(to_keep_.begin(), to_keep_.end());
  plan->mutable_dropped()->Add(to_drop_.begin(), to_drop_.end());
  to_keep_.clear();
  to_drop_.clear();
  const bool waited = !pinning_.empty();
  for (const uint64_t sequence_id : pinning_) {
    const auto it = states_.find(sequence_id);
    if (it != states_.end() && it->second.pinned != 0) {
      index_.Unpin(std::exchange(it->second.pinned, 0));
    }
  }
  pinning_.clear();
  for (Leaving& leaving : leaving_) leaving.fresh = false;
  return waited;
}

bool PrefixCache::Evict() {
  if (const auto units = index_.Evict(); units.has_value()) {
    Drop(*units);
    return true;
  }
  for (auto it = leaving_.begin(); it != leaving_.end(); ++it) {
    if (it->fresh) continue;
    GiveUp(*it);
    leaving_.erase(it);
    return true;
  }
  return false;
}

absl::Status PrefixCache::CheckIntegrity() const {
  SY_RETURN_IF_ERROR(index_.CheckIntegrity());
  std::vector<uint32_t> units = index_.AllUnits();
  for (const Leaving& leaving : leaving_) {
    for (const std::vector<uint32_t>& block : leaving.blocks) {
      units.insert(units.end(), block.begin(), block.end());
    }
    units.insert(units.end(), leaving.state.begin(), leaving.state.end());
  }
  std::sort(units.begin(), units.end());
  for (size_t i = 0; i < units.size(); ++i) {
    if (!ledger_->IsKept(units[i]) || (i > 0 && units[i] == units[i - 1])) {
      return absl::InternalError(
          absl::StrCat("prefix cache: id ", units[i],
                       i > 0 && units[i] == units[i - 1]
                           ? " is in it twice"
                           : " is in it, but the ledger does not keep it"));
    }
  }
  if (static_cast<int64_t>(units.size()) != ledger_->num_kept()) {
    return absl::InternalError(
        absl::StrCat("prefix cache: knows ", units.size(),
                     " units, but the ledger keeps ", ledger_->num_kept()));
  }
  return absl::OkStatus();
}

}  // namespace switchyard
