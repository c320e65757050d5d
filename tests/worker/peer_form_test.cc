#include "worker/peer_form.h"

#include "gtest/gtest.h"

namespace switchyard {
namespace {

TEST(PeerFormTest, TwoRanksNeverTakeTwoShots) {
  for (int64_t bytes = 4; bytes <= kPeerMessageLimit; bytes *= 2) {
    for (const PeerMessage kind :
         {PeerMessage::kSum, PeerMessage::kSumAndNorm}) {
      EXPECT_EQ(PeerFormOf(PeerForm::kBySize, kind, 2, bytes),
                PeerForm::kOneShot);
    }
  }
}

TEST(PeerFormTest, LongMessagesOfMoreRanksTakeTwoShots) {
  for (const TwoShotsFrom& from : kTwoShotsFrom) {
    const auto form = [&](PeerMessage kind, int64_t bytes) {
      return PeerFormOf(PeerForm::kBySize, kind, from.world_size, bytes);
    };
    EXPECT_EQ(form(PeerMessage::kSum, 4), PeerForm::kOneShot);
    EXPECT_EQ(form(PeerMessage::kSum, from.sum_bytes - 1), PeerForm::kOneShot);
    EXPECT_EQ(form(PeerMessage::kSum, from.sum_bytes), PeerForm::kTwoShot);
    EXPECT_EQ(form(PeerMessage::kSum, kPeerMessageLimit), PeerForm::kTwoShot);
    EXPECT_EQ(form(PeerMessage::kSumAndNorm, from.sum_and_norm_bytes),
              PeerForm::kTwoShot);
    if (from.sum_and_norm_bytes == 0) continue;
    EXPECT_EQ(form(PeerMessage::kSumAndNorm, from.sum_and_norm_bytes - 1),
              PeerForm::kOneShot);
  }
}

TEST(PeerFormTest, TheLongestMessageHasWholeUnitsAndTheSumsOfDecodeSteps) {
  EXPECT_EQ(kPeerMessageLimit % 16, 0);
  EXPECT_GE(kPeerMessageLimit, 64 * 8192 * 4);
}

TEST(PeerFormTest, WhatIsAskedForHolds) {
  for (const PeerForm form : {PeerForm::kOneShot, PeerForm::kTwoShot}) {
    for (int ranks : {2, 4, 8}) {
      for (int64_t bytes : {int64_t{4}, kPeerMessageLimit})
        EXPECT_EQ(PeerFormOf(form, PeerMessage::kSum, ranks, bytes), form);
    }
  }
}

}  // namespace
}  // namespace switchyard
