#include "worker/peer_agreement.h"

#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "kernels/status.h"

namespace switchyard {
namespace {

constexpr char kConsent = '+';
constexpr char kObjection = '-';

// What every rank says under a key of its own, in rank order.
struct Round {
  std::vector<std::string> said;  // without consent or objection
  std::optional<std::string> objection;
};

absl::StatusOr<Round> HoldRound(const CollectiveOptions& options,
                                absl::string_view name,
                                const absl::StatusOr<std::string>& own,
                                absl::Time deadline, Rendezvous& rendezvous) {
  const auto key = [&](int rank) {
    return absl::StrCat("peer/", name, "/", rank);
  };
  SY_RETURN_IF_ERROR(rendezvous.Put(
      key(options.rank), own.ok() ? absl::StrCat(std::string(1, kConsent), *own)
                                  : absl::StrCat(std::string(1, kObjection),
                                                 own.status().message())));
  Round round;
  for (int rank = 0; rank < options.world_size; ++rank) {
    SY_ASSIGN_OR_RETURN(std::string value,
                        rendezvous.Get(key(rank), deadline - absl::Now()));
    if (value.empty() || (value[0] != kConsent && value[0] != kObjection)) {
      return absl::InternalError(
          absl::StrCat("rank ", rank, " said neither yes nor no to ", name,
                       "; is it of the same version?"));
    }
    const bool objects = value[0] == kObjection;
    value.erase(0, 1);
    if (objects && !round.objection.has_value())
      round.objection = absl::StrCat("rank ", rank, ": ", value);
    round.said.push_back(std::move(value));
  }
  return round;
}

}  // namespace

absl::StatusOr<PeerAgreement> AgreeOnPeers(const CollectiveOptions& options,
                                           Rendezvous& rendezvous,
                                           PeerMemory& memory) {
  const absl::Time deadline = absl::Now() + options.connect_timeout;
  SY_ASSIGN_OR_RETURN(
      const Round shared,
      HoldRound(options, "share", memory.Share(), deadline, rendezvous));
  if (shared.objection.has_value())
    return PeerAgreement{false, *shared.objection};
  absl::Status opened;
  for (int rank = 0; rank < options.world_size && opened.ok(); ++rank) {
    if (rank != options.rank) opened = memory.Open(rank, shared.said[rank]);
  }
  SY_ASSIGN_OR_RETURN(
      const Round round,
      HoldRound(options, "open",
                opened.ok() ? absl::StatusOr<std::string>("") : opened,
                deadline, rendezvous));
  if (round.objection.has_value())
    return PeerAgreement{false, *round.objection};
  return PeerAgreement{true, ""};
}

}  // namespace switchyard
