#include "log/log.h"

#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace switchyard {
namespace {

using nlohmann::json;

// What `act` writes to stderr, by line.
template <typename Act>
std::vector<std::string> LinesOf(Act act) {
  testing::internal::CaptureStderr();
  act();
  FlushLog();
  const std::string text = testing::internal::GetCapturedStderr();
  return absl::StrSplit(text, '\n', absl::SkipEmpty());
}

void Configure(LogFormat format, LogLevel level) {
  LogOptions options;
  options.format = format;
  options.level = level;
  options.component = "tester";
  ConfigureLog(options);
}

TEST(LogTest, WritesJsonLines) {
  Configure(LogFormat::kJson, LogLevel::kInfo);
  const std::vector<std::string> lines = LinesOf([] {
    Log(LogLevel::kInfo, "request finished",
        {{"request_id", "req-1"}, {"step", 7}, {"seconds", 0.25}});
    Log(LogLevel::kError, "rank lost", {{"rank", uint32_t{1}}});
  });
  ASSERT_EQ(lines.size(), 2);
  std::vector<json> parsed;
  for (const std::string& line : lines) parsed.push_back(json::parse(line));
  // An error overtakes what is queued.
  if (parsed[0]["level"] == "error") std::swap(parsed[0], parsed[1]);
  EXPECT_EQ(parsed[0]["level"], "info");
  EXPECT_EQ(parsed[0]["component"], "tester");
  EXPECT_EQ(parsed[0]["message"], "request finished");
  EXPECT_EQ(parsed[0]["request_id"], "req-1");
  EXPECT_EQ(parsed[0]["step"], 7);
  EXPECT_EQ(parsed[0]["seconds"], 0.25);
  EXPECT_EQ(parsed[1]["level"], "error");
  EXPECT_EQ(parsed[1]["rank"], 1);
  const std::string time = parsed[0]["time"];
  EXPECT_EQ(time.size(), std::string("2026-01-31T12:00:00.000001Z").size());
  EXPECT_EQ(time.back(), 'Z');
}

TEST(LogTest, WritesTextLines) {
  Configure(LogFormat::kText, LogLevel::kInfo);
  const std::vector<std::string> lines = LinesOf([] {
    Log(LogLevel::kWarning, "slow", {{"step", 7}, {"id", "a b"}});
  });
  ASSERT_EQ(lines.size(), 1);
  EXPECT_TRUE(
      absl::EndsWith(lines[0], "Z warning tester: slow step=7 id=\"a b\""))
      << lines[0];
}

TEST(LogTest, DropsWhatIsBelowTheLevel) {
  Configure(LogFormat::kText, LogLevel::kWarning);
  EXPECT_FALSE(LogEnabled(LogLevel::kInfo));
  EXPECT_TRUE(LogEnabled(LogLevel::kWarning));
  EXPECT_EQ(LinesOf([] {
              Log(LogLevel::kDebug, "no");
              Log(LogLevel::kInfo, "no");
              Log(LogLevel::kWarning, "yes");
            }).size(),
            1);
}

TEST(LogTest, KnowsItsNames) {
  EXPECT_EQ(ParseLogLevel("debug"), LogLevel::kDebug);
  EXPECT_EQ(ParseLogLevel("info"), LogLevel::kInfo);
  EXPECT_EQ(ParseLogLevel("warning"), LogLevel::kWarning);
  EXPECT_EQ(ParseLogLevel("error"), LogLevel::kError);
  EXPECT_EQ(ParseLogLevel("loud"), std::nullopt);
  EXPECT_EQ(ParseLogFormat("text"), LogFormat::kText);
  EXPECT_EQ(ParseLogFormat("json"), LogFormat::kJson);
  EXPECT_EQ(ParseLogFormat("xml"), std::nullopt);
}

TEST(LogTest, NobodyForgesALine) {
  // Ids come from clients.
  const std::string id = "x\n2026-01-01 error forged: y=1\t\"\xff\x01";
  const std::string text = FormatLogLine(LogFormat::kText, "tester", "got\nit",
                                         {}, {{"request_id", id}});
  EXPECT_EQ(text.find('\n'), std::string::npos);
  EXPECT_EQ(text,
            "tester: got; it request_id=\"x\\n2026-01-01 error forged: "
            "y=1\\t\\\"\\xff\\x01\"");
  const std::string line =
      absl::StrCat("{",
                   FormatLogLine(LogFormat::kJson, "tester", "got\nit", {},
                                 {{"request_id", id}}),
                   "}");
  EXPECT_EQ(line.find('\n'), std::string::npos);
  const json parsed = json::parse(line);
  EXPECT_EQ(parsed["message"], "got\nit");
  EXPECT_EQ(parsed.size(), 3);
}

TEST(LogTest, NumbersThatJsonLacksAreNull) {
  const std::string line = absl::StrCat(
      "{",
      FormatLogLine(
          LogFormat::kJson, "tester", "odd", {},
          {{"a", std::numeric_limits<double>::infinity()}, {"b", int64_t{-5}}}),
      "}");
  EXPECT_TRUE(json::parse(line)["a"].is_null());
  EXPECT_EQ(json::parse(line)["b"], -5);
}

TEST(LogTest, EveryLineCarriesTheContext) {
  Configure(LogFormat::kJson, LogLevel::kInfo);
  SetLogContext("rank", 3);
  SetLogContext("rank", 4);
  const std::vector<std::string> lines =
      LinesOf([] { Log(LogLevel::kInfo, "hello"); });
  ASSERT_EQ(lines.size(), 1);
  EXPECT_EQ(json::parse(lines[0])["rank"], 4);
}

TEST(LogTest, LinesOfManyThreadsStayWhole) {
  Configure(LogFormat::kJson, LogLevel::kInfo);
  constexpr int kThreads = 4;
  constexpr int kLines = 200;
  const std::vector<std::string> lines = LinesOf([] {
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) {
      threads.emplace_back([t] {
        for (int i = 0; i < kLines; ++i) {
          Log(i % 10 == 0 ? LogLevel::kError : LogLevel::kInfo, "line",
              {{"thread", t}, {"i", i}, {"text", std::string(200, 'x')}});
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  });
  EXPECT_EQ(lines.size(), kThreads * kLines);
  for (const std::string& line : lines) {
    EXPECT_TRUE(json::accept(line)) << line;
  }
}

}  // namespace
}  // namespace switchyard
