// The process's log: one line per event on stderr, as text for people or as
// JSON for machines, with what identifies the event as fields.
//
//   Log(LogLevel::kInfo, "request finished",
//       {{"request_id", id}, {"step", step_id}});
//
// text: 2026-01-31T12:00:00.000001Z info coordinator: request finished
//       request_id=req-1 step=7
// json: {"time":"2026-01-31T12:00:00.000001Z","level":"info",
//        "component":"coordinator","message":"request finished",
//        "request_id":"req-1","step":7}
//
// docs/metrics.md lists the fields. Prompts, texts, tokens' values and secrets
// are never logged.
//
// The one thing of the program that is global: whoever finds something wrong
// must be able to say so. Any thread may log. Lines below kError go through a
// queue, so that no reader of stderr can stop the one who logs; if the queue is
// full the oldest lines are lost, and counted. Errors are written at once.
#ifndef SWITCHYARD_LOG_LOG_H_
#define SWITCHYARD_LOG_LOG_H_

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <type_traits>
#include <variant>

#include "absl/strings/string_view.h"

namespace switchyard {

enum class LogLevel { kDebug, kInfo, kWarning, kError };
enum class LogFormat { kText, kJson };

// The names that flags use: debug, info, warning, error; text, json.
std::optional<LogLevel> ParseLogLevel(absl::string_view name);
std::optional<LogFormat> ParseLogFormat(absl::string_view name);

struct LogOptions {
  LogLevel level = LogLevel::kInfo;  // lines below it are dropped
  LogFormat format = LogFormat::kText;
  std::string component = "switchyard";
};

// A name and a value that is borrowed for the call.
class LogField {
 public:
  LogField(absl::string_view key, absl::string_view value)
      : key_(key), value_(value) {}
  LogField(absl::string_view key, const std::string& value)
      : LogField(key, absl::string_view(value)) {}
  LogField(absl::string_view key, const char* value)
      : LogField(key, absl::string_view(value)) {}
  LogField(absl::string_view key, double value) : key_(key), value_(value) {}
  template <typename T, std::enable_if_t<std::is_integral_v<T>, int> = 0>
  LogField(absl::string_view key, T value)
      : key_(key), value_(static_cast<int64_t>(value)) {}

  absl::string_view key() const { return key_; }
  const std::variant<absl::string_view, int64_t, double>& value() const {
    return value_;
  }

 private:
  absl::string_view key_;
  std::variant<absl::string_view, int64_t, double> value_;
};

// Until this is called: text of kInfo and above. Call it before other threads
// log.
void ConfigureLog(const LogOptions& options);

// A field of every line from here on, for instance a worker's rank.
void SetLogContext(absl::string_view key, int64_t value);

// Whether lines of `level` are written; for those that cost to put together.
bool LogEnabled(LogLevel level);

void Log(LogLevel level, absl::string_view message,
         std::initializer_list<LogField> fields = {});

// Writes what is queued. A process that ends without it may lose its last
// lines, errors excepted; it happens by itself at exit().
void FlushLog();

// What a line says, without time and level; exposed for tests.
std::string FormatLogLine(LogFormat format, absl::string_view component,
                          absl::string_view message,
                          std::initializer_list<LogField> context,
                          std::initializer_list<LogField> fields);

}  // namespace switchyard

#endif  // SWITCHYARD_LOG_LOG_H_
