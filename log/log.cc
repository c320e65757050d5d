#include "log/log.h"

#include <pthread.h>
#include <signal.h>
#include <spdlog/async.h>
#include <spdlog/async_logger.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace switchyard {
namespace {

constexpr size_t kQueueLines = 8192;

constexpr char kTextPattern[] = "%Y-%m-%dT%H:%M:%S.%fZ %l %v";
constexpr char kJsonPattern[] =
    "{\"time\":\"%Y-%m-%dT%H:%M:%S.%fZ\",\"level\":\"%l\",%v}";

spdlog::level::level_enum ToSpdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
  }
  return spdlog::level::err;
}

std::string JsonString(absl::string_view text) {
  return nlohmann::json(std::string(text))
      .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// What would end a line, or look like another field, is quoted: ids come from
// clients.
std::string TextValue(absl::string_view text) {
  bool plain = !text.empty();
  for (const unsigned char c : text) {
    plain =
        plain && absl::ascii_isgraph(c) && c != '"' && c != '=' && c != '\\';
  }
  if (plain) return std::string(text);
  return absl::StrCat("\"", absl::CHexEscape(text), "\"");
}

// A message keeps its spaces and its UTF-8, but stays on one line.
std::string TextMessage(absl::string_view text) {
  std::string line;
  line.reserve(text.size());
  for (const unsigned char c : text) {
    if (c == '\n') {
      line += "; ";
    } else if (absl::ascii_iscntrl(c)) {
      absl::StrAppend(&line, "\\x", absl::Hex(c, absl::kZeroPad2));
    } else {
      line += static_cast<char>(c);
    }
  }
  return line;
}

std::string NumberText(double value) {
  // JSON has no others.
  return std::isfinite(value) ? absl::StrCat(value) : "null";
}

void AppendField(LogFormat format, const LogField& field, std::string* line) {
  const bool json = format == LogFormat::kJson;
  if (json) {
    absl::StrAppend(line, ",", JsonString(field.key()), ":");
  } else {
    absl::StrAppend(line, " ", field.key(), "=");
  }
  if (const auto* text = std::get_if<absl::string_view>(&field.value())) {
    line->append(json ? JsonString(*text) : TextValue(*text));
  } else if (const auto* number = std::get_if<int64_t>(&field.value())) {
    absl::StrAppend(line, *number);
  } else {
    line->append(NumberText(std::get<double>(field.value())));
  }
}

std::string Head(LogFormat format, absl::string_view component,
                 absl::string_view message) {
  return format == LogFormat::kJson
             ? absl::StrCat("\"component\":", JsonString(component),
                            ",\"message\":", JsonString(message))
             : absl::StrCat(component, ": ", TextMessage(message));
}

class ProcessLog {
 public:
  static ProcessLog& Get() {
    // Never destroyed: threads may log until the very end.
    static auto* const log = new ProcessLog();
    return *log;
  }

  void Configure(const LogOptions& options) {
    std::lock_guard<std::mutex> lock(mutex_);
    level_ = options.level;
    format_ = options.format;
    component_ = options.component;
    SetPattern();
  }

  void SetContext(absl::string_view key, int64_t value) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& [name, number] : context_) {
      if (name == key) {
        number = value;
        return;
      }
    }
    context_.emplace_back(std::string(key), value);
  }

  bool enabled(LogLevel level) const { return level >= level_; }

  void Write(LogLevel level, absl::string_view message,
             std::initializer_list<LogField> fields) {
    std::string line;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      line = Head(format_, component_, message);
      for (const auto& [key, value] : context_) {
        AppendField(format_, LogField(key, value), &line);
      }
      for (const LogField& field : fields) AppendField(format_, field, &line);
      if (level < LogLevel::kError) {
        if (queue_ == nullptr) StartQueue();
        queued_->log(ToSpdlog(level), View(line));
        return;
      }
    }
    direct_->log(ToSpdlog(level), View(line));
  }

  void Flush() {
    std::lock_guard<std::mutex> lock(mutex_);
    StopQueue();
  }

 private:
  ProcessLog() : sink_(std::make_shared<spdlog::sinks::stderr_sink_mt>()) {
    direct_ = std::make_shared<spdlog::logger>("", sink_);
    direct_->set_level(spdlog::level::debug);
    SetPattern();
    std::atexit(+[] { Get().Flush(); });
  }

  static spdlog::string_view_t View(const std::string& line) {
    return spdlog::string_view_t(line.data(), line.size());
  }

  void SetPattern() {
    sink_->set_formatter(std::make_unique<spdlog::pattern_formatter>(
        format_ == LogFormat::kJson ? kJsonPattern : kTextPattern,
        spdlog::pattern_time_type::utc, "\n"));
  }

  // Its thread must take no signal: the process has its own for those.
  void StartQueue() {
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    queue_ = std::make_shared<spdlog::details::thread_pool>(kQueueLines, 1);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    queued_ = std::make_shared<spdlog::async_logger>(
        "", sink_, queue_, spdlog::async_overflow_policy::overrun_oldest);
    queued_->set_level(spdlog::level::debug);
  }

  // Waits until the thread has written everything; a later line starts anew.
  void StopQueue() {
    if (queue_ == nullptr) return;
    const size_t num_lost = queue_->overrun_counter();
    queued_.reset();
    queue_.reset();
    if (num_lost > 0) {
      std::string line = Head(format_, component_, "log lines were lost");
      AppendField(format_, LogField("num_lost", num_lost), &line);
      direct_->log(spdlog::level::warn, View(line));
    }
  }

  std::mutex mutex_;
  std::atomic<LogLevel> level_{LogLevel::kInfo};
  LogFormat format_ = LogFormat::kText;
  std::string component_ = "switchyard";
  std::vector<std::pair<std::string, int64_t>> context_;
  std::shared_ptr<spdlog::sinks::stderr_sink_mt> sink_;
  std::shared_ptr<spdlog::logger> direct_;
  std::shared_ptr<spdlog::details::thread_pool> queue_;
  std::shared_ptr<spdlog::async_logger> queued_;
};

}  // namespace

std::optional<LogLevel> ParseLogLevel(absl::string_view name) {
  for (const LogLevel level : {LogLevel::kDebug, LogLevel::kInfo,
                               LogLevel::kWarning, LogLevel::kError}) {
    const spdlog::string_view_t known =
        spdlog::level::to_string_view(ToSpdlog(level));
    if (name == absl::string_view(known.data(), known.size())) return level;
  }
  return std::nullopt;
}

std::optional<LogFormat> ParseLogFormat(absl::string_view name) {
  if (name == "text") return LogFormat::kText;
  if (name == "json") return LogFormat::kJson;
  return std::nullopt;
}

void ConfigureLog(const LogOptions& options) {
  ProcessLog::Get().Configure(options);
}

void SetLogContext(absl::string_view key, int64_t value) {
  ProcessLog::Get().SetContext(key, value);
}

bool LogEnabled(LogLevel level) { return ProcessLog::Get().enabled(level); }

void Log(LogLevel level, absl::string_view message,
         std::initializer_list<LogField> fields) {
  ProcessLog& log = ProcessLog::Get();
  if (log.enabled(level)) log.Write(level, message, fields);
}

void FlushLog() { ProcessLog::Get().Flush(); }

std::string FormatLogLine(LogFormat format, absl::string_view component,
                          absl::string_view message,
                          std::initializer_list<LogField> context,
                          std::initializer_list<LogField> fields) {
  std::string line = Head(format, component, message);
  for (const LogField& field : context) AppendField(format, field, &line);
  for (const LogField& field : fields) AppendField(format, field, &line);
  return line;
}

}  // namespace switchyard
