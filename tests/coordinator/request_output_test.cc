#include "coordinator/request_output.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "tests/coordinator/tiny_tokenizer.h"

namespace switchyard {
namespace {

class RequestOutputTest : public ::testing::Test {
 protected:
  RequestOutputTest()
      : tokenizer_(Tokenizer::FromJson(TinyTokenizerJson().dump()).value()) {
    sampling_.set_skip_special_tokens(true);
  }

  const std::unique_ptr<const Tokenizer> tokenizer_;
  v1::SamplingParams sampling_;
};

TEST_F(RequestOutputTest, HoldsHalfCharactersBackUntilTheEnd) {
  RequestOutput output(tokenizer_.get(), sampling_);
  EXPECT_EQ(output.Append('a'), "a");
  EXPECT_EQ(output.Append(0xC3), "");
  EXPECT_EQ(output.Append(0xA9), "\u00e9");
  EXPECT_EQ(output.AppendLast(0xC3, false), "\uFFFD");
}

TEST_F(RequestOutputTest, AStopTokenLeavesNoText) {
  RequestOutput output(tokenizer_.get(), sampling_);
  EXPECT_EQ(output.Append('a'), "a");
  EXPECT_EQ(output.AppendLast('b', true), "");
}

TEST_F(RequestOutputTest, TextEndsBeforeAStopString) {
  sampling_.add_stop("xyz");
  RequestOutput output(tokenizer_.get(), sampling_);
  EXPECT_EQ(output.Append('a'), "a");
  EXPECT_EQ(output.Append('x'), "");
  EXPECT_EQ(output.Append('y'), "");
  EXPECT_FALSE(output.stopped());
  EXPECT_EQ(output.Append('z'), "");
  EXPECT_TRUE(output.stopped());
}

TEST_F(RequestOutputTest, WhatWasHeldForAStopStringComesOutAtTheEnd) {
  sampling_.add_stop("xyz");
  {
    RequestOutput output(tokenizer_.get(), sampling_);
    EXPECT_EQ(output.Append('x'), "");
    EXPECT_EQ(output.AppendLast('y', false), "xy");
    EXPECT_FALSE(output.stopped());
  }
  {
    RequestOutput output(tokenizer_.get(), sampling_);
    EXPECT_EQ(output.Append('x'), "");
    EXPECT_EQ(output.AppendLast(kTinyEos, true), "x");
  }
  RequestOutput output(tokenizer_.get(), sampling_);
  EXPECT_EQ(output.Append('x'), "");
  EXPECT_EQ(output.Flush(), "x");
}

TEST_F(RequestOutputTest, StopStringsCountOnceMinTokensAreThere) {
  sampling_.add_stop("x");
  sampling_.set_min_tokens(2);
  RequestOutput output(tokenizer_.get(), sampling_);
  EXPECT_EQ(output.Append('x'), "x");
  EXPECT_EQ(output.Append('x'), "x");
  EXPECT_FALSE(output.stopped());
  EXPECT_EQ(output.Append('x'), "");
  EXPECT_TRUE(output.stopped());
}

TEST_F(RequestOutputTest, WithoutATokenizerThereIsNoText) {
  RequestOutput output(nullptr, sampling_);
  EXPECT_EQ(output.Append('a'), "");
  EXPECT_EQ(output.AppendLast('b', false), "");
}

}  // namespace
}  // namespace switchyard
