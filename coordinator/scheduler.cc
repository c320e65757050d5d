#include "coordinator/scheduler.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "kernels/status.h"

namespace switchyard {
namespace {

// Placements the workers remember beyond those in use: enough that a server's
// presets, and some requests' own lists, are spelled out once.
constexpr int64_t kPlacementTableCapacity = 1024;

absl::Status NotLive(uint64_t sequence_id) {
  return absl::NotFoundError(
      absl::StrCat("sequence ", sequence_id, " is not live"));
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options, CacheSpec spec,
                     int64_t arena_bytes)
    : options_(options),
      ledger_(std::move(spec), arena_bytes),
      prefixes_(&ledger_),
      placement_ids_(kPlacementTableCapacity) {
  SY_CHECK(options_.max_num_seqs > 0 && options_.max_num_batched_tokens > 0);
}

absl::Status Scheduler::CheckFits(const Placement& placement,
                                  int64_t num_tokens) const {
  const int64_t needed_bytes = ledger_.BytesFor(placement, num_tokens);
  if (needed_bytes <= ledger_.capacity_bytes()) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "the sequence can grow to ", num_tokens, " cached positions, which take ",
      needed_bytes, " bytes under its placement; the whole cache has ",
      ledger_.capacity_bytes(), " bytes, enough for ",
      ledger_.MaxTokens(placement, num_tokens),
      " positions: shorten the prompt or lower max_tokens"));
}

absl::StatusOr<uint64_t> Scheduler::Add(SequenceRequest request) {
  if (request.prompt_token_ids.empty()) {
    return absl::InvalidArgumentError("prompt: has no tokens");
  }
  if (request.sampling.max_tokens() == 0) {
    return absl::InvalidArgumentError(
        "sampling.max_tokens: must be at least 1, is 0");
  }
  const uint64_t id = last_sequence_id_ + 1;
  auto sequence = std::make_unique<Sequence>(id, std::move(request));
  SY_RETURN_IF_ERROR(
      CheckFits(sequence->placement(), sequence->max_cached_tokens()));
  last_sequence_id_ = id;
  waiting_.emplace(id, std::move(sequence));
  return id;
}

absl::StatusOr<std::unique_ptr<Sequence>> Scheduler::Finish(
    uint64_t sequence_id, v1::FinishReason reason) {
  Queue::node_type node = waiting_.extract(sequence_id);
  if (node.empty()) {
    node = running_.extract(sequence_id);
    if (node.empty()) return NotLive(sequence_id);
    Forget(*node.mapped());
  }
  if (solo_ == sequence_id) solo_.reset();
  admission_blocked_ = false;
  node.mapped()->Finish(reason);
  return std::move(node.mapped());
}

absl::Status Scheduler::CheckRecompute(uint64_t sequence_id,
                                       const Placement& placement) const {
  const Sequence* sequence = Find(sequence_id);
  if (sequence == nullptr) return NotLive(sequence_id);
  return CheckFits(placement, sequence->max_cached_tokens());
}

absl::Status Scheduler::Recompute(uint64_t sequence_id,
                                  const Placement& placement, uint64_t epoch) {
  SY_RETURN_IF_ERROR(CheckRecompute(sequence_id, placement));
  auto it = waiting_.find(sequence_id);
  if (it == waiting_.end()) {
    it = running_.find(sequence_id);
    if (it->second->placement() == placement) {
      it->second->set_epoch(epoch);
      return absl::OkStatus();
    }
    Forget(*it->second);
    it = waiting_.insert(running_.extract(it)).position;
  }
  it->second->Restart(placement, epoch);
  admission_blocked_ = false;
  return absl::OkStatus();
}

std::optional<v1::StepPlan> Scheduler::Schedule(uint64_t epoch) {
  v1::StepPlan plan;
  StepInFlight step;
  int64_t budget = options_.max_num_batched_tokens;
  if (ScheduleRunning(&budget, &plan, &step)) Admit(budget, &plan, &step);
  if (step.batch.empty() && to_forget_.empty()) return std::nullopt;

  for (const v1::SequenceStep& entry : plan.batch()) {
    if (entry.start() > 0 &&
        prefixes_.BranchOf(entry.sequence_id()) == entry.start()) {
      prefixes_.CopyBranch(*running_.at(entry.sequence_id()), last_step_id_ + 1,
                           &plan);
    }
  }
  if (prefixes_.Complete(&plan)) admission_blocked_ = false;
  plan.set_step_id(++last_step_id_);
  plan.set_epoch(epoch);
  plan.mutable_finished()->Add(to_forget_.begin(), to_forget_.end());
  to_forget_.clear();
  step.step_id = last_step_id_;
  in_flight_.push_back(std::move(step));
  return plan;
}

std::vector<Scheduler::Share> Scheduler::ShareBudget(int64_t* budget) {
  std::vector<Share> shares;  // by arrival
  for (const auto& [id, sequence] : running_) {
    const int64_t wanted = sequence->num_schedulable();
    if (wanted == 0) continue;
    const bool generates = wanted == 1;
    shares.push_back({sequence.get(), generates ? 1 : 0});
    if (generates) --*budget;
  }
  SY_CHECK(*budget >= 0);
  for (Share& share : shares) {
    if (share.num_positions > 0) continue;
    share.num_positions =
        std::min(*budget, UpToBranch(share.sequence->id(),
                                     share.sequence->num_scheduled(),
                                     share.sequence->num_schedulable()));
    *budget -= share.num_positions;
  }
  return shares;
}

bool Scheduler::ScheduleRunning(int64_t* budget, v1::StepPlan* plan,
                                StepInFlight* step) {
  bool all_planned = true;
  for (const Share& share : ShareBudget(budget)) {
    if (share.num_positions == 0) continue;
    // Victims are taken from the other end, so they have no plan in this step.
    if (share.sequence->state() != Sequence::State::kRunning) break;
    const int64_t num_tokens =
        share.sequence->num_scheduled() + share.num_positions;
    auto units = Reserve(*share.sequence, num_tokens);
    while (!units.ok()) {
      const auto victim = FindVictim(share.sequence->id());
      if (victim == running_.end()) break;
      Preempt(victim);
      all_planned = false;
      units = Reserve(*share.sequence, num_tokens);
    }
    if (units.ok()) {
      AppendStep(share, *units, plan, step);
      continue;
    }
    all_planned = false;
    if (running_.size() == 1) {
      solo_ = share.sequence->id();
      Preempt(running_.begin());
      while (prefixes_.Evict()) {  // it wants the arena clean
      }
    }
  }
  return all_planned;
}

int64_t Scheduler::UpToBranch(uint64_t sequence_id, int64_t start,
                              int64_t wanted) const {
  const int64_t branch = prefixes_.BranchOf(sequence_id);
  return start < branch ? std::min(wanted, branch - start) : wanted;
}

absl::StatusOr<std::vector<CacheLedger::NewUnit>> Scheduler::Reserve(
    const Sequence& sequence, int64_t num_tokens,
    absl::Span<const std::vector<uint32_t>> shared) {
  const int64_t num_bytes = ledger_.BytesToReserve(
      sequence.id(), sequence.placement(), num_tokens, shared.size());
  if (num_bytes > ledger_.free_bytes() + ledger_.reusable_bytes()) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "no room for ", num_bytes, " bytes beside the ", ledger_.held_bytes(),
        " held of the cache's ", ledger_.capacity_bytes()));
  }
  while (ledger_.free_bytes() < num_bytes && prefixes_.Evict()) {
  }
  // What is free may be in pieces: then more and more is evicted.
  for (int64_t num_evicted = 1;; num_evicted *= 2) {
    auto units = ledger_.Reserve(sequence.id(), sequence.placement(),
                                 num_tokens, shared);
    if (units.ok() || !prefixes_.Evict()) return units;
    for (int64_t i = 1; i < num_evicted && prefixes_.Evict(); ++i) {
    }
  }
}

Scheduler::Queue::iterator Scheduler::FindVictim(uint64_t sequence_id) {
  for (auto it = running_.rbegin();
       it != running_.rend() && it->first != sequence_id; ++it) {
    // One that only waits for its last samples is about to leave by itself.
    if (it->second->num_schedulable() > 0) return std::prev(it.base());
  }
  return running_.end();
}

void Scheduler::Admit(int64_t budget, v1::StepPlan* plan, StepInFlight* step) {
  const int64_t max_running =
      std::min(options_.max_num_seqs, options_.max_num_batched_tokens);
  while (budget > 0 && num_running() < max_running && !admission_blocked_) {
    const auto next = NextToAdmit();
    if (next == waiting_.end()) return;
    Admission admission = TryAdmit(next, /*reuse=*/true, &budget, plan, step);
    // What it would begin with cannot be evicted; without, it may have room.
    if (admission == Admission::kInPieces) {
      admission = TryAdmit(next, /*reuse=*/false, &budget, plan, step);
    }
    if (admission == Admission::kDone) continue;
    // Free bytes enough, but in pieces: try again when something is freed.
    admission_blocked_ = admission == Admission::kInPieces;
    return;
  }
}

Scheduler::Admission Scheduler::TryAdmit(Queue::iterator next, bool reuse,
                                         int64_t* budget, v1::StepPlan* plan,
                                         StepInFlight* step) {
  Sequence* sequence = next->second.get();
  // One that wants the arena for itself neither finds nor leaves anything.
  PrefixCache::Hit hit;
  if (options_.prefix_caching && !solo_.has_value()) {
    hit = prefixes_.Begin(*sequence, reuse);
  }
  if (!HasRoomFor(*sequence, hit)) {
    prefixes_.Abandon(sequence->id());
    return Admission::kNoRoom;
  }
  const Share share{sequence,
                    std::min(*budget, UpToBranch(sequence->id(), hit.num_tokens,
                                                 sequence->num_schedulable() -
                                                     hit.num_tokens))};
  const auto units =
      Reserve(*sequence, hit.num_tokens + share.num_positions, hit.shared);
  if (!units.ok()) {
    prefixes_.Abandon(sequence->id());
    return Admission::kInPieces;
  }
  if (options_.prefix_caching && !sequence->sampling().has_prompt_logprobs()) {
    prefixes_.CountQuery(sequence->num_tokens(), hit.num_tokens);
  }
  sequence->Start(hit.num_tokens);
  running_.insert(waiting_.extract(next));
  AppendStart(*sequence, hit, plan);
  AppendStep(share, *units, plan, step);
  *budget -= share.num_positions;
  return Admission::kDone;
}

Scheduler::Queue::iterator Scheduler::NextToAdmit() {
  return solo_.has_value() ? waiting_.find(*solo_) : waiting_.begin();
}

bool Scheduler::HasRoomFor(const Sequence& sequence,
                           const PrefixCache::Hit& hit) const {
  return ledger_.BytesFor(sequence.placement(), sequence.num_tokens()) -
             hit.held_bytes + ledger_.growth_bytes() <=
         ledger_.free_bytes() + ledger_.reusable_bytes();
}

void Scheduler::AppendStep(const Share& share,
                           const std::vector<CacheLedger::NewUnit>& units,
                           v1::StepPlan* plan, StepInFlight* step) {
  Sequence& sequence = *share.sequence;
  const int64_t start = sequence.num_scheduled();
  const bool sample = sequence.Schedule(share.num_positions);
  v1::SequenceStep* entry = plan->add_batch();
  entry->set_sequence_id(sequence.id());
  entry->set_start(static_cast<uint32_t>(start));
  entry->set_num_tokens(static_cast<uint32_t>(share.num_positions));
  entry->set_sample(sample);
  for (const CacheLedger::NewUnit& unit : units) {
    entry->add_cache_layers(static_cast<uint32_t>(unit.layer));
    entry->add_cache_ids(unit.cache_id);
  }
  step->batch.push_back(
      {sequence.id(), sequence.num_restarts(), share.num_positions, sample});
}

void Scheduler::AppendStart(const Sequence& sequence,
                            const PrefixCache::Hit& hit, v1::StepPlan* plan) {
  const PlacementIds::Id id = placement_ids_.Acquire(sequence.placement());
  if (id.is_new) {
    v1::PlacementEntry* entry = plan->add_placements();
    entry->set_placement_id(id.value);
    for (const int32_t mixer : sequence.placement().mixers()) {
      entry->add_mixer_ids(static_cast<uint32_t>(mixer));
    }
  }
  v1::SequenceStart* start = plan->add_started();
  start->set_sequence_id(sequence.id());
  start->set_placement_id(id.value);
  start->mutable_token_ids()->Add(sequence.token_ids().begin(),
                                  sequence.token_ids().end());
  start->set_num_prompt_tokens(
      static_cast<uint32_t>(sequence.num_prompt_tokens()));
  *start->mutable_sampling() = sequence.sampling();
  start->set_seed(sequence.sampling().seed());
  prefixes_.AppendHit(sequence, hit, start, plan);
}

void Scheduler::Preempt(Queue::iterator victim) {
  Sequence& sequence = *victim->second;
  Forget(sequence);
  sequence.Restart();
  waiting_.insert(running_.extract(victim));
  ++num_preemptions_;
}

void Scheduler::Forget(const Sequence& sequence, bool sound) {
  if (sound) {
    prefixes_.End(sequence, in_flight_.empty() ? 0 : in_flight_.back().step_id);
  } else {
    prefixes_.Reject(sequence);
  }
  placement_ids_.Release(sequence.placement());
  to_forget_.push_back(sequence.id());
  admission_blocked_ = false;
}

absl::StatusOr<std::vector<Scheduler::Sampled>> Scheduler::Commit(
    const v1::StepResult& result) {
  if (in_flight_.empty() || in_flight_.front().step_id != result.step_id()) {
    return absl::InternalError(absl::StrCat(
        "got the result of step ", result.step_id(), ", but ",
        in_flight_.empty()
            ? std::string("no step is in flight")
            : absl::StrCat("step ", in_flight_.front().step_id, " is next")));
  }
  const std::vector<Pending>& batch = in_flight_.front().batch;
  int num_samples = 0;
  for (const Pending& pending : batch) {
    if (!pending.sample) continue;
    if (num_samples < result.tokens_size() &&
        result.tokens(num_samples).sequence_id() != pending.sequence_id) {
      return absl::InternalError(absl::StrCat(
          "step ", result.step_id(), ": token ", num_samples,
          " is of sequence ", result.tokens(num_samples).sequence_id(),
          ", should be of ", pending.sequence_id));
    }
    ++num_samples;
  }
  if (num_samples != result.tokens_size()) {
    return absl::InternalError(
        absl::StrCat("step ", result.step_id(), ": got ", result.tokens_size(),
                     " tokens, asked for ", num_samples));
  }

  std::vector<Sampled> sampled;
  int next_token = 0;
  for (const Pending& pending : batch) {
    const int token_index = pending.sample ? next_token++ : -1;
    const auto it = running_.find(pending.sequence_id);
    if (it == running_.end() ||
        it->second->num_restarts() != pending.num_restarts) {
      // It ended or restarted while the step was in flight.
      if (pending.sample) {
        prefixes_.CommitSample(pending.sequence_id, pending.num_restarts,
                               result.tokens(token_index).token_id());
      }
      continue;
    }
    Sequence& sequence = *it->second;
    if (!pending.sample) {
      sequence.CommitPositions(pending.num_positions);
      prefixes_.Publish(sequence);
      continue;
    }
    const uint32_t token_id = result.tokens(token_index).token_id();
    const bool sound = token_id != kNoTokenId;
    if (sound) {
      sequence.CommitSample(pending.num_positions, token_id);
      prefixes_.Publish(sequence);
      prefixes_.Vouch(sequence.id());
    } else {
      sequence.Finish(v1::FINISH_REASON_CANCELLED);
    }
    sampled.push_back({sequence.id(), token_id, token_index, nullptr});
    if (sequence.state() == Sequence::State::kFinished) {
      Forget(sequence, sound);
      if (solo_ == sequence.id()) solo_.reset();
      sampled.back().finished = std::move(it->second);
      running_.erase(it);
    }
  }
  in_flight_.pop_front();
  prefixes_.CommitStep(result.step_id());
  return sampled;
}

const Sequence* Scheduler::Find(uint64_t sequence_id) const {
  if (const auto it = running_.find(sequence_id); it != running_.end()) {
    return it->second.get();
  }
  const auto it = waiting_.find(sequence_id);
  return it == waiting_.end() ? nullptr : it->second.get();
}

absl::Status Scheduler::CheckIntegrity() const {
  SY_RETURN_IF_ERROR(ledger_.CheckIntegrity());
  SY_RETURN_IF_ERROR(prefixes_.CheckIntegrity());
  if (ledger_.num_holders() != num_running()) {
    return absl::InternalError(
        absl::StrCat("scheduler: ", num_running(), " sequences run, but ",
                     ledger_.num_holders(), " hold cache"));
  }
  for (const auto& [id, sequence] : running_) {
    if (sequence->state() != Sequence::State::kRunning ||
        ledger_.NumTokensOf(id) != sequence->num_scheduled()) {
      return absl::InternalError(absl::StrCat(
          "scheduler: running sequence ", id, " has ",
          sequence->num_scheduled(), " positions scheduled, but cache for ",
          ledger_.NumTokensOf(id)));
    }
  }
  for (const auto& [id, sequence] : waiting_) {
    if (sequence->state() != Sequence::State::kWaiting ||
        sequence->num_scheduled() != 0 || ledger_.NumTokensOf(id) != 0) {
      return absl::InternalError(absl::StrCat(
          "scheduler: sequence ", id, " waits with ", sequence->num_scheduled(),
          " positions scheduled and cache for ", ledger_.NumTokensOf(id)));
    }
  }
  if (solo_.has_value() && Find(*solo_) == nullptr) {
    return absl::InternalError(absl::StrCat(
        "scheduler: everybody waits for sequence ", *solo_, ", which is gone"));
  }
  return absl::OkStatus();
}

}  // namespace switchyard
