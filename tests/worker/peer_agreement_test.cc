// All ranks take the peers' memory, or none does, and all know the same reason.
#include "worker/peer_agreement.h"

#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "worker/rendezvous.h"

namespace switchyard {
namespace {

class FakeMemory final : public PeerMemory {
 public:
  absl::StatusOr<std::string> Share() override {
    if (!share.ok()) return share;
    return secret;
  }
  absl::Status Open(int rank, const std::string& shared) override {
    opened.push_back(absl::StrCat(rank, "=", shared));
    return rank == refuses ? absl::UnavailableError("out of reach")
                           : absl::OkStatus();
  }

  absl::Status share;
  std::string secret;
  int refuses = -1;
  std::vector<std::string> opened;
};

std::vector<absl::StatusOr<PeerAgreement>> Agree(
    std::vector<FakeMemory>& memories,
    absl::Duration timeout = absl::Seconds(30), int absent = -1) {
  const int world_size = static_cast<int>(memories.size());
  std::vector<absl::StatusOr<PeerAgreement>> results(world_size,
                                                     PeerAgreement());
  RendezvousTable table;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < world_size; ++rank) {
    if (rank == absent) continue;
    threads.emplace_back([&, rank] {
      CollectiveOptions options;
      options.rank = rank;
      options.world_size = world_size;
      options.connect_timeout = timeout;
      results[rank] = AgreeOnPeers(options, table, memories[rank]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return results;
}

TEST(PeerAgreementTest, EveryRankOpensAllOthers) {
  std::vector<FakeMemory> memories(4);
  // Handles are any bytes.
  for (int rank = 0; rank < 4; ++rank)
    memories[rank].secret = std::string(1, '\0') + absl::StrCat("-+", rank);
  for (const auto& result : Agree(memories)) {
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(result->agreed);
    EXPECT_EQ(result->objection, "");
  }
  const std::string zero(1, '\0');
  EXPECT_EQ(memories[1].opened,
            (std::vector<std::string>{"0=" + zero + "-+0", "2=" + zero + "-+2",
                                      "3=" + zero + "-+3"}));
}

TEST(PeerAgreementTest, OneThatDoesNotShareIsEnough) {
  std::vector<FakeMemory> memories(4);
  memories[2].share = absl::FailedPreconditionError("--all-reduce=nccl");
  memories[3].share = absl::UnavailableError("another reason");
  for (const auto& result : Agree(memories)) {
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_FALSE(result->agreed);
    EXPECT_EQ(result->objection, "rank 2: --all-reduce=nccl");
  }
  for (const FakeMemory& memory : memories) EXPECT_TRUE(memory.opened.empty());
}

TEST(PeerAgreementTest, OneThatCannotOpenIsEnough) {
  std::vector<FakeMemory> memories(2);
  memories[1].refuses = 0;
  for (const auto& result : Agree(memories)) {
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_FALSE(result->agreed);
    EXPECT_EQ(result->objection, "rank 1: out of reach");
  }
}

TEST(PeerAgreementTest, ARankThatStaysAwayIsNamed) {
  std::vector<FakeMemory> memories(2);
  const auto results = Agree(memories, absl::Milliseconds(50), /*absent=*/1);
  EXPECT_EQ(results[0].status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_NE(results[0].status().message().find("peer/share/1"),
            absl::string_view::npos)
      << results[0].status();
}

TEST(PeerAgreementTest, APeerThatSaysNothingSensibleIsAnError) {
  RendezvousTable table;
  ASSERT_TRUE(table.Put("peer/share/1", "?").ok());
  CollectiveOptions options;
  options.world_size = 2;
  FakeMemory memory;
  const auto result = AgreeOnPeers(options, table, memory);
  EXPECT_EQ(result.status().code(), absl::StatusCode::kInternal);
  EXPECT_NE(result.status().message().find("rank 1"), absl::string_view::npos);
}

}  // namespace
}  // namespace switchyard
