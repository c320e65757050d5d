#include "coordinator/process_metrics.h"

#include <dirent.h>
#include <prometheus/metric_family.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"

namespace switchyard {
namespace {

void Append(const char* name, const char* help, prometheus::MetricType type,
            std::optional<double> value,
            std::vector<prometheus::MetricFamily>* families) {
  if (!value.has_value()) return;
  prometheus::MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = type;
  prometheus::ClientMetric& metric = family.metric.emplace_back();
  (type == prometheus::MetricType::Counter ? metric.counter.value
                                           : metric.gauge.value) = *value;
  families->push_back(std::move(family));
}

std::optional<double> Number(const std::vector<std::string>& fields, size_t i) {
  double value;
  if (i < fields.size() && absl::SimpleAtod(fields[i], &value)) return value;
  return std::nullopt;
}

// Seconds since the epoch at which this machine started.
std::optional<double> BootTime() {
  std::ifstream file("/proc/stat");
  std::string word;
  while (file >> word) {
    double seconds;
    if (word == "btime" && file >> seconds) return seconds;
  }
  return std::nullopt;
}

std::optional<double> OpenFiles() {
  DIR* directory = opendir("/proc/self/fd");
  if (directory == nullptr) return std::nullopt;
  int count = 0;
  while (readdir(directory) != nullptr) ++count;
  closedir(directory);
  return count - 3;  // `.`, `..` and the directory itself
}

}  // namespace

void AppendProcessMetrics(std::vector<prometheus::MetricFamily>* families) {
  std::ifstream file("/proc/self/stat");
  std::string line;
  std::getline(file, line);
  // The name, in parentheses, may hold anything; what follows is numbers, the
  // first of them the 3rd field of proc(5).
  const size_t name_end = line.rfind(')');
  if (name_end == std::string::npos) return;
  const std::vector<std::string> fields =
      absl::StrSplit(line.substr(name_end + 1), ' ', absl::SkipEmpty());
  const double ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
  const auto user = Number(fields, 11);
  const auto system = Number(fields, 12);
  const auto start = Number(fields, 19);
  const auto pages = Number(fields, 21);
  const auto boot = BootTime();

  using prometheus::MetricType;
  if (user && system) {
    Append("process_cpu_seconds_total", "CPU time of the coordinator process.",
           MetricType::Counter, (*user + *system) / ticks, families);
  }
  if (pages) {
    Append("process_resident_memory_bytes",
           "Resident memory of the coordinator process.", MetricType::Gauge,
           *pages * static_cast<double>(sysconf(_SC_PAGESIZE)), families);
  }
  if (start && boot) {
    Append("process_start_time_seconds",
           "When the coordinator process started, in Unix time.",
           MetricType::Gauge, *boot + *start / ticks, families);
  }
  Append("process_open_fds", "Open files of the coordinator process.",
         MetricType::Gauge, OpenFiles(), families);
}

}  // namespace switchyard
